//! Pieces to layout. Lines break where their author broke a bracket, a chain or an operator's expression, and where
//! a line would be too long; at the loosest operator, and inside brackets after each comma.

use super::doc::Doc;
use super::marks::Marks;
use super::pieces::Piece;
use crate::lexer::{Sign, Tok, Word};

mod lists;
mod operators;

/// A layout, and whether it breaks lines in any case.
type Laid<'a> = (Doc<'a>, bool);

pub(super) struct Layout<'s, 'a> {
    pub(super) pieces: &'s [Piece<'a>],
    pub(super) marks: &'s Marks,
}

impl<'a> Layout<'_, 'a> {
    /// The whole file.
    pub(super) fn file(&self) -> Doc<'a> {
        let end = self.pieces.len() - 1;
        let mut docs = self.statements(0, end);
        if !docs.is_empty() {
            docs.push(Doc::Hard);
        }
        if !self.pieces[end].leading.is_empty() && end > 0 && self.blank_before(end) {
            docs.push(Doc::Blank);
        }
        docs.push(self.comments_before(end));
        Doc::All(docs)
    }

    fn tok(&self, at: usize) -> &Tok {
        &self.pieces[at].tok
    }

    fn is(&self, at: usize, sign: Sign) -> bool {
        *self.tok(at) == Tok::Sign(sign)
    }

    /// The piece after this one, brackets skipped.
    fn after(&self, at: usize) -> usize {
        let pair = self.pieces[at].pair;
        if pair != usize::MAX && pair > at { pair + 1 } else { at + 1 }
    }

    /// The pieces from `lo` up to `hi` that are in no bracket.
    fn outer(&self, lo: usize, hi: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(lo), move |at| Some(self.after(*at))).take_while(move |at| *at < hi)
    }

    fn blank_before(&self, at: usize) -> bool {
        let piece = &self.pieces[at];
        piece.leading.first().map_or(piece.blank, |comment| comment.blank)
    }

    fn comments_before(&self, at: usize) -> Doc<'a> {
        let mut docs = Vec::new();
        for (i, comment) in self.pieces[at].leading.iter().enumerate() {
            if i > 0 && comment.blank {
                docs.push(Doc::Blank);
            }
            docs.push(Doc::Comment(comment.text, true));
        }
        Doc::All(docs)
    }

    /// A piece with its comments.
    fn piece(&self, at: usize) -> Laid<'a> {
        let piece = &self.pieces[at];
        let (bare, hard) = self.bare(at);
        if piece.leading.is_empty() {
            return (bare, hard);
        }
        let blank = if piece.blank { Doc::Blank } else { Doc::All(Vec::new()) };
        (Doc::All(vec![self.comments_before(at), blank, bare]), true)
    }

    /// A piece with the comments after it.
    fn bare(&self, at: usize) -> Laid<'a> {
        let piece = &self.pieces[at];
        if piece.trailing.is_empty() {
            return (Doc::Text(piece.text), false);
        }
        let comments = piece.trailing.iter().map(|comment| Doc::Comment(comment.text, false));
        let hard = piece.trailing.iter().any(|comment| comment.text.starts_with("//"));
        (Doc::All(std::iter::once(Doc::Text(piece.text)).chain(comments).collect()), hard)
    }

    /// Statements, each on lines of its own, with the empty lines between them.
    fn statements(&self, lo: usize, hi: usize) -> Vec<Doc<'a>> {
        let mut docs = Vec::new();
        let mut start = lo;
        for at in self.outer(lo, hi).chain([hi]) {
            if at <= start || (at < hi && !self.marks.stmts.contains(&self.pieces[at].start)) {
                continue;
            }
            if start > lo {
                docs.push(Doc::Hard);
                if self.blank_before(start) {
                    docs.push(Doc::Blank);
                }
            }
            docs.push(self.statement(start, at).0);
            start = at;
        }
        docs
    }

    /// One statement; a body that is no block goes on the next line if its author put it there.
    fn statement(&self, lo: usize, hi: usize) -> Laid<'a> {
        let (mut docs, mut broken, mut hard) = (Vec::new(), false, false);
        let mut from = lo;
        while let Some(at) = self.outer(from, hi).find(|at| self.body_end(*at, lo).is_some()) {
            let (head, a) = self.expression(from, at);
            docs.push(head);
            hard |= a;
            if self.marks.blocks.contains(&self.pieces[at].start) {
                let (block, a) = self.run(at, at + 1);
                docs.extend([Doc::Space, block]);
                hard |= a;
                from = self.after(at);
                if from < hi && !self.is(from, Sign::Semi) {
                    docs.push(Doc::Space);
                }
                continue;
            }
            let end = self.body_end(at, lo).unwrap_or_default();
            let mut stop = self.outer(at, hi).find(|i| self.pieces[*i].start >= end).unwrap_or(hi);
            if stop < hi && self.is(stop, Sign::Semi) {
                stop += 1;
            }
            let (body, a) = self.statement(at, stop);
            broken |= self.pieces[at].fresh;
            hard |= a;
            docs.push(Doc::Indent(Box::new(Doc::All(vec![Doc::Line, body]))));
            if stop < hi {
                docs.push(Doc::Line);
            }
            from = stop;
        }
        if docs.is_empty() {
            return self.expression(lo, hi);
        }
        let (rest, a) = self.expression(from, hi);
        docs.push(rest);
        (Doc::Group(Box::new(Doc::All(docs)), broken), hard || broken || a)
    }

    /// Where the body that starts here ends: a block of the statement itself, not of a lambda in it, or a single
    /// statement. None if no body starts here.
    fn body_end(&self, at: usize, lo: usize) -> Option<u32> {
        let start = self.pieces[at].start;
        if self.marks.blocks.contains(&start) {
            let own = at == 0 || !self.is(at - 1, Sign::Arrow);
            return own.then(|| self.pieces[self.after(at) - 1].start);
        }
        self.marks.bodies.get(&start).copied().filter(|_| at > lo)
    }

    /// `{ … }` with statements.
    fn block(&self, open: usize, close: usize) -> Laid<'a> {
        let (opener, commented) = self.bare(open);
        let lone = open + 1 == close;
        let closing = !self.pieces[close].leading.is_empty();
        if lone && !closing && !commented {
            let (closer, hard) = self.bare(close);
            return (Doc::All(vec![opener, closer]), hard);
        }
        let one_line = !lone
            && !commented
            && (open + 1..=close).all(|at| !self.pieces[at].fresh && self.pieces[at].leading.is_empty())
            && self.outer(open + 2, close).all(|at| !self.marks.stmts.contains(&self.pieces[at].start));
        if one_line {
            let (inner, hard) = self.statement(open + 1, close);
            let (closer, after) = self.bare(close);
            let inner = Doc::Indent(Box::new(Doc::All(vec![Doc::Line, inner])));
            let doc = Doc::All(vec![opener, inner, Doc::Line, closer]);
            return (Doc::Group(Box::new(doc), hard), hard || after);
        }
        let mut inner = vec![Doc::Hard];
        inner.extend(self.statements(open + 1, close));
        inner.push(self.closing_comments(open, close));
        let inner = Doc::Indent(Box::new(Doc::All(inner)));
        let doc = Doc::All(vec![opener, inner, Doc::Hard, self.bare(close).0]);
        // Broken, so that what is inside is not laid out as a part of the line that the block began on.
        (Doc::Group(Box::new(doc), true), true)
    }

    /// The comments right before a closing bracket, which belong to what it closes.
    fn closing_comments(&self, open: usize, close: usize) -> Doc<'a> {
        let piece = &self.pieces[close];
        if piece.leading.is_empty() {
            return Doc::All(Vec::new());
        }
        let blank = piece.leading[0].blank && close > open + 1;
        let blank = if blank { Doc::Blank } else { Doc::All(Vec::new()) };
        Doc::All(vec![Doc::Hard, blank, self.comments_before(close)])
    }

    /// Tokens and brackets without an operator between them.
    fn run(&self, lo: usize, hi: usize) -> Laid<'a> {
        let (mut docs, mut hard) = (Vec::new(), false);
        // Where the first broken step of a chain of calls starts; the whole rest is indented.
        let mut chain = None;
        for at in self.outer(lo, hi) {
            if at > lo {
                let step = matches!(self.tok(at), Tok::Sign(Sign::Dot | Sign::OptDot | Sign::SureDot));
                if step && self.pieces[at].fresh {
                    chain.get_or_insert(docs.len());
                    docs.push(Doc::Hard);
                    hard = true;
                } else if self.spaced(at) {
                    docs.push(Doc::Space);
                }
            }
            let close = self.pieces[at].pair;
            let (doc, breaks) = if close == usize::MAX || close < at {
                self.piece(at)
            } else {
                let (doc, breaks) = if self.marks.blocks.contains(&self.pieces[at].start) {
                    self.block(at, close)
                } else {
                    self.list(at, close)
                };
                if self.pieces[at].leading.is_empty() {
                    (doc, breaks)
                } else {
                    (Doc::All(vec![self.comments_before(at), doc]), true)
                }
            };
            docs.push(doc);
            hard |= breaks;
        }
        if let Some(from) = chain {
            let steps = docs.split_off(from);
            docs.push(Doc::Indent(Box::new(Doc::All(steps))));
        }
        (Doc::All(docs), hard)
    }

    /// Whether a space stands between a piece and the one before it, in the same run.
    fn spaced(&self, at: usize) -> bool {
        use Sign::*;
        if let Tok::Sign(Dot | OptDot | SureDot | Spread) = self.tok(at - 1)
            && !matches!(self.tok(at), Tok::Sign(LBrace))
        {
            return false;
        }
        match self.tok(at) {
            Tok::Sign(Comma | Semi | Colon | Dot | OptDot | SureDot) => false,
            Tok::Sign(LParen | LBracket) if self.ends_operand(at - 1) => false,
            tok => match self.tok(at - 1) {
                // `~` and the sign after it could be read as one.
                Tok::Sign(Tilde) => {
                    matches!(tok, Tok::Sign(sign) if !matches!(sign, LParen | LBracket | LBrace))
                }
                Tok::Sign(Not | Extract | Spread) => false,
                Tok::Sign(Sub) => at >= 2 && self.ends_operand(at - 2),
                _ => true,
            },
        }
    }

    /// Whether an operator may follow this piece.
    fn ends_operand(&self, at: usize) -> bool {
        match self.tok(at) {
            Tok::Num(_) | Tok::Str(_) | Tok::TextStart | Tok::Ident(_) | Tok::Placeholder => true,
            Tok::Word(Word::True | Word::False | Word::Null | Word::Undefined | Word::Agents) => true,
            Tok::Word(_) => self.is_property(at),
            Tok::Sign(Sign::RParen | Sign::RBracket | Sign::RBrace) => true,
            _ => false,
        }
    }

    /// A word after a dot is a name like any other.
    fn is_property(&self, at: usize) -> bool {
        at > 0 && matches!(self.tok(at - 1), Tok::Sign(Sign::Dot | Sign::OptDot | Sign::SureDot))
    }
}
