//! Tokens to syntax tree. Recursive descent with one token of lookahead, plus the few places where the language
//! decides by what follows: lambda or parentheses, block or object, destructuring or expression.

mod expr;
mod module;
mod pattern;
mod slips;
mod stmt;
#[cfg(test)]
mod tests;

use crate::ast::{Ident, Tree};
use crate::diagnostic::Span;
use crate::lexer::{Names, Sign, Symbol, Tok, Token, Word};

/// How deep brackets, blocks and operators may nest. Every later walk over the tree relies on it.
const MAX_DEPTH: u32 = 160;
const MAX_ERRORS: usize = 20;
const UNPAIRED: u32 = u32::MAX;

pub(crate) struct SyntaxError {
    pub(crate) message: String,
    pub(crate) span: Span,
    pub(crate) hint: Option<String>,
}

/// The error is recorded; unwind to the next statement.
struct Abort;

type Parsed<T> = Result<T, Abort>;

struct Parser<'a> {
    tokens: &'a [Token],
    names: &'a Names,
    /// For each opening bracket the index of the closing one.
    pairs: Vec<u32>,
    at: usize,
    depth: u32,
    /// Expression brackets open within the current statement: while any is, a new line never ends the statement.
    open: u32,
    /// In guards and thresholds of `match`, `x => …` is not a lambda.
    no_lambda: bool,
    next_id: &'a mut u32,
    errors: Vec<SyntaxError>,
    lost: Vec<Symbol>,
}

/// Parses one file. `next_id` numbers identifiers across files.
pub(crate) fn parse(tokens: &[Token], names: &Names, next_id: &mut u32) -> (Tree, Vec<SyntaxError>) {
    let mut parser = Parser {
        tokens,
        names,
        pairs: pairs(tokens),
        at: 0,
        depth: 0,
        open: 0,
        no_lambda: false,
        next_id,
        errors: Vec::new(),
        lost: Vec::new(),
    };
    let stmts = parser.statements_to_end();
    let end = tokens.last().map_or(Span::default(), |t| t.span);
    let span = Span { start: 0, ..end };
    (Tree { stmts, lost: parser.lost, span }, parser.errors)
}

fn pairs(tokens: &[Token]) -> Vec<u32> {
    let mut pairs = vec![UNPAIRED; tokens.len()];
    let mut open: Vec<(usize, Tok)> = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let closer = match token.tok {
            Tok::Sign(Sign::LParen) => Tok::Sign(Sign::RParen),
            Tok::Sign(Sign::LBracket) => Tok::Sign(Sign::RBracket),
            Tok::Sign(Sign::LBrace) => Tok::Sign(Sign::RBrace),
            Tok::TextStart => Tok::TextEnd,
            Tok::ExprStart => Tok::ExprEnd,
            Tok::Sign(Sign::RParen | Sign::RBracket | Sign::RBrace) | Tok::TextEnd | Tok::ExprEnd => {
                // A wrong closer is reported when parsing gets there; guess that an inner closer is missing.
                if open.last().is_some_and(|(_, closer)| *closer == token.tok)
                    && let Some((start, _)) = open.pop()
                {
                    pairs[start] = i as u32;
                }
                continue;
            }
            _ => continue,
        };
        open.push((i, closer));
    }
    pairs
}

