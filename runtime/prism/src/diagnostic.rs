//! What went wrong, as data: a stable code, a message, where, and what to do about it.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// A byte range of one source file. Files are numbered in the order in which they were loaded; 0 is the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    pub file: u32,
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub(crate) fn to(self, other: Span) -> Span {
        Span { file: self.file, start: self.start, end: other.end.max(self.start) }
    }
}

/// Line and column of a byte offset, both from 1; the column counts characters.
pub fn line_column(source: &str, offset: u32) -> (u32, u32) {
    let mut offset = (offset as usize).min(source.len());
    while !source.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &source[..offset];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.bytes().filter(|&b| b == b'\n').count() as u32 + 1;
    (line, before[line_start..].chars().count() as u32 + 1)
}

/// When a diagnostic arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Parse,
    Check,
    Runtime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// A second place that explains the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Related {
    pub file: String,
    pub span: Span,
    pub line: u32,
    pub column: u32,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Stable, one of the codes of the language's error table or a `limit_…` code.
    pub code: &'static str,
    pub kind: Kind,
    pub severity: Severity,
    pub message: String,
    /// Name of the file that `span` is in.
    pub file: String,
    pub span: Span,
    /// Of the start of `span`, from 1.
    pub line: u32,
    pub column: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

/// The error that ended a run: a diagnostic of kind [`Kind::Runtime`].
pub type Fault = Diagnostic;

/// A named source text.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) name: Arc<str>,
    pub(crate) source: Arc<str>,
}

impl Diagnostic {
    pub(crate) fn new(
        code: &'static str,
        kind: Kind,
        message: impl Into<String>,
        span: Span,
        files: &[File],
    ) -> Self {
        let (file, (line, column)) = locate(span, files);
        let (message, severity) = (message.into(), Severity::Error);
        Diagnostic {
            code,
            kind,
            severity,
            message,
            file,
            span,
            line,
            column,
            hint: None,
            related: Vec::new(),
        }
    }

    /// An error of a whole line, counted from 1, of what stands in a source without being part of the language.
    pub fn of_line(
        code: &'static str,
        message: impl Into<String>,
        file: &str,
        source: &str,
        line: usize,
    ) -> Self {
        let before = source.split_inclusive('\n').take(line.max(1) - 1);
        let start: usize = before.map(str::len).sum();
        let text = source[start..].lines().next().unwrap_or("");
        let inner = text.trim_start_matches([' ', '\t', '*', '/']);
        let start = start + text.len() - inner.len();
        let span = Span { file: 0, start: start as u32, end: (start + inner.trim_end().len()) as u32 };
        let files = [File { name: Arc::from(file), source: Arc::from(source) }];
        Diagnostic::new(code, Kind::Parse, message, span, &files)
    }

    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    pub(crate) fn related(mut self, span: Span, message: impl Into<String>, files: &[File]) -> Self {
        let (file, (line, column)) = locate(span, files);
        self.related.push(Related { file, span, line, column, message: message.into() });
        self
    }

    /// The diagnostic as a person reads it: message, place, source line with a caret, hint. `source` is the text of
    /// the file that the diagnostic names.
    pub fn render(&self, source: &str) -> String {
        let mut out = String::new();
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        let _ = writeln!(out, "{severity}[{}]: {}", self.code, self.message);
        excerpt(&mut out, &self.file, source, self.span, self.line, self.column, '^');
        for place in &self.related {
            let _ = writeln!(out, "note: {}", place.message);
            let source = if place.file == self.file { source } else { "" };
            excerpt(&mut out, &place.file, source, place.span, place.line, place.column, '-');
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "hint: {hint}");
        }
        out
    }
}

fn locate(span: Span, files: &[File]) -> (String, (u32, u32)) {
    match files.get(span.file as usize) {
        Some(file) => (file.name.to_string(), line_column(&file.source, span.start)),
        None => (String::new(), (1, 1)),
    }
}

/// Writes ` --> file:line:column`, the line, and a marker below it. Only the first line of a longer span is shown.
fn excerpt(out: &mut String, file: &str, source: &str, span: Span, line: u32, column: u32, mark: char) {
    let number = line.to_string();
    let gutter = " ".repeat(number.len());
    let _ = writeln!(out, "{gutter}--> {file}:{line}:{column}");
    let Some(text) = source.lines().nth(line as usize - 1) else { return };
    // Tabs would move the marker away from what it marks.
    let (text, column) = window(&text.replace('\t', " "), column as usize - 1);
    let width = source.get(span.start as usize..span.end as usize).map_or(1, |s| {
        let first = s.lines().next().unwrap_or("").chars().count();
        first.clamp(1, text.chars().count().saturating_sub(column).max(1))
    });
    let marker: String = std::iter::repeat_n(mark, width).collect();
    let indent = " ".repeat(column);
    let _ = writeln!(out, "{gutter} |\n{number} | {text}\n{gutter} | {indent}{marker}");
}

/// The part of a long line around a column, and the column in it.
fn window(text: &str, column: usize) -> (String, usize) {
    const WIDE: usize = 120;
    if text.chars().count() <= WIDE {
        return (text.to_string(), column);
    }
    let start = column.saturating_sub(WIDE / 2);
    let part: String = text.chars().skip(start).take(WIDE).collect();
    let after = if text.chars().count() > start + WIDE { "…" } else { "" };
    if start == 0 { (part + after, column) } else { (format!("…{part}{after}"), column - start + 1) }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {} [{}]", self.file, self.line, self.column, self.message, self.code)
    }
}

impl std::error::Error for Diagnostic {}

/// An error on its way up, before the machine knows where it happened.
#[derive(Clone, Debug)]
pub(crate) struct Raise {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

pub(crate) type Raised<T> = Result<T, Box<Raise>>;

impl Raise {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Box<Raise> {
        Box::new(Raise { code, message: message.into(), hint: None })
    }

    pub(crate) fn hint(mut self: Box<Self>, hint: impl Into<String>) -> Box<Raise> {
        self.hint = Some(hint.into());
        self
    }

    /// Limits and interruption end a run whatever the script says.
    pub(crate) fn catchable(&self) -> bool {
        !self.code.starts_with("limit_") && self.code != "interrupted"
    }
}

/// The candidate nearest to `name`, if one is near enough to be a likely misspelling.
pub(crate) fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match name.chars().count() {
        0..=3 => 1,
        4..=5 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        .filter(|c| *c != name)
        .map(|c| (distance(name, c), c))
        .filter(|(d, c)| *d <= limit && *d < c.chars().count().max(2))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edits (insert, delete, replace, swap of neighbours) between two names, letters' case counting as half.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = a[i - 1].eq_ignore_ascii_case(&b[j - 1]);
            let mut best =
                (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(!same));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
