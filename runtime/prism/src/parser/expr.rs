//! Expressions, loosest operators first.

use super::{Parsed, Parser};
use crate::ast::*;
use crate::lexer::{Sign, Tok, Word};

/// The binary operators and their levels; a higher level binds tighter.
fn binary_op(tok: &Tok) -> Option<(BinOp, u8)> {
    use BinOp::*;
    let Tok::Sign(sign) = tok else {
        return (*tok == Tok::Word(Word::Instanceof)).then_some((InstanceOf, 6));
    };
    Some(match sign {
        Sign::Or => (Or, 1),
        Sign::SureOr => (SureOr, 1),
        Sign::SureOrSelect => (SureSelect, 1),
        Sign::SureGate => (SureGate, 1),
        Sign::Coalesce => (Coalesce, 2),
        Sign::SureCoalesce => (SureCoalesce, 3),
        Sign::And => (And, 4),
        Sign::SureAnd => (SureAnd, 4),
        Sign::Eq => (Eq, 5),
        Sign::Ne => (Ne, 5),
        Sign::Same => (Same, 5),
        Sign::NotSame => (NotSame, 5),
        Sign::SureEq => (SureEq, 5),
        Sign::SureNe => (SureNe, 5),
        Sign::Gt => (Gt, 6),
        Sign::Ge => (Ge, 6),
        Sign::Lt => (Lt, 6),
        Sign::Le => (Le, 6),
        Sign::SureLt => (SureLt, 6),
        Sign::SureLe => (SureLe, 6),
        Sign::SureGe => (SureGe, 6),
        Sign::Add => (Add, 7),
        Sign::Sub => (Sub, 7),
        Sign::SureAdd => (SureAdd, 7),
        Sign::SureSub => (SureSub, 7),
        Sign::Mul => (Mul, 8),
        Sign::Div => (Div, 8),
        Sign::Mod => (Mod, 8),
        Sign::SureMul => (SureMul, 8),
        Sign::SureDiv => (SureDiv, 8),
        _ => return None,
    })
}

