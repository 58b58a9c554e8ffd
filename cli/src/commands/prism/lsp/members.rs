//! What may stand behind a dot.

use std::collections::BTreeSet;

use parallax_prism::{
    CheckOptions, CompileOptions, Profile, Span, check,
    symbols::{self, Entry},
};
use serde_json::{Value as Json, json};

use super::answers::{METHOD, PROPERTY, of_entry};

/// What an agent has, beside the method `analyze`.
const AGENT: [(&str, &str, &str); 6] = [
    ("id", "id: string", "What tells it from all others."),
    ("name", "name: string", "What people call it."),
    ("capabilities", "capabilities: array", "What it says that it can do."),
    ("expertise", "expertise: number", "How much it says that it knows of its field, 0 to 1."),
    ("confidence", "confidence: number", "How far its answers can be trusted, 0 to 1; null if not known."),
    ("labels", "labels: object", "Texts by which agents are told apart."),
];

/// Completions of a member; `typed` is where its name stands as far as it is written.
pub(super) fn completions(source: &str, typed: Span) -> Json {
    let methods: Vec<Entry> = symbols::methods(Profile::Pattern).collect();
    if of_agent(source, typed) {
        let own =
            AGENT.map(|(name, signature, summary)| of_entry(&Entry { name, signature, summary }, PROPERTY));
        let analyze = methods.iter().filter(|entry| entry.name == "analyze");
        return own.into_iter().chain(analyze.map(|entry| of_entry(entry, METHOD))).collect();
    }
    let known: BTreeSet<&str> = methods.iter().map(|entry| entry.name).collect();
    let items = methods.iter().map(|entry| of_entry(entry, METHOD));
    let own = properties(source, typed).into_iter().filter(|name| !known.contains(name));
    items.chain(own.map(|name| json!({"label": name, "kind": PROPERTY}))).collect()
}

/// Whether an agent is certainly what stands before the dot. The checker knows, and says so of a member that no value
/// has, in the same words for each agent.
fn of_agent(source: &str, typed: Span) -> bool {
    const NOBODY_HAS: &str = "nobody_has_this()";
    let said = |program: &str, at: usize| {
        let options = CompileOptions { profile: Profile::Pattern, ..CompileOptions::default() };
        let found = check(program, &options, &CheckOptions::default());
        let missing = |found: &&parallax_prism::Diagnostic| {
            let (start, end) = (found.span.start as usize, found.span.end as usize);
            found.code == "missing_property" && start <= at && at < end
        };
        found.iter().find(missing).map(|found| found.message.clone())
    };
    let (start, end) = (typed.start as usize, typed.end as usize);
    let (Some(before), Some(after)) = (source.get(..start), source.get(end..)) else { return false };
    let here = said(&format!("{before}{NOBODY_HAS}{after}"), start);
    let sample = "agents[0].";
    here.is_some() && here == said(&format!("{sample}{NOBODY_HAS}"), sample.len())
}

/// Names that stand after a dot or before a colon elsewhere in the source: likely properties.
fn properties(source: &str, typed: Span) -> BTreeSet<&str> {
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    let mut rest = source;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let at = source.len() - rest.len() + start;
        let end = rest[start..].find(|c| !named(c)).map_or(rest.len(), |length| start + length);
        let (before, name, after) = (&source[..at], &rest[start..end], &rest[end..]);
        let property = before.ends_with('.') || after.starts_with(':');
        if property && at != typed.start as usize {
            found.insert(name);
        }
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_prism::{AgentInfo, Host, Program, Step};

    #[test]
    fn an_agent_has_what_is_offered() {
        let program = Program::compile("agents[0]", &CompileOptions::default()).unwrap();
        let host = Host { agents: vec![AgentInfo::default()], ..Host::default() };
        let Step::Done(agent) = program.start(host).step(Vec::new()) else { panic!("it asks for nothing") };
        let has: BTreeSet<&str> = agent.entries().map(|(name, _)| name).collect();
        let offered = AGENT.iter().map(|(name, ..)| *name).chain(["analyze"]);
        assert_eq!(has, offered.collect());
    }
}
