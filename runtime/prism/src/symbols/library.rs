//! The built-in names, with what an editor says about them.

use crate::Profile;
use crate::builtins::{HOST_NAMES, Native, Owner, global_names};
use crate::lexer::Word;

/// A built-in name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: &'static str,
    pub signature: &'static str,
    /// One sentence; empty if the signature says it all.
    pub summary: &'static str,
}

/// The functions and values that exist without being declared.
pub fn entries(profile: Profile) -> impl Iterator<Item = Entry> {
    let hosts = HOST_NAMES.into_iter();
    global_names(profile).chain(hosts).map(|name| documented(name, GLOBALS))
}

/// The function or value of this name.
pub fn entry(name: &str, profile: Profile) -> Option<Entry> {
    entries(profile).find(|entry| entry.name == name)
}

/// The methods of arrays and strings.
pub fn methods(profile: Profile) -> impl Iterator<Item = Entry> {
    let owners = [Owner::Array, Owner::String].into_iter();
    let names = owners.flat_map(move |owner| Native::methods(owner, profile)).chain(["length", "analyze"]);
    let mut seen = std::collections::HashSet::new();
    names.filter(move |name| seen.insert(*name)).map(|name| documented(name, METHODS))
}

/// The words that cannot be names.
pub fn keywords() -> impl Iterator<Item = &'static str> {
    use Word::*;
    let words = [
        If, Else, Uncertain, High, Medium, Low, Default, In, Context, Agents, Function, Return, Let, Const,
        Match, True, False, Null, For, While, Do, Break, Continue, Typeof, Instanceof, Import, Export, From,
        As, Async, Await, Try, Catch, Finally,
    ];
    words.into_iter().map(Word::text)
}

fn documented(name: &'static str, table: &[(&'static str, &'static str, &'static str)]) -> Entry {
    let found = table.iter().find(|(known, ..)| *known == name);
    let (signature, summary) = found.map_or((name, ""), |(_, signature, summary)| (*signature, *summary));
    Entry { name, signature, summary }
}

const GLOBALS: &[(&str, &str, &str)] = &[
    ("map", "map(array, fn)", "A new array of what `fn` gives for each element."),
    ("filter", "filter(array, fn)", "The elements for which `fn` gives something truthy."),
    (
        "reduce",
        "reduce(array, fn, initial?)",
        "Folds the array from the left with `fn(accumulator, element)`.",
    ),
    ("max", "max(number…)", "The largest, with its own confidence."),
    ("min", "min(number…)", "The smallest, with its own confidence."),
    ("print", "print(value…)", "Prints a line; a confident value is shown as `value ~> 0.85`."),
    ("console", "console", "`log`, `warn`, `error` and `debug`, which print."),
    ("confidence", "confidence(k)(fn)", "`fn` with every result at confidence `k`."),
    (
        "threshold",
        "threshold(k)(array)",
        "The elements whose confidence is at least `k`, and all plain ones.",
    ),
    (
        "consensus",
        "consensus(array, { strategy: \"max\"|\"min\" }?)",
        "The element with the highest confidence.",
    ),
    ("aggregate", "aggregate(array, { strategy, combine }?)", "The array, at the combined confidence."),
    (
        "sortBy",
        "sortBy(key, \"asc\"|\"desc\"?)(array)",
        "The array sorted by a property, at confidence 0.95.",
    ),
    ("groupBy", "groupBy(key|fn)(array)", "An object of arrays."),
    ("llm", "llm(prompt, options?)", "What a language model says, with its confidence."),
    ("stream_llm", "stream_llm(prompt, options?)", "The same in pieces: `{ next, cancel, result }`."),
    (
        "Promise",
        "Promise",
        "`resolve`, `reject` and `all`; calls of async functions in the list of `all` overlap.",
    ),
    ("delay", "delay(ms)", "A promise that is kept after so many milliseconds."),
    ("sleep", "sleep(ms)", "A promise that is kept after so many milliseconds."),
    ("debounce", "debounce(ms)(fn)", "`fn`, called after the pause."),
    ("average", "average(array)", "The mean of numbers."),
    ("weightedAverage", "weightedAverage(array, weights?)", "The mean, weighted; by confidence if not told."),
    ("majorityVote", "majorityVote(array, options?)", "The value that most elements have."),
    ("synthesize", "synthesize(array)", "One value of many, with their joint confidence."),
    ("agreement", "agreement(array)", "The share of the most frequent value, 0 to 1."),
    ("range", "range(end) · range(start, end, step?)", "An array of numbers, the end not included."),
    (
        "parallel",
        "parallel(calls, { mode, n, maxConcurrency }?)",
        "All results, or the first; functions run side by side, each in a branch of its own.",
    ),
    ("race", "race(calls)", "The result that arrives first; the other branches are cancelled."),
    ("executePattern", "executePattern(name, input?)", "The result of another pattern, with its confidence."),
    ("now", "now()", "Milliseconds since 1970."),
    ("random", "random()", "A number from 0 up to 1."),
    ("input", "input", "What the run was started with."),
    ("agents", "agents", "The agents that the run may ask."),
    ("agentList", "agentList", "The agents that the run may ask."),
    ("agentCount", "agentCount", "How many agents there are."),
    ("agentResults", "agentResults", "Every agent's answer to the task; reading it asks them all."),
    ("successfulResults", "successfulResults", "The answers of the agents that did not fail."),
];

const METHODS: &[(&str, &str, &str)] = &[
    ("length", "length", "How many elements, or UTF-16 code units."),
    ("map", "map(fn)", "A new array of what `fn` gives for each element; calls of an async `fn` overlap."),
    ("filter", "filter(fn)", "The elements for which `fn` gives something truthy."),
    ("reduce", "reduce(fn, initial?)", "Folds the array from the left."),
    ("push", "push(value…)", "A new array with these at its end; the old one stays as it is."),
    ("forEach", "forEach(fn)", "Calls `fn` with each element."),
    ("join", "join(separator?)", "The elements as one text, a comma in between if not told."),
    ("slice", "slice(start?, end?)", "A part of the array."),
    ("includes", "includes(value)", "Whether it is in there."),
    ("find", "find(fn)", "The first element for which `fn` gives something truthy, or null."),
    ("some", "some(fn)", "Whether `fn` gives something truthy for one."),
    ("every", "every(fn)", "Whether `fn` gives something truthy for all."),
    ("concat", "concat(value…)", "A new array with these behind it."),
    ("indexOf", "indexOf(value)", "Its first place, or -1."),
    ("sort", "sort(fn?)", "A new array in order."),
    ("split", "split(separator?)", "The parts of a text."),
    ("trim", "trim()", "The text without space at its ends."),
    ("toLowerCase", "toLowerCase()", ""),
    ("toUpperCase", "toUpperCase()", ""),
    ("analyze", "analyze(task, data?, options?)", "Asks this agent; its answer has its confidence."),
];