impl Parser<'_> {
    pub(super) fn expr(&mut self) -> Parsed<Expr> {
        self.deeper(|p| {
            let start = p.span();
            let first = p.ternary()?;
            let mut stages = Vec::new();
            loop {
                let op = match p.peek() {
                    Tok::Sign(Sign::Pipe) => PipeOp::Plain,
                    Tok::Sign(Sign::SurePipe) => PipeOp::Sure,
                    Tok::Sign(Sign::SureFilter) => PipeOp::Filter,
                    _ => break,
                };
                p.bump();
                stages.push((op, p.ternary()?));
            }
            if stages.is_empty() {
                return Ok(first);
            }
            Ok(Expr { kind: ExprKind::Pipe(Box::new(first), stages), span: p.since(start) })
        })
    }

    pub(super) fn ternary(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let cond = self.confident()?;
        let sure = self.is(Sign::SureIf);
        if !sure && !self.is(Sign::Question) {
            return Ok(cond);
        }
        self.bump();
        let then = self.bracketed(|p| p.expr())?;
        self.expect(Sign::Colon, "between the branches of `?`")?;
        let other = self.expr()?;
        let ternary = Ternary { sure, cond, then, other };
        Ok(Expr { kind: ExprKind::Ternary(Box::new(ternary)), span: self.since(start) })
    }

    fn confident(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let value = self.binary(1)?;
        if self.eat(Sign::Attach) {
            // The operand is a primary, with accesses on the same line: `~> cfg.trust`, `~> score(x)`.
            let at = self.span();
            let head = self.primary()?;
            let confidence = self.accesses(at, head, true)?;
            let kind = ExprKind::Attach(Box::new(value), Box::new(confidence));
            return Ok(Expr { kind, span: self.since(start) });
        }
        let mut rest = Vec::new();
        while self.eat(Sign::Chain) {
            rest.push((BinOp::Chain, self.binary(1)?));
        }
        Ok(self.chain(start, value, rest))
    }

    fn chain(&mut self, start: crate::diagnostic::Span, first: Expr, rest: Vec<(BinOp, Expr)>) -> Expr {
        if rest.is_empty() {
            return first;
        }
        Expr { kind: ExprKind::Binary(Box::new(first), rest), span: self.since(start) }
    }

    fn binary(&mut self, min: u8) -> Parsed<Expr> {
        let start = self.span();
        let mut left = self.power()?;
        while let Some((_, level)) = binary_op(self.peek()).filter(|(_, level)| *level >= min) {
            let mut rest = Vec::new();
            while let Some((op, _)) = binary_op(self.peek()).filter(|(_, l)| *l == level) {
                self.bump();
                rest.push((op, self.binary(level + 1)?));
            }
            left = self.chain(start, left, rest);
        }
        Ok(left)
    }

    /// Right associative, and its left operand is a unary: `-3 ** 2` is 9.
    fn power(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let base = self.unary()?;
        if !self.eat(Sign::Pow) {
            return Ok(base);
        }
        let exponent = self.deeper(|p| p.power())?;
        Ok(self.chain(start, base, vec![(BinOp::Pow, exponent)]))
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let op = match self.peek() {
            Tok::Sign(Sign::Not) => UnOp::Not,
            Tok::Sign(Sign::Sub) => UnOp::Neg,
            Tok::Sign(Sign::Tilde) => UnOp::Tilde,
            Tok::Sign(Sign::Extract) => UnOp::Extract,
            Tok::Word(Word::Typeof) => UnOp::Typeof,
            Tok::Word(Word::Await) => UnOp::Await,
            _ => {
                let start = self.span();
                let head = self.primary()?;
                return self.accesses(start, head, false);
            }
        };
        let start = self.span();
        self.bump();
        let operand = self.deeper(|p| p.unary())?;
        Ok(Expr { kind: ExprKind::Unary(op, Box::new(operand)), span: self.since(start) })
    }

    /// Calls, members and indexes after `head`. With `same_line`, a new line ends them.
    fn accesses(&mut self, start: crate::diagnostic::Span, head: Expr, same_line: bool) -> Parsed<Expr> {
        let mut steps = Vec::new();
        loop {
            let at = self.span();
            let bracket = self.is(Sign::LParen) || self.is(Sign::LBracket);
            // A bracket that is first on its line starts a new statement, unless one is still open.
            if self.fresh() && (same_line || (bracket && self.open == 0)) {
                break;
            }
            let kind = match self.peek() {
                Tok::Sign(Sign::LParen) => {
                    self.bump();
                    AccessKind::Call(self.items(Sign::RParen, false, "after the arguments")?)
                }
                Tok::Sign(Sign::LBracket) => {
                    self.bump();
                    let index = self.bracketed(|p| p.expr())?;
                    self.expect(Sign::RBracket, "after the index")?;
                    AccessKind::Index(index)
                }
                Tok::Sign(sign @ (Sign::Dot | Sign::OptDot | Sign::SureDot)) => {
                    let op = match sign {
                        Sign::Dot => MemberOp::Dot,
                        Sign::OptDot => MemberOp::Optional,
                        _ => MemberOp::Sure,
                    };
                    self.bump();
                    AccessKind::Member(op, self.any_name("a property name")?)
                }
                _ => break,
            };
            steps.push(Access { kind, span: self.since(at) });
        }
        if steps.is_empty() {
            return Ok(head);
        }
        Ok(Expr { kind: ExprKind::Access(Box::new(head), steps), span: self.since(start) })
    }

    /// Elements up to `closer`, which is consumed. A trailing comma adds nothing.
    fn items(&mut self, closer: Sign, holes: bool, after: &str) -> Parsed<Vec<Item>> {
        self.bracketed(|p| {
            let mut items = Vec::new();
            while !p.eat(closer) {
                if holes && p.eat(Sign::Comma) {
                    items.push(Item::Hole);
                    continue;
                }
                items.push(if p.eat(Sign::Spread) { Item::Spread(p.expr()?) } else { Item::Expr(p.expr()?) });
                if !p.eat(Sign::Comma) {
                    p.expect(closer, after)?;
                    break;
                }
            }
            Ok(items)
        })
    }

    pub(super) fn primary(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let kind = match self.peek() {
            Tok::Num(x) => ExprKind::Num(*x),
            Tok::Str(s) => ExprKind::Str(s.clone()),
            Tok::Word(Word::True) => ExprKind::Bool(true),
            Tok::Word(Word::False) => ExprKind::Bool(false),
            Tok::Word(Word::Null | Word::Undefined) => ExprKind::Null,
            Tok::Placeholder => ExprKind::Placeholder,
            Tok::TextStart => return self.template(),
            Tok::Word(Word::Match) => return self.match_expr(),
            Tok::Word(Word::Async) if self.lambda_at(self.at + 1) => {
                self.bump();
                return self.lambda(true);
            }
            _ if self.lambda_at(self.at) => return self.lambda(false),
            Tok::Ident(_) | Tok::Word(Word::Agents) => {
                let ident = self.ident("a name")?;
                return Ok(Expr { kind: ExprKind::Ident(ident), span: ident.span });
            }
            Tok::Sign(Sign::LParen) => {
                self.bump();
                let mut inner = self.bracketed(|p| p.expr())?;
                self.expect(Sign::RParen, "to close the parenthesis")?;
                inner.span = self.since(start);
                return Ok(inner);
            }
            Tok::Sign(Sign::LBracket) => {
                self.bump();
                ExprKind::Array(self.items(Sign::RBracket, true, "after the elements")?)
            }
            Tok::Sign(Sign::LBrace) => return self.object(),
            Tok::Word(word) => {
                let message = format!("expected an expression, found the keyword `{}`", word.text());
                let hint = matches!(word, Word::Function | Word::Fn)
                    .then_some("a function without a name is written `x => …` or `(x, y) => { … }`");
                return self.fail(start, message, hint);
            }
            _ => {
                let hint = self.slip();
                return self.expected_with("an expression", hint);
            }
        };
        // Arrays and the like have consumed their tokens, single tokens not yet.
        if !matches!(kind, ExprKind::Array(_)) {
            self.bump();
        }
        Ok(Expr { kind, span: self.since(start) })
    }

    fn template(&mut self) -> Parsed<Expr> {
        let start = self.span();
        self.bump();
        let mut parts = Vec::new();
        loop {
            match self.peek().clone() {
                Tok::Text(text) => {
                    self.bump();
                    parts.push(Part::Text(text));
                }
                Tok::ExprStart => {
                    self.bump();
                    parts.push(Part::Expr(self.bracketed(|p| p.expr())?));
                    if *self.peek() != Tok::ExprEnd {
                        return self.expected("`}` after the interpolated expression");
                    }
                    self.bump();
                }
                Tok::TextEnd => {
                    self.bump();
                    return Ok(Expr { kind: ExprKind::Template(parts), span: self.since(start) });
                }
                _ => return self.expected("the end of the string"),
            }
        }
    }

    fn object(&mut self) -> Parsed<Expr> {
        let start = self.span();
        if !self.object_follows(self.at, false) {
            let hint = "an object is written `{key: value}`; a block is not an expression";
            self.bump();
            return self.expected_with("a property of an object", Some(hint));
        }
        self.bump();
        let pairs = self.bracketed(|p| {
            let mut pairs = Vec::new();
            while !p.eat(Sign::RBrace) {
                pairs.push(p.pair_of_object()?);
                if !p.eat(Sign::Comma) {
                    p.expect(Sign::RBrace, "after the properties")?;
                    break;
                }
            }
            Ok(pairs)
        })?;
        Ok(Expr { kind: ExprKind::Object(pairs), span: self.since(start) })
    }

    fn pair_of_object(&mut self) -> Parsed<Pair> {
        if self.eat(Sign::Spread) {
            return Ok(Pair::Spread(self.expr()?));
        }
        let span = self.span();
        let at = self.at;
        let (key, name) = match self.peek().clone() {
            Tok::Str(key) => {
                self.bump();
                (key, None)
            }
            _ => (self.any_name("a property name")?, self.name_at(at)),
        };
        if self.eat(Sign::Colon) {
            return Ok(Pair::Set(key, self.expr()?));
        }
        // `{total}` is `{total: total}`.
        let Some(name) = name else {
            return self.expected("`:` after the property name");
        };
        let ident = self.new_ident(name, span);
        Ok(Pair::Set(key, Expr { kind: ExprKind::Ident(ident), span }))
    }

    /// Whether a lambda starts at this token.
    fn lambda_at(&self, at: usize) -> bool {
        if self.no_lambda {
            return false;
        }
        let arrow = match self.tok(at) {
            Tok::Sign(Sign::LParen) => self.pair(at).map(|end| end + 1),
            _ => self.name_at(at).map(|_| at + 1),
        };
        arrow.is_some_and(|at| *self.tok(at) == Tok::Sign(Sign::Arrow))
    }

    fn lambda(&mut self, is_async: bool) -> Parsed<Expr> {
        self.deeper(|p| {
            let start = p.span();
            let (params, rest) = if p.eat(Sign::LParen) {
                p.params()?
            } else {
                (vec![Target::Name(p.ident("a parameter")?)], None)
            };
            p.expect(Sign::Arrow, "after the parameters")?;
            let body =
                if p.is(Sign::LBrace) { Body::Block(p.lambda_block()?) } else { Body::Expr(p.ternary()?) };
            let span = p.since(start);
            let function = Function { name: None, is_async, params, rest, confidence: None, body, span };
            Ok(Expr { kind: ExprKind::Lambda(Box::new(function)), span })
        })
    }

    fn lambda_block(&mut self) -> Parsed<Block> {
        let looks_like_object = matches!(self.peek_at(1), Tok::Ident(_) | Tok::Str(_))
            && *self.peek_at(2) == Tok::Sign(Sign::Colon);
        if looks_like_object {
            let hint = "a lambda body that starts with `{` is a block; return an object with `=> ({…})`";
            return self.fail(self.span(), "expected a block, found an object", Some(hint));
        }
        self.block("after `=>`")
    }

    fn match_expr(&mut self) -> Parsed<Expr> {
        let start = self.span();
        self.bump();
        let subject = self.bracketed(|p| p.expr())?;
        self.expect(Sign::LBrace, "before the arms of `match`")?;
        let mut arms = Vec::new();
        self.bracketed(|p| {
            while !p.eat(Sign::RBrace) {
                arms.push(p.arm()?);
                if !p.eat(Sign::Comma) && !p.eat(Sign::Semi) {
                    p.expect(Sign::RBrace, "or `,` after an arm of `match`")?;
                    break;
                }
            }
            Ok(())
        })?;
        Ok(Expr { kind: ExprKind::Match(Box::new(Match { subject, arms })), span: self.since(start) })
    }

    fn arm(&mut self) -> Parsed<Arm> {
        let pattern = self.match_pattern()?;
        let threshold = if self.eat(Sign::Attach) { Some(self.without_lambda()?) } else { None };
        let guard = if self.eat_word(Word::If) { Some(self.without_lambda()?) } else { None };
        self.expect(Sign::Arrow, "after the pattern")?;
        let body = if self.is(Sign::LBrace) && !self.object_key_follows(self.at) {
            Body::Block(self.block("of the arm")?)
        } else {
            Body::Expr(self.expr()?)
        };
        Ok(Arm { pattern, threshold, guard, body })
    }

    /// Thresholds and guards end at `=>`.
    pub(super) fn without_lambda(&mut self) -> Parsed<Expr> {
        let before = std::mem::replace(&mut self.no_lambda, true);
        let expr = self.expr();
        self.no_lambda = before;
        expr
    }

    /// `{` followed by a key and a colon can only be an object.
    fn object_key_follows(&self, at: usize) -> bool {
        matches!(self.tok(at + 1), Tok::Ident(_) | Tok::Str(_) | Tok::Word(_))
            && *self.tok(at + 2) == Tok::Sign(Sign::Colon)
    }

    /// Block or object? At the start of a statement the rules are stricter than inside an expression.
    pub(super) fn object_follows(&self, at: usize, statement: bool) -> bool {
        match self.tok(at + 1) {
            Tok::Sign(Sign::RBrace | Sign::Spread) => true,
            Tok::Word(word) if *word != Word::Agents => *self.tok(at + 2) == Tok::Sign(Sign::Colon),
            Tok::Ident(_) | Tok::Word(_) => match self.tok(at + 2) {
                Tok::Sign(Sign::Comma | Sign::Colon | Sign::RBrace) => true,
                Tok::Sign(Sign::Attach) => statement,
                Tok::Sign(Sign::Set) => statement && self.default_follows(at + 3),
                _ => false,
            },
            Tok::Str(_) => {
                !statement && matches!(self.tok(at + 2), Tok::Sign(Sign::Comma | Sign::Colon | Sign::RBrace))
            }
            _ => false,
        }
    }

    /// Whether `{a = …` goes on like a destructuring default: with a comma, or with `} =`.
    fn default_follows(&self, from: usize) -> bool {
        match self.end_of_expr(from) {
            Some(end) => match self.tok(end) {
                Tok::Sign(Sign::Comma) => true,
                Tok::Sign(Sign::RBrace) => *self.tok(end + 1) == Tok::Sign(Sign::Set),
                _ => false,
            },
            None => false,
        }
    }

    /// The token at which an expression that starts at `from` must have ended, found without parsing: a closing
    /// bracket, a comma, a semicolon or an assignment. None if a new statement starts before.
    pub(super) fn end_of_expr(&self, from: usize) -> Option<usize> {
        let mut at = from;
        let mut complete = false;
        loop {
            let tok = self.tok(at);
            match tok {
                Tok::Eof => return None,
                Tok::Sign(
                    Sign::RBrace | Sign::RParen | Sign::RBracket | Sign::Comma | Sign::Semi | Sign::Set,
                )
                | Tok::ExprEnd => return Some(at),
                Tok::Sign(Sign::LParen | Sign::LBracket) if complete && self.tokens[at].fresh => return None,
                Tok::Sign(Sign::LParen | Sign::LBracket | Sign::LBrace) | Tok::TextStart => {
                    if complete && matches!(tok, Tok::Sign(Sign::LBrace) | Tok::TextStart) {
                        return None;
                    }
                    at = self.pair(at)?;
                    complete = true;
                }
                Tok::Num(_) | Tok::Str(_) | Tok::Ident(_) | Tok::Placeholder => {
                    if complete {
                        return None;
                    }
                    complete = true;
                }
                Tok::Word(Word::Typeof | Word::Await | Word::Instanceof | Word::Match | Word::If) => {
                    complete = false
                }
                Tok::Word(Word::True | Word::False | Word::Null | Word::Undefined | Word::Agents) => {
                    if complete {
                        return None;
                    }
                    complete = true;
                }
                Tok::Word(_) if complete => return None,
                Tok::Word(_) => complete = true,
                _ => complete = false,
            }
            at += 1;
        }
    }
}