impl Parser<'_> {
    fn peek(&self) -> &Tok {
        &self.tokens[self.at].tok
    }

    fn peek_at(&self, ahead: usize) -> &Tok {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].tok
    }

    fn span(&self) -> Span {
        self.tokens[self.at].span
    }

    /// The span of the token before the current one.
    fn last_span(&self) -> Span {
        self.tokens[self.at.saturating_sub(1)].span
    }

    fn since(&self, start: Span) -> Span {
        start.to(self.last_span())
    }

    fn fresh(&self) -> bool {
        self.tokens[self.at].fresh
    }

    fn bump(&mut self) {
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    fn is(&self, sign: Sign) -> bool {
        *self.peek() == Tok::Sign(sign)
    }

    fn is_word(&self, word: Word) -> bool {
        *self.peek() == Tok::Word(word)
    }

    fn eat(&mut self, sign: Sign) -> bool {
        let found = self.is(sign);
        if found {
            self.bump();
        }
        found
    }

    fn eat_word(&mut self, word: Word) -> bool {
        let found = self.is_word(word);
        if found {
            self.bump();
        }
        found
    }

    fn expect(&mut self, sign: Sign, after: &str) -> Parsed<()> {
        if self.eat(sign) {
            return Ok(());
        }
        let hint =
            (sign == Sign::RParen && self.is(Sign::Set)).then_some("`==` compares; `=` is a statement");
        self.expected_with(&format!("`{}` {after}", sign.text()), hint)
    }

    fn expect_word(&mut self, word: Word, after: &str) -> Parsed<()> {
        if self.eat_word(word) { Ok(()) } else { self.expected(&format!("`{}` {after}", word.text())) }
    }

    /// Silent at what the lexer has told already.
    fn fail<T>(&mut self, span: Span, message: impl Into<String>, hint: Option<&str>) -> Parsed<T> {
        let told = self.tokens[self.at.saturating_sub(1)..=self.at].iter().any(|t| t.tok == Tok::Unreadable);
        if !told && self.errors.len() < MAX_ERRORS {
            self.errors.push(SyntaxError { message: message.into(), span, hint: hint.map(str::to_string) });
        }
        Err(Abort)
    }

    fn expected<T>(&mut self, what: &str) -> Parsed<T> {
        self.expected_with(what, None)
    }

    fn expected_with<T>(&mut self, what: &str, hint: Option<&str>) -> Parsed<T> {
        let found = self.found();
        self.fail(self.span(), format!("expected {what}, found {found}"), hint)
    }

    /// The current token in words.
    fn found(&self) -> String {
        match self.peek() {
            Tok::Eof => "the end of the program".into(),
            Tok::Unreadable => "something unreadable".into(),
            Tok::Num(_) => "a number".into(),
            Tok::Str(_) | Tok::TextStart | Tok::Text(_) | Tok::TextEnd => "a string".into(),
            Tok::ExprStart => "`${`".into(),
            Tok::ExprEnd => "`}`".into(),
            Tok::Ident(name) => format!("`{}`", self.names.text(*name)),
            Tok::Word(word) => format!("the keyword `{}`", word.text()),
            Tok::Sign(sign) => format!("`{}`", sign.text()),
            Tok::Placeholder => "`_`".into(),
        }
    }

    /// Runs `parse` one level deeper.
    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            let message = format!("this nests more than {MAX_DEPTH} levels deep");
            return self.fail(
                self.span(),
                message,
                Some("move the inner part into a variable or a function"),
            );
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// Runs `parse` inside expression brackets, where lines and lambdas have their usual meaning.
    fn bracketed<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let no_lambda = std::mem::replace(&mut self.no_lambda, false);
        self.open += 1;
        let result = parse(self);
        self.open -= 1;
        self.no_lambda = no_lambda;
        result
    }

    /// The closing bracket of the opening one at `at`.
    fn pair(&self, at: usize) -> Option<usize> {
        match self.pairs.get(at) {
            Some(&UNPAIRED) | None => None,
            Some(&i) => Some(i as usize),
        }
    }

    fn tok(&self, at: usize) -> &Tok {
        &self.tokens[at.min(self.tokens.len() - 1)].tok
    }

    /// `agents` is a keyword only in front of a block.
    fn name_at(&self, at: usize) -> Option<Symbol> {
        match self.tok(at) {
            Tok::Ident(name) => Some(*name),
            Tok::Word(Word::Agents) => self.names.find(Word::Agents.text()),
            _ => None,
        }
    }

    fn new_ident(&mut self, name: Symbol, span: Span) -> Ident {
        let id = *self.next_id;
        *self.next_id += 1;
        Ident { name, id, span }
    }

    fn ident(&mut self, what: &str) -> Parsed<Ident> {
        let Some(name) = self.name_at(self.at) else {
            let hint = matches!(self.peek(), Tok::Word(_)).then_some("keywords cannot be names");
            return self.expected_with(what, hint);
        };
        let ident = self.new_ident(name, self.span());
        self.bump();
        Ok(ident)
    }

    /// A name where keywords are allowed too: after a dot, as an object's key.
    fn any_name(&mut self, what: &str) -> Parsed<std::sync::Arc<str>> {
        let name = match self.peek() {
            Tok::Ident(name) => self.names.text(*name).clone(),
            Tok::Word(word) => word.text().into(),
            Tok::Placeholder => "_".into(),
            _ => return self.expected(what),
        };
        self.bump();
        Ok(name)
    }
}
