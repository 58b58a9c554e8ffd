//! `import` and `export`.

use super::{Parsed, Parser};
use crate::ast::*;
use crate::diagnostic::Span;
use crate::lexer::{Sign, Tok, Word};
use std::sync::Arc;

impl Parser<'_> {
    pub(super) fn import(&mut self) -> Parsed<Import> {
        self.bump();
        let (mut all, mut names) = (None, Vec::new());
        if self.eat(Sign::Mul) {
            self.expect_word(Word::As, "after `*`")?;
            all = Some(self.ident("a name for the module")?);
        } else {
            if !self.is(Sign::LBrace) {
                names.push((Arc::from("default"), self.ident("what to import")?));
            }
            if names.is_empty() || self.eat(Sign::Comma) {
                for (name, at, span) in self.specs()? {
                    let local = match self.name_at(at) {
                        Some(symbol) => self.new_ident(symbol, span),
                        None => {
                            return self.fail(span, "a keyword needs another name: `default as name`", None);
                        }
                    };
                    names.push((name, local));
                }
            }
        }
        let (from, from_span) = self.module_path()?;
        Ok(Import { from, from_span, all, names })
    }

    /// `{a, b as c}`: the first name, and where the second one (or else the first) stands.
    fn specs(&mut self) -> Parsed<Vec<(Arc<str>, usize, Span)>> {
        self.expect(Sign::LBrace, "before the names")?;
        let mut specs = Vec::new();
        while !self.eat(Sign::RBrace) {
            let (mut at, mut span) = (self.at, self.span());
            let name = self.any_name("a name")?;
            if self.eat_word(Word::As) {
                (at, span) = (self.at, self.span());
                self.any_name("a name after `as`")?;
            }
            specs.push((name, at, span));
            if !self.eat(Sign::Comma) {
                self.expect(Sign::RBrace, "after the names")?;
                break;
            }
        }
        Ok(specs)
    }

    fn module_path(&mut self) -> Parsed<(Arc<str>, Span)> {
        self.expect_word(Word::From, "before the path of the module")?;
        let span = self.span();
        match self.peek().clone() {
            Tok::Str(path) => {
                self.bump();
                Ok((path, span))
            }
            _ => self.expected("the path of the module as a string"),
        }
    }

    pub(super) fn export(&mut self) -> Parsed<Export> {
        self.bump();
        if self.eat_word(Word::Default) {
            return Ok(Export::Default(self.expr()?));
        }
        if self.eat(Sign::Mul) {
            let (from, from_span) = self.module_path()?;
            return Ok(Export::All { from, from_span });
        }
        if !self.is(Sign::LBrace) {
            return Ok(Export::Stmt(Box::new(self.statement()?)));
        }
        let open = self.at;
        let specs = self.specs()?;
        let name_of = |p: &Self, at: usize| match p.tok(at) {
            Tok::Ident(name) => p.names.text(*name).clone(),
            Tok::Word(word) => Arc::from(word.text()),
            _ => Arc::from("_"),
        };
        if self.is_word(Word::From) {
            let (from, from_span) = self.module_path()?;
            let names = specs.into_iter().map(|(name, at, span)| (name, name_of(self, at), span)).collect();
            return Ok(Export::From { from, from_span, names });
        }
        let mut names = Vec::new();
        let mut first = open + 1;
        for (_, at, span) in specs {
            let Some(symbol) = self.name_at(first) else {
                return self.fail(span, "only a variable can be exported", None);
            };
            let local = self.new_ident(symbol, self.tokens[first].span);
            names.push((local, name_of(self, at)));
            first = at + 2;
        }
        Ok(Export::Names(names))
    }
}
