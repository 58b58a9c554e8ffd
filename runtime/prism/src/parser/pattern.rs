//! Parameters, destructuring patterns and the patterns of `match`.

use super::{Parsed, Parser};
use crate::ast::*;
use crate::lexer::{Sign, Tok, Word};

impl Parser<'_> {
    /// Parameters up to the closing parenthesis, which is consumed.
    pub(super) fn params(&mut self) -> Parsed<(Vec<Target>, Option<Target>)> {
        let (mut params, mut rest) = (Vec::new(), None);
        while !self.eat(Sign::RParen) {
            if rest.is_some() {
                return self.fail(self.span(), "a rest parameter must be the last one", None);
            }
            if self.eat(Sign::Spread) {
                rest = Some(self.target("a parameter")?);
            } else {
                params.push(self.target("a parameter")?);
            }
            if self.is(Sign::Set) {
                return self.fail(
                    self.span(),
                    "parameters cannot have defaults",
                    Some("use `??` in the body"),
                );
            }
            if !self.eat(Sign::Comma) {
                self.expect(Sign::RParen, "after the parameters")?;
                break;
            }
        }
        Ok((params, rest))
    }

    pub(super) fn target(&mut self, what: &str) -> Parsed<Target> {
        if self.is(Sign::LBracket) || self.is(Sign::LBrace) {
            return Ok(Target::Pattern(self.pattern()?));
        }
        Ok(Target::Name(self.ident(what)?))
    }

    pub(super) fn pattern(&mut self) -> Parsed<Pattern> {
        self.deeper(|p| {
            let start = p.span();
            let array = p.is(Sign::LBracket);
            p.bump();
            let kind = p.bracketed(|p| if array { p.array_pattern() } else { p.object_pattern() })?;
            Ok(Pattern { kind, span: p.since(start) })
        })
    }

    fn array_pattern(&mut self) -> Parsed<PatternKind> {
        let (mut elems, mut rest) = (Vec::new(), None);
        while !self.eat(Sign::RBracket) {
            if self.eat(Sign::Comma) {
                elems.push(None);
                continue;
            }
            if self.eat(Sign::Spread) {
                rest = Some(self.rest(Sign::RBracket)?);
                break;
            }
            let target = self.target("a name to bind")?;
            let threshold = if self.eat(Sign::Attach) { Some(self.expr()?) } else { None };
            elems.push(Some(Elem { target, threshold }));
            if !self.eat(Sign::Comma) {
                self.expect(Sign::RBracket, "after the pattern")?;
                break;
            }
        }
        Ok(PatternKind::Array { elems, rest })
    }

    fn object_pattern(&mut self) -> Parsed<PatternKind> {
        let (mut props, mut rest) = (Vec::new(), None);
        while !self.eat(Sign::RBrace) {
            if self.eat(Sign::Spread) {
                rest = Some(self.rest(Sign::RBrace)?);
                break;
            }
            props.push(self.prop()?);
            if !self.eat(Sign::Comma) {
                self.expect(Sign::RBrace, "after the pattern")?;
                break;
            }
        }
        Ok(PatternKind::Object { props, rest })
    }

    fn prop(&mut self) -> Parsed<Prop> {
        let (at, span) = (self.at, self.span());
        let key = self.any_name("a property name")?;
        let target = if self.eat(Sign::Colon) {
            self.target("a name to bind")?
        } else {
            let Some(name) = self.name_at(at) else {
                return self.expected("`:` after a property that is a keyword");
            };
            Target::Name(self.new_ident(name, span))
        };
        let threshold = if self.eat(Sign::Attach) { Some(self.expr()?) } else { None };
        let default = if self.eat(Sign::Set) { Some(self.ternary()?) } else { None };
        Ok(Prop { key, target, threshold, default })
    }

    /// The name after `...`, and the closing bracket.
    fn rest(&mut self, closer: Sign) -> Parsed<Ident> {
        let name = self.ident("a name after `...`")?;
        self.eat(Sign::Comma);
        self.expect(closer, "after the rest element, which must be the last one")?;
        Ok(name)
    }

    pub(super) fn match_pattern(&mut self) -> Parsed<MatchPat> {
        self.deeper(|p| {
            let start = p.span();
            let kind = match p.peek().clone() {
                Tok::Placeholder => MatchKind::Any,
                Tok::Num(x) => MatchKind::Value(Literal::Num(x)),
                Tok::Str(s) => MatchKind::Value(Literal::Str(s)),
                Tok::Word(Word::True) => MatchKind::Value(Literal::Bool(true)),
                Tok::Word(Word::False) => MatchKind::Value(Literal::Bool(false)),
                Tok::Word(Word::Null | Word::Undefined) => MatchKind::Value(Literal::Null),
                Tok::Sign(Sign::Sub) if matches!(p.peek_at(1), Tok::Num(_)) => {
                    p.bump();
                    match p.peek() {
                        Tok::Num(x) => MatchKind::Value(Literal::Num(-x)),
                        _ => unreachable!("a number follows"),
                    }
                }
                Tok::Sign(Sign::LBracket) => {
                    p.bump();
                    let kind = p.bracketed(|p| p.array_match())?;
                    return Ok(MatchPat { kind, span: p.since(start) });
                }
                Tok::Sign(Sign::LBrace) => {
                    p.bump();
                    let kind = p.bracketed(|p| p.object_match())?;
                    return Ok(MatchPat { kind, span: p.since(start) });
                }
                _ => {
                    let name = p.ident("a pattern")?;
                    return Ok(MatchPat { kind: MatchKind::Bind(name), span: name.span });
                }
            };
            p.bump();
            Ok(MatchPat { kind, span: p.since(start) })
        })
    }

    fn array_match(&mut self) -> Parsed<MatchKind> {
        let (mut elems, mut rest) = (Vec::new(), None);
        while !self.eat(Sign::RBracket) {
            if self.eat(Sign::Comma) {
                elems.push(None);
                continue;
            }
            if self.eat(Sign::Spread) {
                rest = Some(self.rest(Sign::RBracket)?);
                break;
            }
            let pattern = self.match_pattern()?;
            elems.push(Some(self.match_elem(pattern)?));
            if !self.eat(Sign::Comma) {
                self.expect(Sign::RBracket, "after the pattern")?;
                break;
            }
        }
        Ok(MatchKind::Array { elems, rest })
    }

    fn object_match(&mut self) -> Parsed<MatchKind> {
        let (mut props, mut rest) = (Vec::new(), None);
        while !self.eat(Sign::RBrace) {
            if self.eat(Sign::Spread) {
                rest = Some(self.rest(Sign::RBrace)?);
                break;
            }
            let (at, span) = (self.at, self.span());
            let key = self.any_name("a property name")?;
            let pattern = if self.eat(Sign::Colon) {
                self.match_pattern()?
            } else {
                let Some(name) = self.name_at(at) else {
                    return self.expected("`:` after a property that is a keyword");
                };
                let ident = self.new_ident(name, span);
                MatchPat { kind: MatchKind::Bind(ident), span }
            };
            props.push((key, self.match_elem(pattern)?));
            if !self.eat(Sign::Comma) {
                self.expect(Sign::RBrace, "after the pattern")?;
                break;
            }
        }
        Ok(MatchKind::Object { props, rest })
    }

    fn match_elem(&mut self, pattern: MatchPat) -> Parsed<MatchElem> {
        let threshold = if self.eat(Sign::Attach) { Some(self.without_lambda()?) } else { None };
        Ok(MatchElem { pattern, threshold })
    }
}
