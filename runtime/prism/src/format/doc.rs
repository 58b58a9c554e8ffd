//! Layouts that leave the choice of line breaks open, and the printer that makes it (after Wadler's "A prettier
//! printer" and the command stack of Prettier).

/// Columns to stay within, where that is possible.
const WIDTH: usize = 110;
const INDENT: usize = 2;

pub(super) enum Doc<'a> {
    Text(&'a str),
    Space,
    /// A space, or a line break where the group around it is broken.
    Line,
    /// Nothing, or a line break where the group around it is broken.
    Soft,
    Hard,
    /// One empty line.
    Blank,
    /// A comment on a line of its own, or (false) after what stands before it.
    Comment(&'a str, bool),
    All(Vec<Doc<'a>>),
    Indent(Box<Doc<'a>>),
    /// Indented if the group around it is broken.
    Hang(Box<Doc<'a>>),
    /// On one line if it fits and is not to be broken in any case.
    Group(Box<Doc<'a>>, bool),
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Flat,
    Broken,
}

type Command<'d, 'a> = (usize, Mode, &'d Doc<'a>);

#[derive(Default)]
struct Printer {
    out: String,
    column: usize,
    /// Line breaks to write before the next text; trailing blanks are never written that way.
    breaks: usize,
}

pub(super) fn print(doc: &Doc<'_>) -> String {
    let mut printer = Printer::default();
    let mut stack = vec![(0, Mode::Broken, doc)];
    while let Some((indent, mode, doc)) = stack.pop() {
        match doc {
            Doc::Text(text) => printer.text(text, indent),
            Doc::Space => printer.space(),
            Doc::Line if mode == Mode::Flat => printer.space(),
            Doc::Soft if mode == Mode::Flat => {}
            Doc::Line | Doc::Soft | Doc::Hard => printer.breaks = printer.breaks.max(1),
            Doc::Blank => printer.breaks = 2,
            Doc::Comment(text, own_line) => printer.comment(text, *own_line, indent),
            Doc::All(docs) => stack.extend(docs.iter().rev().map(|doc| (indent, mode, doc))),
            Doc::Hang(doc) if mode == Mode::Flat => stack.push((indent, mode, doc)),
            Doc::Indent(doc) | Doc::Hang(doc) => stack.push((indent + INDENT, mode, doc)),
            Doc::Group(doc, broken) => {
                let column = if printer.breaks > 0 { indent } else { printer.column };
                let flat = !broken && fits(doc, &stack, WIDTH.saturating_sub(column));
                stack.push((indent, if flat { Mode::Flat } else { Mode::Broken }, doc));
            }
        }
    }
    printer.out.truncate(printer.out.trim_end_matches(' ').len());
    if !printer.out.is_empty() {
        printer.out.push('\n');
    }
    printer.out
}

/// Whether the text up to the next line break has room, if this is laid out flat.
fn fits<'d, 'a>(doc: &'d Doc<'a>, rest: &[Command<'d, 'a>], room: usize) -> bool {
    let mut room = room;
    let mut ahead = vec![(Mode::Flat, doc)];
    let mut rest = rest.iter().rev();
    loop {
        let (mode, doc) = match ahead.pop() {
            Some(next) => next,
            None => match rest.next() {
                Some((_, mode, doc)) => (*mode, *doc),
                None => return true,
            },
        };
        let width = match doc {
            Doc::Text(text) => match text.find('\n') {
                Some(end) => return text[..end].chars().count() <= room,
                None => text.chars().count(),
            },
            Doc::Space => 1,
            Doc::Line if mode == Mode::Flat => 1,
            Doc::Soft if mode == Mode::Flat => 0,
            // Comments may be longer than the line; moving code does not make them shorter.
            Doc::Line | Doc::Soft | Doc::Hard | Doc::Blank | Doc::Comment(..) => return true,
            Doc::All(docs) => {
                ahead.extend(docs.iter().rev().map(|doc| (mode, doc)));
                0
            }
            Doc::Indent(doc) | Doc::Hang(doc) => {
                ahead.push((mode, doc));
                0
            }
            Doc::Group(doc, broken) => {
                // What follows the group in question may break its own lines, and does so before this one.
                ahead.push((if *broken { Mode::Broken } else { mode }, doc));
                0
            }
        };
        match room.checked_sub(width) {
            Some(left) => room = left,
            None => return false,
        }
    }
}

impl Printer {
    fn flush(&mut self, indent: usize) {
        if self.breaks == 0 {
            return;
        }
        while self.out.ends_with(' ') {
            self.out.pop();
        }
        if !self.out.is_empty() {
            self.out.extend(std::iter::repeat_n('\n', self.breaks));
        }
        self.out.extend(std::iter::repeat_n(' ', indent));
        (self.column, self.breaks) = (indent, 0);
    }

    fn text(&mut self, text: &str, indent: usize) {
        if text.is_empty() {
            return;
        }
        self.flush(indent);
        self.out.push_str(text);
        self.column = match text.rfind('\n') {
            Some(end) => text[end + 1..].chars().count(),
            None => self.column + text.chars().count(),
        };
    }

    fn space(&mut self) {
        if self.breaks == 0 && !self.out.is_empty() && !self.out.ends_with(' ') {
            self.out.push(' ');
            self.column += 1;
        }
    }

    fn comment(&mut self, text: &str, own_line: bool, indent: usize) {
        if own_line && !self.out.is_empty() {
            self.breaks = self.breaks.max(1);
        }
        self.space();
        let mut lines = text.lines();
        self.text(lines.next().unwrap_or("").trim_end(), indent);
        let starred = text.lines().skip(1).all(|line| line.trim_start().starts_with('*'));
        for line in lines {
            // A column of stars moves with its comment; any other text stays where its author put it.
            let (indent, line) = if starred { (indent + 1, line.trim()) } else { (0, line.trim_end()) };
            self.out.push('\n');
            if !line.is_empty() {
                self.out.extend(std::iter::repeat_n(' ', indent));
                self.out.push_str(line);
            }
        }
        if own_line || text.starts_with("//") {
            self.breaks = self.breaks.max(1);
        } else {
            self.column = self.out.rfind('\n').map_or(self.out.len(), |end| self.out.len() - end - 1);
            self.space();
        }
    }
}
