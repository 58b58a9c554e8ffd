//! Source text to tokens. Interpolated strings are lexed in place: a string token list is
//! `TextStart Text… (ExprStart tokens… ExprEnd) … TextEnd`, so that the parser needs no second lexer.

use crate::diagnostic::Span;
use std::collections::HashMap;
use std::sync::Arc;

#[cfg(test)]
mod tests;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Symbol(pub(crate) u32);

/// Every name once.
#[derive(Default)]
pub(crate) struct Names {
    texts: Vec<Arc<str>>,
    ids: HashMap<Arc<str>, Symbol>,
}

impl Names {
    pub(crate) fn intern(&mut self, name: &str) -> Symbol {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let (id, text) = (Symbol(self.texts.len() as u32), Arc::<str>::from(name));
        self.texts.push(Arc::clone(&text));
        self.ids.insert(text, id);
        id
    }

    pub(crate) fn text(&self, symbol: Symbol) -> &Arc<str> {
        &self.texts[symbol.0 as usize]
    }

    pub(crate) fn find(&self, name: &str) -> Option<Symbol> {
        self.ids.get(name).copied()
    }
}

macro_rules! words {
    ($($name:ident $text:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Word { $($name),* }
        impl Word {
            pub(crate) const fn text(self) -> &'static str {
                match self { $(Word::$name => $text),* }
            }
            fn of(text: &str) -> Option<Word> {
                match text { $($text => Some(Word::$name),)* _ => None }
            }
        }
    };
}

words! {
    If "if" Else "else" Uncertain "uncertain" High "high" Medium "medium" Low "low" Default "default" In "in"
    Context "context" Agents "agents" Agent "Agent" Function "function" Fn "fn" Return "return" Let "let"
    Const "const" Match "match" True "true" False "false" Null "null" Undefined "undefined" For "for"
    While "while" Do "do" Break "break" Continue "continue" Typeof "typeof" Instanceof "instanceof"
    Import "import" Export "export" From "from" As "as" Async "async" Await "await" Try "try" Catch "catch"
    Finally "finally"
}

macro_rules! signs {
    ($($name:ident $text:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Sign { $($name),* }
        /// Longest first, so that the first match is the longest.
        const SIGNS: &[(&str, Sign)] = &[$(($text, Sign::$name)),*];
        impl Sign {
            pub(crate) const fn text(self) -> &'static str {
                match self { $(Sign::$name => $text),* }
            }
        }
    };
}

signs! {
    SureOrSelect "~||>"
    SureGe "~>=" SureCoalesce "~??" SureFilter "~?>" SureAnd "~&&" SureGate "~@>" SurePipe "~|>" SureOr "~||"
    SureAddSet "~+=" SureSubSet "~-=" SureMulSet "~*=" SureDivSet "~/=" SureEq "~==" SureNe "~!=" SureLe "~<="
    Same "===" NotSame "!==" Spread "..."
    Attach "~>" SureIf "~?" SureAdd "~+" SureSub "~-" SureMul "~*" SureDiv "~/" SureLt "~<" SureDot "~." Chain "~~"
    Eq "==" Arrow "=>" Ne "!=" Le "<=" Extract "<~" Ge ">=" OptDot "?." Coalesce "??" And "&&" Or "||" Pipe "|>"
    Pow "**" AddSet "+=" SubSet "-=" MulSet "*=" DivSet "/=" ModSet "%=" ThinArrow "->"
    Tilde "~" Set "=" Not "!" Lt "<" Gt ">" Add "+" Sub "-" Mul "*" Div "/" Mod "%" Dot "." Comma "," Colon ":"
    Semi ";" LParen "(" RParen ")" LBrace "{" RBrace "}" LBracket "[" RBracket "]" Question "?"
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tok {
    Num(f64),
    /// A text without interpolation.
    Str(Arc<str>),
    TextStart,
    Text(Arc<str>),
    ExprStart,
    ExprEnd,
    TextEnd,
    Ident(Symbol),
    Word(Word),
    Sign(Sign),
    Placeholder,
    /// What is here was told as a [`LexError`].
    Unreadable,
    Eof,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) tok: Tok,
    pub(crate) span: Span,
    /// First on its line.
    pub(crate) fresh: bool,
}

pub(crate) struct LexError {
    pub(crate) message: String,
    pub(crate) span: Span,
    pub(crate) hint: Option<&'static str>,
}

/// A string whose interpolation is being lexed.
struct Open {
    multiline: bool,
    /// Braces open inside the interpolation.
    braces: u32,
    start: usize,
}

