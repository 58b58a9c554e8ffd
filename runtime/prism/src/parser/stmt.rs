//! Statements, and how parsing goes on after a mistake.

use super::{Abort, Parsed, Parser};
use crate::ast::*;
use crate::lexer::{Sign, Tok, Word};

fn assign_op(tok: &Tok) -> Option<Option<BinOp>> {
    let Tok::Sign(sign) = tok else { return None };
    Some(match sign {
        Sign::Set => None,
        Sign::AddSet => Some(BinOp::Add),
        Sign::SubSet => Some(BinOp::Sub),
        Sign::MulSet => Some(BinOp::Mul),
        Sign::DivSet => Some(BinOp::Div),
        Sign::ModSet => Some(BinOp::Mod),
        Sign::SureAddSet => Some(BinOp::SureAdd),
        Sign::SureSubSet => Some(BinOp::SureSub),
        Sign::SureMulSet => Some(BinOp::SureMul),
        Sign::SureDivSet => Some(BinOp::SureDiv),
        _ => return None,
    })
}

fn starts_expr(tok: &Tok) -> bool {
    match tok {
        Tok::Num(_) | Tok::Str(_) | Tok::TextStart | Tok::Ident(_) | Tok::Placeholder => true,
        Tok::Word(word) => matches!(
            word,
            Word::True
                | Word::False
                | Word::Null
                | Word::Undefined
                | Word::Typeof
                | Word::Await
                | Word::Match
                | Word::Agents
        ),
        Tok::Sign(sign) => matches!(
            sign,
            Sign::LParen
                | Sign::LBracket
                | Sign::LBrace
                | Sign::Not
                | Sign::Sub
                | Sign::Tilde
                | Sign::Extract
        ),
        _ => false,
    }
}

