//! Entries from a person at a terminal.

use std::{collections::BTreeSet, path::Path};

use parallax_prism::{
    Profile,
    symbols::{self, Outline},
};
use rustyline::{
    Context, Editor, Helper, Result as Edited,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::DefaultHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use super::{Source, unfinished};
use crate::exit::{Exit, Result};

/// A terminal with a history and completion.
pub(super) struct Lines(Editor<Assistant, DefaultHistory>);

impl Lines {
    pub(super) fn open(history: &Path) -> Edited<Self> {
        let mut editor = Editor::new()?;
        editor.set_helper(Some(Assistant::default()));
        // There is none before the first session.
        editor.load_history(history).ok();
        Ok(Self(editor))
    }

    /// A history that cannot be kept is no reason to complain on the way out.
    pub(super) fn save(&mut self, history: &Path) {
        if let Some(folder) = history.parent() {
            std::fs::create_dir_all(folder).ok();
        }
        self.0.save_history(history).ok();
    }
}

impl Source for Lines {
    fn next(&mut self) -> Result<Option<String>> {
        loop {
            match self.0.readline("prism> ") {
                Ok(entry) => {
                    self.0.add_history_entry(entry.as_str()).ok();
                    return Ok(Some(entry));
                }
                // Ctrl-C gives up an entry, not the session.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(None),
                Err(e) => return Err(Exit::failed(format!("the terminal cannot be read: {e}"))),
            }
        }
    }

    fn learn(&mut self, program: &str) {
        if let Some(assistant) = self.0.helper_mut() {
            assistant.own = Outline::of(program).symbols.into_iter().map(|symbol| symbol.name).collect();
        }
    }
}

/// Knows when an entry goes on, and which names there are.
#[derive(Default)]
struct Assistant {
    own: BTreeSet<String>,
}

impl Helper for Assistant {}
impl Highlighter for Assistant {}

impl Hinter for Assistant {
    type Hint = String;
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> Edited<ValidationResult> {
        Ok(if unfinished(context.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for Assistant {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> Edited<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or_default();
        let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let start = typed.len() - typed.chars().rev().take_while(|c| named(*c)).count();
        let (before, prefix) = typed.split_at(start);
        let names: BTreeSet<String> = if before.ends_with('.') {
            symbols::methods(Profile::Pattern).map(|entry| entry.name.to_owned()).collect()
        } else if prefix.is_empty() {
            BTreeSet::new()
        } else {
            let library = symbols::entries(Profile::Pattern).map(|entry| entry.name);
            let words = library.chain(symbols::keywords()).map(str::to_owned);
            words.chain(self.own.iter().cloned()).collect()
        };
        Ok((start, names.into_iter().filter(|name| name.starts_with(prefix)).collect()))
    }
}
