//! `parallax prism repl`: one program that grows by what is typed.

mod editor;
mod returned;
mod session;

use std::{io::BufRead, io::IsTerminal, path::Path};

use parallax_prism::{CompileOptions, Diagnostic, Program, symbols};

use self::{editor::Lines, session::Session};
use super::{print, run::result};
use crate::exit::{Exit, Result};

const HELP: &str = "\
Type statements or expressions; what is open or lacks its end goes on in the next line.
  :reset  forget everything
  :help   this
  :quit   leave, as does Ctrl-D";

/// Reads, runs and prints until the end of the input. `history` is the file that keeps what was typed.
pub(super) async fn run(history: &Path) -> Result {
    if std::io::stdin().is_terminal() {
        let mut lines =
            Lines::open(history).map_err(|e| Exit::failed(format!("the terminal cannot be used: {e}")))?;
        print(format_args!("Prism {}; :help says more", env!("CARGO_PKG_VERSION")));
        let outcome = talk(&mut lines).await;
        lines.save(history);
        return outcome;
    }
    talk(&mut Piped).await
}

/// Where entries come from.
trait Source {
    /// One more entry, complete as far as one can tell; None when there are no more.
    fn next(&mut self) -> Result<Option<String>>;
    /// Names that may be completed from now on.
    fn learn(&mut self, program: &str) {
        let _ = program;
    }
}

async fn talk(source: &mut impl Source) -> Result {
    let mut session = Session::default();
    while let Some(entry) = source.next()? {
        match entry.trim() {
            "" => {}
            ":quit" | ":q" | ":exit" => break,
            ":help" => print(HELP),
            ":reset" => session = Session::default(),
            other if other.starts_with(':') => print(format_args!("{other} is no command\n{HELP}")),
            _ => match session.enter(&entry, |line| print(line)).await {
                Ok(value) => {
                    print(result(&value));
                    source.learn(session.program());
                }
                Err(message) => print(message),
            },
        }
    }
    Ok(())
}

/// Whether an entry goes on in the next line: something is open, or the language wants more where the entry ends, as
/// behind `1 +` and `let x =`.
fn unfinished(entry: &str) -> bool {
    let end = entry.trim_end().len();
    let wants_more = |wrong: Vec<Diagnostic>| {
        wrong.iter().all(|error| error.code == "syntax" && error.span.start as usize >= end)
    };
    symbols::unfinished(entry) || Program::compile(entry, &CompileOptions::default()).is_err_and(wants_more)
}

/// Entries from a file or another program.
struct Piped;

impl Source for Piped {
    fn next(&mut self) -> Result<Option<String>> {
        let mut entry = String::new();
        loop {
            let read = std::io::stdin().lock().read_line(&mut entry);
            let read = read.map_err(|e| Exit::usage(format!("standard input: {e}")))?;
            if read == 0 {
                return Ok((!entry.is_empty()).then_some(entry));
            }
            if !unfinished(&entry) {
                return Ok(Some(entry));
            }
        }
    }
}
