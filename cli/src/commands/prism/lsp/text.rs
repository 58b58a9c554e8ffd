//! Byte offsets to an editor's lines and characters, and back.

use parallax_prism::Span;
use serde_json::{Value as Json, json};

/// What a column counts.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// The protocol's default.
    #[default]
    Utf16,
}

impl Encoding {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Utf16 => "utf-16",
        }
    }

    fn width(self, c: char) -> usize {
        match self {
            Self::Utf8 => c.len_utf8(),
            Self::Utf16 => c.len_utf16(),
        }
    }
}

/// An open document.
pub(super) struct Text {
    pub(super) source: String,
    /// Where each line starts.
    lines: Vec<usize>,
    encoding: Encoding,
}

impl Text {
    pub(super) fn new(source: String, encoding: Encoding) -> Self {
        let starts = source.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Self { source, lines, encoding }
    }

    /// The byte offset of a position; one beyond the text is at its end.
    pub(super) fn offset(&self, line: u32, character: u32) -> u32 {
        let Some(start) = self.lines.get(line as usize) else { return self.end() };
        let (mut at, mut column) = (*start, 0);
        for c in self.source[*start..].chars().take_while(|c| *c != '\n') {
            column += self.encoding.width(c);
            if column > character as usize {
                break;
            }
            at += c.len_utf8();
        }
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    pub(super) fn end(&self) -> u32 {
        u32::try_from(self.source.len()).unwrap_or(u32::MAX)
    }

    fn position(&self, offset: u32) -> Json {
        let mut offset = (offset as usize).min(self.source.len());
        while !self.source.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset) - 1;
        let before = &self.source[self.lines[line]..offset];
        let character: usize = before.chars().map(|c| self.encoding.width(c)).sum();
        json!({"line": line, "character": character})
    }

    pub(super) fn range(&self, span: Span) -> Json {
        json!({"start": self.position(span.start), "end": self.position(span.end)})
    }

    /// The name around an offset, with where it stands and whether a dot is before it.
    pub(super) fn word(&self, offset: u32) -> (&str, Span, bool) {
        let offset = (offset as usize).min(self.source.len());
        let named = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let bytes = self.source.as_bytes();
        let start = offset - bytes[..offset].iter().rev().take_while(|b| named(b)).count();
        let end = offset + bytes[offset..].iter().take_while(|b| named(b)).count();
        let member = bytes[..start].ends_with(b".");
        // All of it is ASCII, so these are boundaries of characters.
        let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let span = Span { file: 0, start: number(start), end: number(end) };
        (self.source.get(start..end).unwrap_or_default(), span, member)
    }
}