struct Lexer<'a> {
    source: &'a str,
    bytes: &'a [u8],
    file: u32,
    pos: usize,
    fresh: bool,
    open: Vec<Open>,
    tokens: Vec<Token>,
    errors: Vec<LexError>,
    names: &'a mut Names,
}

/// Enough to be useful; more are likely to follow from the first.
const MAX_ERRORS: usize = 20;

/// All tokens, ending with [`Tok::Eof`], and what could not be read.
pub(crate) fn lex(source: &str, file: u32, names: &mut Names) -> (Vec<Token>, Vec<LexError>) {
    let mut lexer = Lexer {
        source,
        bytes: source.as_bytes(),
        file,
        pos: 0,
        fresh: true,
        open: Vec::new(),
        tokens: Vec::with_capacity(source.len() / 4 + 1),
        errors: Vec::new(),
        names,
    };
    lexer.run();
    (lexer.tokens, lexer.errors)
}

impl Lexer<'_> {
    fn run(&mut self) {
        loop {
            self.skip_blank();
            if self.pos >= self.bytes.len() || self.errors.len() >= MAX_ERRORS {
                break;
            }
            self.token();
        }
        if let Some(open) = self.open.pop() {
            self.error(open.start, open.start + 1, "this string's interpolation is never closed", None);
        }
        self.push(Tok::Eof, self.bytes.len());
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span { file: self.file, start: start as u32, end: end as u32 }
    }

    fn push(&mut self, tok: Tok, start: usize) {
        let span = self.span(start, self.pos);
        self.tokens.push(Token { tok, span, fresh: self.fresh });
        self.fresh = false;
    }

    fn error(&mut self, start: usize, end: usize, message: impl Into<String>, hint: Option<&'static str>) {
        let span = self.span(start, end.min(self.bytes.len()));
        self.errors.push(LexError { message: message.into(), span, hint });
        self.push(Tok::Unreadable, start);
    }

    fn skip_blank(&mut self) {
        while let Some(&b) = self.bytes.get(self.pos) {
            match b {
                b'\n' => {
                    self.fresh = true;
                    self.pos += 1;
                }
                b' ' | b'\t' | b'\r' => self.pos += 1,
                b'/' if self.bytes.get(self.pos + 1) == Some(&b'/') => {
                    self.pos += self.bytes[self.pos..].iter().take_while(|b| **b != b'\n').count();
                }
                b'/' if self.bytes.get(self.pos + 1) == Some(&b'*') => self.block_comment(),
                // Byte order mark and the wide spaces of Unicode.
                0x80.. => match self.source[self.pos..].chars().next() {
                    Some(c) if c.is_whitespace() || c == '\u{feff}' => {
                        self.fresh |= matches!(c, '\u{2028}' | '\u{2029}' | '\u{85}');
                        self.pos += c.len_utf8();
                    }
                    _ => return,
                },
                0x0b | 0x0c => self.pos += 1,
                _ => return,
            }
        }
    }

    fn block_comment(&mut self) {
        let start = self.pos;
        match self.source[start + 2..].find("*/") {
            Some(len) => {
                self.pos = start + 2 + len + 2;
                self.fresh |= self.source[start..self.pos].contains('\n');
            }
            None => {
                self.pos = self.bytes.len();
                self.error(start, start + 2, "this comment is never closed", Some("end it with */"));
            }
        }
    }

    fn token(&mut self) {
        let start = self.pos;
        let b = self.bytes[start];
        match b {
            b'0'..=b'9' => self.number(),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.name(),
            b'"' => self.string(start, start + 1, false),
            b'`' if self.source[start..].starts_with("```") => self.string(start, start + 3, true),
            b'}' if self.open.last().is_some_and(|o| o.braces == 0) => {
                self.pos += 1;
                self.push(Tok::ExprEnd, start);
                let open = self.open.pop().expect("checked by the guard");
                self.text(open.start, self.pos, open.multiline);
            }
            _ => self.sign(),
        }
    }

    fn number(&mut self) {
        let start = self.pos;
        let digits = |from: usize| self.bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
        let mut end = start + digits(start);
        if self.bytes.get(end) == Some(&b'.') && self.bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
            end += 1 + digits(end + 1);
        }
        self.pos = end;
        let value = self.source[start..end].parse().expect("digits with at most one point are a number");
        self.push(Tok::Num(value), start);
    }

    fn name(&mut self) {
        let start = self.pos;
        let len = self.bytes[start..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        self.pos += len;
        let text = &self.source[start..self.pos];
        let tok = match Word::of(text) {
            Some(word) => Tok::Word(word),
            None if text == "_" => Tok::Placeholder,
            None => Tok::Ident(self.names.intern(text)),
        };
        self.push(tok, start);
    }

    fn sign(&mut self) {
        let start = self.pos;
        let rest = &self.source[start..];
        let Some((text, sign)) = SIGNS.iter().find(|(text, _)| rest.starts_with(text)) else {
            let c = rest.chars().next().expect("not at the end");
            self.pos += c.len_utf8();
            return self.unknown(start, c);
        };
        self.pos += text.len();
        if let Some(open) = self.open.last_mut() {
            match sign {
                Sign::LBrace => open.braces += 1,
                Sign::RBrace => open.braces -= 1,
                _ => {}
            }
        }
        self.push(Tok::Sign(*sign), start);
    }

    fn unknown(&mut self, start: usize, c: char) {
        let hint = match c {
            '\'' => Some("strings are written with double quotes"),
            '`' => Some("multiline strings are written between three backticks"),
            '&' => Some("write && for a logical and"),
            '|' => Some("write || for a logical or, |> for a pipeline"),
            c if c.is_alphanumeric() => Some("names are made of the letters a to z, digits and _"),
            _ => None,
        };
        if matches!(c, '\'' | '`')
            && let Some(len) = self.source[self.pos..].find([c, '\n'])
            && self.bytes[self.pos + len] == c as u8
        {
            // One mistake, one message: skip the text that was meant as a string.
            self.pos += len + 1;
        }
        if c.is_alphanumeric() {
            let rest = self.source[self.pos..].chars().take_while(|c| c.is_alphanumeric());
            self.pos += rest.map(char::len_utf8).sum::<usize>();
        }
        let what = if c == '`' {
            "\"`\"".to_string()
        } else {
            format!("`{}`", c.escape_debug().to_string().replace("\\'", "'"))
        };
        self.error(start, self.pos, format!("unexpected {what}"), hint);
    }

    fn string(&mut self, start: usize, body: usize, multiline: bool) {
        let tokens = self.tokens.len();
        self.pos = start;
        self.push(Tok::TextStart, start);
        self.text(start, body, multiline);
        // A string without interpolation becomes one token.
        if let [Token { tok: Tok::TextStart, fresh, .. }, rest @ .., Token { tok: Tok::TextEnd, .. }] =
            &self.tokens[tokens..]
            && rest.len() <= 1
        {
            let text = match rest {
                [Token { tok: Tok::Text(text), .. }] => Arc::clone(text),
                _ => Arc::from(""),
            };
            let token = Token { tok: Tok::Str(text), span: self.span(start, self.pos), fresh: *fresh };
            self.tokens.truncate(tokens);
            self.tokens.push(token);
        }
    }

    /// Text up to the closing quotes or the next interpolation.
    fn text(&mut self, start: usize, from: usize, multiline: bool) {
        let mut text = String::new();
        self.pos = from;
        loop {
            let rest = &self.source[self.pos..];
            let stop = if multiline { rest.find(['$', '`']) } else { rest.find(['$', '"', '\\', '\n']) };
            let Some(len) = stop else {
                self.pos = self.bytes.len();
                self.push_text(text, from);
                self.push(Tok::TextEnd, self.pos);
                let hint =
                    if multiline { "end it with three backticks" } else { "end it with a double quote" };
                return self.error(start, start + 1, "this string is never closed", Some(hint));
            };
            text.push_str(&rest[..len]);
            self.pos += len;
            let rest = &rest[len..];
            if rest.starts_with("${") {
                self.push_text(text, from);
                self.pos += 2;
                self.push(Tok::ExprStart, self.pos - 2);
                self.open.push(Open { multiline, braces: 0, start });
                return;
            }
            if rest.starts_with('"') || rest.starts_with("```") {
                self.push_text(text, from);
                let end = self.pos;
                self.pos += if multiline { 3 } else { 1 };
                return self.push(Tok::TextEnd, end);
            }
            match rest.as_bytes()[0] {
                b'\n' => {
                    self.push_text(text, from);
                    self.push(Tok::TextEnd, self.pos);
                    let hint =
                        "a string ends on its line; use \\n, or three backticks for a multiline string";
                    return self.error(start, self.pos, "this string is never closed", Some(hint));
                }
                b'\\' => {
                    let Some(c) = rest[1..].chars().next() else {
                        self.pos += 1;
                        continue;
                    };
                    text.push(match c {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        other => other,
                    });
                    self.pos += 1 + c.len_utf8();
                }
                other => {
                    text.push(char::from(other));
                    self.pos += 1;
                }
            }
        }
    }

    fn push_text(&mut self, text: String, start: usize) {
        if !text.is_empty() {
            self.push(Tok::Text(Arc::from(text)), start);
        }
    }
}