impl Parser<'_> {
    /// All statements of the file; after a mistake parsing goes on with the next statement.
    pub(super) fn statements_to_end(&mut self) -> Vec<Stmt> {
        let mut stmts = Vec::new();
        while *self.peek() != Tok::Eof {
            self.one_of(&mut stmts);
            if self.is(Sign::RBrace) {
                let _ = self.fail::<()>(self.span(), "this `}` closes nothing", None);
                self.bump();
            }
        }
        stmts
    }

    /// One statement, or a recorded error and the tokens up to the next one.
    fn one_of(&mut self, stmts: &mut Vec<Stmt>) {
        if self.eat(Sign::Semi) || self.is(Sign::RBrace) {
            return;
        }
        let start = self.at;
        let (depth, open, no_lambda) = (self.depth, self.open, self.no_lambda);
        match self.statement() {
            Ok(stmt) => stmts.push(stmt),
            Err(Abort) => {
                (self.depth, self.open, self.no_lambda) = (depth, open, no_lambda);
                self.recover(start);
                let lost = (start..self.at).filter_map(|at| self.name_at(at));
                self.lost.extend(lost.collect::<Vec<_>>());
            }
        }
    }

    /// Skips to a token that plausibly starts a statement of the same block: one that is first on its line, outside
    /// the brackets that the broken statement opened.
    fn recover(&mut self, start: usize) {
        let failed = self.at.max(start);
        self.at = start;
        loop {
            match self.peek() {
                Tok::Eof | Tok::Sign(Sign::RBrace) => return,
                Tok::Sign(Sign::Semi) if self.at >= failed => return self.bump(),
                _ if self.at >= failed && self.at > start && self.fresh() => return,
                Tok::Sign(Sign::LParen | Sign::LBracket | Sign::LBrace) | Tok::TextStart => {
                    match self.pair(self.at) {
                        // The mistake is in there; what follows the bracket is fine.
                        Some(end) => self.at = end,
                        None if self.at >= failed => {}
                        None => self.at = failed.max(self.at + 1) - 1,
                    }
                }
                _ => {}
            }
            self.bump();
        }
    }

    pub(super) fn block(&mut self, after: &str) -> Parsed<Block> {
        self.deeper(|p| {
            let start = p.span();
            p.expect(Sign::LBrace, after)?;
            let (open, no_lambda) = (std::mem::take(&mut p.open), std::mem::take(&mut p.no_lambda));
            let mut stmts = Vec::new();
            while !p.is(Sign::RBrace) && *p.peek() != Tok::Eof {
                p.one_of(&mut stmts);
            }
            (p.open, p.no_lambda) = (open, no_lambda);
            if !p.eat(Sign::RBrace) {
                return p.fail(start, "this `{` is never closed", None);
            }
            Ok(Block { stmts, span: p.since(start) })
        })
    }

    /// A block, or a single statement. What starts with `{` is a block here.
    fn body(&mut self, after: &str) -> Parsed<Stmt> {
        if self.is(Sign::LBrace) {
            let block = self.block(after)?;
            return Ok(Stmt { span: block.span, kind: StmtKind::Block(block) });
        }
        let (open, no_lambda) = (std::mem::take(&mut self.open), std::mem::take(&mut self.no_lambda));
        let stmt = self.statement();
        (self.open, self.no_lambda) = (open, no_lambda);
        stmt
    }

    pub(super) fn statement(&mut self) -> Parsed<Stmt> {
        self.deeper(|p| {
            let start = p.span();
            let kind = p.statement_kind()?;
            // Extra semicolons mean nothing; one belongs to the statement.
            let span = p.since(start);
            p.eat(Sign::Semi);
            Ok(Stmt { kind, span })
        })
    }

    fn statement_kind(&mut self) -> Parsed<StmtKind> {
        let Tok::Word(word) = *self.peek() else {
            return match self.peek() {
                Tok::Sign(Sign::LBrace) if !self.object_follows(self.at, true) => {
                    Ok(StmtKind::Block(self.block("")?))
                }
                _ => self.expr_statement(),
            };
        };
        match word {
            Word::Function | Word::Fn => Ok(StmtKind::Function(Box::new(self.function(false)?))),
            Word::Async if matches!(self.peek_at(1), Tok::Word(Word::Function | Word::Fn)) => {
                self.bump();
                Ok(StmtKind::Function(Box::new(self.function(true)?)))
            }
            Word::Return => {
                self.bump();
                let value = if starts_expr(self.peek()) { Some(self.expr()?) } else { None };
                Ok(StmtKind::Return(value))
            }
            Word::Let | Word::Const => self.declaration(),
            Word::If => self.if_statement(),
            Word::Uncertain => self.uncertain(),
            Word::For => self.for_statement(),
            Word::While => {
                self.bump();
                let cond = self.expr()?;
                Ok(StmtKind::While { cond, body: Box::new(self.body("after the condition")?) })
            }
            Word::Do => {
                self.bump();
                let body = Box::new(self.body("after `do`")?);
                self.expect_word(Word::While, "after the body of `do`")?;
                Ok(StmtKind::DoWhile { body, cond: self.expr()? })
            }
            Word::Break => {
                self.bump();
                Ok(StmtKind::Break)
            }
            Word::Continue => {
                self.bump();
                Ok(StmtKind::Continue)
            }
            Word::In => self.context(),
            Word::Agents if *self.peek_at(1) == Tok::Sign(Sign::LBrace) => self.agents(),
            Word::Try => self.try_statement(),
            Word::Import => Ok(StmtKind::Import(self.import()?)),
            Word::Export => Ok(StmtKind::Export(self.export()?)),
            _ => self.expr_statement(),
        }
    }

    fn expr_statement(&mut self) -> Parsed<StmtKind> {
        if self.destructuring_follows() {
            let pattern = self.pattern()?;
            let threshold = if self.eat(Sign::Attach) { Some(self.expr()?) } else { None };
            self.expect(Sign::Set, "after the pattern")?;
            return Ok(StmtKind::Destructure { pattern, threshold, value: self.expr()? });
        }
        if self.name_at(self.at).is_some()
            && let Some(op) = assign_op(self.peek_at(1))
        {
            let target = self.ident("a name")?;
            self.bump();
            return Ok(StmtKind::Assign { target, op, value: self.expr()? });
        }
        let expr = self.expr()?;
        if assign_op(self.peek()).is_some() {
            let hint = match expr.kind {
                ExprKind::Access(..) => {
                    "data never changes: build a new value, for example `o = {...o, key: value}`"
                }
                _ => "only a variable can be assigned",
            };
            return self.fail(expr.span, "this cannot be assigned", Some(hint));
        }
        Ok(StmtKind::Expr(expr))
    }

    /// `[…] =`, `{…} =`, or the same with `~> threshold` in between.
    fn destructuring_follows(&self) -> bool {
        if !self.is(Sign::LBracket) && !self.is(Sign::LBrace) {
            return false;
        }
        let Some(end) = self.pair(self.at) else { return false };
        match self.tok(end + 1) {
            Tok::Sign(Sign::Set) => true,
            Tok::Sign(Sign::Attach) => {
                self.end_of_expr(end + 2).is_some_and(|at| *self.tok(at) == Tok::Sign(Sign::Set))
            }
            _ => false,
        }
    }

    fn declaration(&mut self) -> Parsed<StmtKind> {
        let constant = self.is_word(Word::Const);
        self.bump();
        let target = self.target("a name")?;
        let init = if self.eat(Sign::Set) { Some(self.expr()?) } else { None };
        if init.is_none() && (constant || matches!(target, Target::Pattern(_))) {
            let what = if constant { "`=` after the name of a constant" } else { "`=` after the pattern" };
            return self.expected(what);
        }
        Ok(StmtKind::Let { target, constant, init })
    }

    fn function(&mut self, is_async: bool) -> Parsed<Function> {
        let start = self.span();
        self.bump();
        let name = Some(self.ident("the name of the function")?);
        self.expect(Sign::LParen, "after the function's name")?;
        let (params, rest) = self.params()?;
        let confidence = if self.eat(Sign::Attach) { Some(self.expr()?) } else { None };
        let body = Body::Block(self.block("before the function's body")?);
        Ok(Function { name, is_async, params, rest, confidence, body, span: self.since(start) })
    }

    fn condition(&mut self, word: &str) -> Parsed<Expr> {
        if !self.eat(Sign::LParen) {
            return self
                .expected_with(&format!("`(` after `{word}`"), Some("the condition stands in parentheses"));
        }
        let cond = self.bracketed(|p| p.expr())?;
        self.expect(Sign::RParen, "after the condition")?;
        Ok(cond)
    }

    fn if_statement(&mut self) -> Parsed<StmtKind> {
        let mut arms = Vec::new();
        loop {
            self.bump();
            let cond = self.condition("if")?;
            arms.push((cond, self.body("after the condition")?));
            if !self.eat_word(Word::Else) {
                return Ok(StmtKind::If { arms, otherwise: None });
            }
            if !self.is_word(Word::If) {
                let otherwise = Some(Box::new(self.body("after `else`")?));
                return Ok(StmtKind::If { arms, otherwise });
            }
        }
    }

    fn uncertain(&mut self) -> Parsed<StmtKind> {
        self.bump();
        if self.eat_word(Word::If) {
            let cond = self.condition("uncertain if")?;
            return Ok(StmtKind::UncertainIf { cond, branches: self.branches(true)? });
        }
        if self.eat_word(Word::While) {
            let cond = self.expr()?;
            return Ok(StmtKind::UncertainWhile { cond, branches: self.branches(false)? });
        }
        if self.eat_word(Word::For) {
            let header = Box::new(self.header()?);
            return Ok(StmtKind::UncertainFor { header, branches: self.branches(false)? });
        }
        self.expected("`if`, `while` or `for` after `uncertain`")
    }

    fn branches(&mut self, repeatable: bool) -> Parsed<Branches> {
        self.expect(Sign::LBrace, "before the branches")?;
        let mut branches: Branches = [None, None, None, None];
        while !self.eat(Sign::RBrace) {
            if self.eat(Sign::Semi) {
                continue;
            }
            let which = match self.peek() {
                Tok::Word(Word::High) => 0,
                Tok::Word(Word::Medium) => 1,
                Tok::Word(Word::Low) => 2,
                Tok::Word(Word::Default) => 3,
                _ => return self.expected("a branch: `high`, `medium`, `low` or `default`"),
            };
            if branches[which].is_some() && !repeatable {
                return self.fail(self.span(), format!("a second {} branch", self.found()), None);
            }
            self.bump();
            branches[which] = Some(self.block("after the name of the branch")?);
        }
        Ok(branches)
    }

    fn for_statement(&mut self) -> Parsed<StmtKind> {
        self.bump();
        let second = *self.peek_at(1) == Tok::Sign(Sign::Comma);
        let is_in = *self.peek_at(1) == Tok::Word(Word::In) || second;
        if self.name_at(self.at).is_some() && is_in {
            let item = self.ident("a name")?;
            let index = if self.eat(Sign::Comma) { Some(self.ident("a name for the index")?) } else { None };
            self.expect_word(Word::In, "after the loop variable")?;
            let over = self.expr()?;
            return Ok(StmtKind::ForIn { item, index, over, body: Box::new(self.body("before the body")?) });
        }
        if self.is(Sign::LParen)
            && self.pair(self.at).is_some_and(|end| *self.tok(end + 1) == Tok::Sign(Sign::LBrace))
        {
            let hint =
                "`for` takes no parentheses: `for x in xs { … }` or `for let i = 0; i < n; i += 1 { … }`";
            return self.fail(self.span(), "unexpected `(` after `for`", Some(hint));
        }
        let header = Box::new(self.header()?);
        Ok(StmtKind::For { header, body: Box::new(self.body("before the body")?) })
    }

    fn header(&mut self) -> Parsed<Header> {
        let init = match self.peek() {
            Tok::Sign(Sign::Semi) => None,
            Tok::Word(Word::Let | Word::Const) => Some(self.header_part(Self::declaration)?),
            _ => Some(self.header_part(Self::expr_statement)?),
        };
        self.expect(Sign::Semi, "after the start of the loop")?;
        let cond = if self.is(Sign::Semi) { None } else { Some(self.expr()?) };
        self.expect(Sign::Semi, "after the condition of the loop")?;
        let update = match self.is(Sign::LBrace) {
            true => None,
            false => Some(self.header_part(Self::expr_statement)?),
        };
        Ok(Header { init, cond, update })
    }

    fn header_part(&mut self, parse: fn(&mut Self) -> Parsed<StmtKind>) -> Parsed<Stmt> {
        let start = self.span();
        let kind = parse(self)?;
        Ok(Stmt { kind, span: self.since(start) })
    }

    fn context(&mut self) -> Parsed<StmtKind> {
        self.bump();
        self.expect_word(Word::Context, "after `in`")?;
        self.context_name()?;
        let block = self.block("after the name of the context")?;
        if self.eat(Sign::ThinArrow) {
            self.context_name()?;
        }
        Ok(StmtKind::Context(block))
    }

    fn context_name(&mut self) -> Parsed<()> {
        if !matches!(self.peek(), Tok::Ident(_) | Tok::Str(_)) {
            return self.expected("the name of a context");
        }
        self.bump();
        Ok(())
    }

    fn agents(&mut self) -> Parsed<StmtKind> {
        self.bump();
        self.bump();
        let mut agents = Vec::new();
        while !self.eat(Sign::RBrace) {
            let name = self.ident("the name of an agent")?;
            self.expect(Sign::Colon, "after the name of the agent")?;
            self.eat_word(Word::Agent);
            let start = self.span();
            self.expect(Sign::LBrace, "before the agent's properties")?;
            let pairs = self.bracketed(|p| {
                let mut pairs = Vec::new();
                while !p.eat(Sign::RBrace) {
                    let key = p.any_name("a property name")?;
                    p.expect(Sign::Colon, "after the property name")?;
                    pairs.push(Pair::Set(key, p.expr()?));
                    if !p.eat(Sign::Comma) {
                        p.eat(Sign::Semi);
                    }
                }
                Ok(pairs)
            })?;
            agents.push((name, Expr { kind: ExprKind::Object(pairs), span: self.since(start) }));
            if !self.eat(Sign::Comma) {
                self.eat(Sign::Semi);
            }
        }
        Ok(StmtKind::Agents(agents))
    }

    fn try_statement(&mut self) -> Parsed<StmtKind> {
        let start = self.span();
        self.bump();
        let body = self.block("after `try`")?;
        let catch = if self.eat_word(Word::Catch) {
            let name = if self.eat(Sign::LParen) {
                let name = self.ident("a name for the error")?;
                self.expect(Sign::RParen, "after the name of the error")?;
                Some(name)
            } else {
                None
            };
            Some((name, self.block("after `catch`")?))
        } else {
            None
        };
        let finally = if self.eat_word(Word::Finally) { Some(self.block("after `finally`")?) } else { None };
        if catch.is_none() && finally.is_none() {
            return self.fail(start, "`try` needs a `catch` or a `finally`", None);
        }
        Ok(StmtKind::Try(Box::new(Try { body, catch, finally })))
    }
}
