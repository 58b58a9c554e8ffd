//! What has been typed so far is one program, and every entry makes a longer one. It is run from its start with the
//! outcomes that earlier entries were given, so nothing is performed or printed twice: what a replay of a journal is
//! for a pattern's run.

use parallax_prism::{
    CompileOptions, Diagnostic, EffectId, Host, Outcome, Profile, Program, Value, symbols::Outline,
};

use super::returned;
use crate::commands::prism::{
    perform::{Performance, Trouble},
    run::beyond,
};

const NAME: &str = "repl";
/// Ends the entry before, whatever the next one starts with.
const SEPARATOR: &str = "\n;\n";
/// A value that no entry gives.
const END: &str = "\u{1}the end of the session's program\u{1}";

#[derive(Default)]
pub(super) struct Session {
    program: String,
    journal: Vec<(EffectId, Outcome)>,
    /// Lines printed by earlier entries.
    shown: usize,
}

impl Session {
    pub(super) fn program(&self) -> &str {
        &self.program
    }

    /// Runs an entry. One that fails leaves no trace, except for what it has printed.
    pub(super) async fn enter(&mut self, entry: &str, show: impl FnMut(&str)) -> Result<Value, String> {
        // Without the end of its last line, what is missing at the end is missing in a line that can be shown.
        let entry = reassigning(entry.trim_end());
        let (value, mut longer) = self.play(&entry, show).await?;
        if entry.contains("return") && !longer.goes_on().await? {
            // It has left the program, and all that is typed from now on would stand behind the way out.
            longer.program = self.before(&returned::enclosed(&entry));
            if !longer.goes_on().await? {
                return Ok(value);
            }
        }
        *self = longer;
        Ok(value)
    }

    /// The program with this at its end.
    fn before(&self, entry: &str) -> String {
        if self.program.is_empty() { entry.to_owned() } else { format!("{}{SEPARATOR}{entry}", self.program) }
    }

    /// Whether an entry would be reached that came next. Nothing is performed: the journal answers all.
    async fn goes_on(&self) -> Result<bool, String> {
        match self.play(&format!("\"{END}\""), |_| ()).await {
            Ok((value, _)) => Ok(value.as_str() == Some(END)),
            Err(message) if message == INTERRUPTED => Err(message),
            Err(_) => Ok(false),
        }
    }

    /// The value of an entry, and the session as it is behind it.
    async fn play(&self, entry: &str, show: impl FnMut(&str)) -> Result<(Value, Self), String> {
        let program = self.before(entry);
        let before = program.len() - entry.len();
        let options = CompileOptions { name: NAME.to_owned(), profile: Profile::Pattern, modules: None };
        let shown = |diagnostic: &Diagnostic| placed(diagnostic, &program, before);
        let compiled = Program::compile(&program, &options)
            .map_err(|wrong| wrong.iter().map(shown).collect::<Vec<_>>().join("\n"))?;
        let run = compiled.start(Host::default());
        let interrupt = run.interrupt();
        let ctrl_c = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupt.interrupt();
            }
        });
        let mut performance = Performance::replay(run, self.journal.clone(), self.shown);
        let ended = tokio::select! {
            ended = performance.finish(show) => Some(ended),
            // While it sleeps; while it computes, the task above stops it.
            _ = tokio::signal::ctrl_c() => None,
        };
        ctrl_c.abort();
        match ended {
            Some(Ok(value)) => {
                let shown = performance.shown();
                Ok((value, Self { program, journal: performance.journal, shown }))
            }
            Some(Err(Trouble::Fault(fault))) if fault.code == "interrupted" => Err(INTERRUPTED.to_owned()),
            Some(Err(Trouble::Fault(fault))) => Err(shown(&fault)),
            Some(Err(Trouble::Beyond { at, what })) => Err(shown(&beyond(at, &what, &compiled))),
            Some(Err(Trouble::Changed)) => Err(CHANGED.to_owned()),
            None => Err(INTERRUPTED.to_owned()),
        }
    }
}

const INTERRUPTED: &str = "interrupted";
const CHANGED: &str = "this changes what earlier entries have done, for instance by a function with the name of \
                       one that they call; choose another name, or forget them with :reset";

/// `let x = 1` as `x = 1`: a name may be declared again in a later entry, and may be that of a built-in which an
/// earlier entry has used.
fn reassigning(entry: &str) -> String {
    let mut text = entry.to_owned();
    for span in Outline::of(entry).lets {
        let (start, end) = (span.start as usize, span.end as usize);
        if text.get(start..end) == Some("let") {
            text.replace_range(start..end, "   ");
        }
    }
    text
}

/// A diagnostic with the lines of its own entry, as if there were nothing before.
fn placed(diagnostic: &Diagnostic, program: &str, before: usize) -> String {
    let lines = program[..before].matches('\n').count();
    let Ok(lines) = u32::try_from(lines) else { return diagnostic.to_string() };
    let start = u32::try_from(before).unwrap_or(u32::MAX);
    if diagnostic.span.start < start {
        // An earlier entry that fails only now, for instance in a function that this one calls.
        return diagnostic.render(program).trim_end().to_owned();
    }
    let mut moved = diagnostic.clone();
    moved.line = moved.line.saturating_sub(lines).max(1);
    (moved.span.start, moved.span.end) = (moved.span.start - start, moved.span.end.saturating_sub(start));
    moved.related.retain(|related| related.span.start >= start);
    for related in &mut moved.related {
        related.line = related.line.saturating_sub(lines).max(1);
        (related.span.start, related.span.end) =
            (related.span.start - start, related.span.end.saturating_sub(start));
    }
    moved.render(&program[before..]).trim_end().to_owned()
}
