//! What stands in brackets, separated by commas: arguments, elements, properties, names, arms.

use super::{Laid, Layout};
use crate::format::doc::Doc;
use crate::lexer::{Sign, Tok};

/// An item, and the separator after it.
struct Item {
    start: usize,
    end: usize,
    separator: Option<usize>,
}

impl<'a> Layout<'_, 'a> {
    pub(super) fn list(&self, open: usize, close: usize) -> Laid<'a> {
        let brace = self.is(open, Sign::LBrace);
        let items = self.items(open + 1, close, brace);
        let ((opener, commented), (closer, after)) = (self.bare(open), self.bare(close));
        let closing = !self.pieces[close].leading.is_empty();
        if items.is_empty() && !closing && !commented {
            return (Doc::All(vec![opener, closer]), after);
        }
        let mut broken = commented || closing || (self.pieces[open + 1].fresh && !items.is_empty());
        let mut laid = Vec::new();
        let last = items.len().saturating_sub(1);
        let hugs = !brace && items.last().is_some_and(|item| self.hugs(item, open, items.len()));
        let mut inner_hard = false;
        for (i, item) in items.iter().enumerate() {
            let (doc, mut hard) = self.item(item, brace);
            let mut docs = vec![doc];
            if let Some(separator) = item.separator {
                let (doc, commented) = self.piece(separator);
                docs.push(doc);
                // A comment behind the last separator stands on its own line anyway.
                hard |= commented;
            }
            inner_hard |= hard;
            broken |= hard && !(hugs && i == last && item.separator.is_none());
            laid.push(Doc::All(docs));
        }
        if hugs && !broken {
            let mut docs = vec![opener];
            for (i, doc) in laid.into_iter().enumerate() {
                if i > 0 {
                    docs.push(Doc::Space);
                }
                docs.push(doc);
            }
            docs.push(closer);
            return (Doc::All(docs), inner_hard || after);
        }
        let rows = broken && self.is(open, Sign::LBracket) && self.rows(&items);
        let edge = || if brace { Doc::Line } else { Doc::Soft };
        let mut inner = vec![edge()];
        for (i, doc) in laid.into_iter().enumerate() {
            if i > 0 {
                let stays = rows && !self.pieces[items[i].start].fresh;
                inner.push(if stays { Doc::Space } else { Doc::Line });
                if broken && items[i].start < items[i].end && self.blank_before(items[i].start) {
                    inner.push(Doc::Blank);
                }
            }
            inner.push(doc);
        }
        inner.push(self.closing_comments(open, close));
        let doc = Doc::All(vec![opener, Doc::Indent(Box::new(Doc::All(inner))), edge(), closer]);
        (Doc::Group(Box::new(doc), broken), broken || after)
    }

    fn items(&self, lo: usize, hi: usize, brace: bool) -> Vec<Item> {
        let mut items = Vec::new();
        let mut start = lo;
        for at in self.outer(lo, hi) {
            if self.is(at, Sign::Comma) || (brace && self.is(at, Sign::Semi)) {
                items.push(Item { start, end: at, separator: Some(at) });
                start = at + 1;
            } else if at > start && self.starts_item(at) {
                items.push(Item { start, end: at, separator: None });
                start = at;
            }
        }
        if start < hi {
            items.push(Item { start, end: hi, separator: None });
        }
        items
    }

    /// Branches of `uncertain`, and agents with their properties, follow each other without a comma.
    fn starts_item(&self, at: usize) -> bool {
        let start = |at: usize| self.pieces.get(at).map_or(u32::MAX, |piece| piece.start);
        self.marks.branches.contains(&start(at + 1))
            || self.marks.agents.contains(&start(at))
            || (self.marks.settings.contains(&start(at + 2)) && self.is(at + 1, Sign::Colon))
    }

    fn item(&self, item: &Item, brace: bool) -> Laid<'a> {
        let (lo, hi) = (item.start, item.end);
        if brace && lo + 1 < hi && self.is(lo + 1, Sign::Colon) {
            let ((key, a), (colon, b), (value, c)) =
                (self.piece(lo), self.piece(lo + 1), self.expression(lo + 2, hi));
            return (Doc::All(vec![key, colon, Doc::Space, value]), a || b || c);
        }
        self.expression(lo, hi)
    }

    /// Whether the last item may start on the line of the bracket and end on that of the closing one:
    /// `f(x => {`, `f({`, `[{`.
    fn hugs(&self, item: &Item, open: usize, count: usize) -> bool {
        if self.is(open, Sign::LBracket) && count > 1 || item.start >= item.end {
            return false;
        }
        let opener = self.pieces[item.end - 1].pair;
        if opener == usize::MAX || opener < item.start {
            return false;
        }
        let whole = opener == item.start;
        let body = opener > item.start && self.is(opener - 1, Sign::Arrow);
        let called = open > 0 && matches!(self.tok(open - 1), Tok::Ident(_));
        let chained = called && self.is(open, Sign::LParen);
        match self.tok(opener) {
            Tok::Sign(Sign::LBrace | Sign::LBracket) => whole || body,
            // `f(g(…` reads well only where the inner call breaks its lines itself.
            _ => (whole || body) && chained,
        }
    }

    /// Short elements keep the rows in which their author put them.
    fn rows(&self, items: &[Item]) -> bool {
        items.len() > 6 && items.iter().all(|item| item.end <= item.start + 2)
    }
}
