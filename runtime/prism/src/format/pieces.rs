//! The source in pieces: what the lexer calls tokens, strings in one piece, each with the comments around it.

use crate::lexer::{Sign, Tok, Token};

pub(super) struct Piece<'a> {
    /// The first token of a string stands for all of it.
    pub(super) tok: Tok,
    pub(super) text: &'a str,
    /// Byte offsets in the source.
    pub(super) start: u32,
    /// On lines of their own before it.
    pub(super) leading: Vec<Comment<'a>>,
    /// After it, on the line where it ends.
    pub(super) trailing: Vec<Comment<'a>>,
    /// First on its line.
    pub(super) fresh: bool,
    /// An empty line right before it.
    pub(super) blank: bool,
    /// Of a bracket, the index of its other half.
    pub(super) pair: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Comment<'a> {
    pub(super) text: &'a str,
    /// An empty line right before it.
    pub(super) blank: bool,
}

/// Pieces of a source that has been parsed; the last one is the end of the file.
pub(super) fn pieces<'a>(source: &'a str, tokens: &[Token]) -> Vec<Piece<'a>> {
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    let mut open = Vec::new();
    let (mut at, mut end) = (0, 0);
    while at < tokens.len() {
        let first = &tokens[at];
        let last = end_of_string(tokens, at);
        let (start, stop) = (first.span.start as usize, tokens[last].span.end as usize);
        let mut piece = Piece {
            tok: first.tok.clone(),
            text: &source[start..stop.max(start)],
            start: first.span.start,
            leading: Vec::new(),
            trailing: Vec::new(),
            fresh: false,
            blank: false,
            pair: usize::MAX,
        };
        trivia(&source[end..start], &mut piece, pieces.last_mut());
        match first.tok {
            Tok::Sign(Sign::LParen | Sign::LBracket | Sign::LBrace) => open.push(pieces.len()),
            Tok::Sign(Sign::RParen | Sign::RBracket | Sign::RBrace) => {
                if let Some(opener) = open.pop() {
                    piece.pair = opener;
                    let here = pieces.len();
                    pieces[opener].pair = here;
                }
            }
            _ => {}
        }
        pieces.push(piece);
        (at, end) = (last + 1, stop.max(start));
    }
    pieces
}

fn end_of_string(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(at) {
        match token.tok {
            Tok::TextStart => depth += 1,
            Tok::TextEnd => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    at
}

/// Hands the comments of a gap to the pieces on its sides.
fn trivia<'a>(gap: &'a str, next: &mut Piece<'a>, mut last: Option<&mut Piece<'a>>) {
    let mut rest = gap;
    let mut fresh = last.is_none();
    loop {
        let comment = rest.find('/').unwrap_or(rest.len());
        let lines = rest[..comment].matches('\n').count();
        fresh |= lines > 0;
        let blank = lines > 1;
        rest = &rest[comment..];
        if rest.is_empty() {
            (next.fresh, next.blank) = (fresh, blank);
            return;
        }
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        };
        let comment = Comment { text: rest[..end].trim_end(), blank };
        match &mut last {
            Some(last) if !fresh => last.trailing.push(comment),
            _ => next.leading.push(comment),
        }
        rest = &rest[end..];
    }
}
