//! The library: which functions and methods exist, and how many arguments they take. What they do is in the modules
//! below; those that call back into the script are tasks of the machine.

pub(crate) mod agents;
pub(crate) mod confidence;
pub(crate) mod lists;
pub(crate) mod votes;

use crate::Profile;
use crate::diagnostic::{Raise, Raised, closest};
use crate::value::{Object, Val};
use crate::vm::bad_argument;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Global,
    /// Additions of the `pattern` profile.
    Extra,
    Array,
    ExtraArray,
    String,
    Console,
    Promise,
    /// Reached through another function only.
    Hidden,
}

const MANY: usize = usize::MAX;

macro_rules! natives {
    ($($name:ident $text:literal $owner:ident $least:tt $most:tt)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Native { $($name),* }
        const ALL: &[(Native, &str, Owner, usize, usize)] =
            &[$((Native::$name, $text, Owner::$owner, $least, $most)),*];
    };
}

// Methods count their receiver as the first argument, functions with some arguments given count those.
natives! {
    Map "map" Global 2 2
    Filter "filter" Global 2 2
    Reduce "reduce" Global 2 3
    Max "max" Global 1 MANY
    Min "min" Global 1 MANY
    Print "print" Global 0 MANY
    Confidence "confidence" Global 1 1
    ConfidenceOf "confidence" Hidden 2 2
    Threshold "threshold" Global 1 1
    ThresholdOf "threshold" Hidden 2 2
    Consensus "consensus" Global 1 2
    Aggregate "aggregate" Global 1 2
    SortBy "sortBy" Global 1 2
    SortByOf "sortBy" Hidden 3 3
    GroupBy "groupBy" Global 1 1
    GroupByOf "groupBy" Hidden 2 2
    Llm "llm" Global 1 2
    StreamLlm "stream_llm" Global 1 2
    StreamNext "next" Hidden 2 2
    StreamCancel "cancel" Hidden 2 2
    StreamResult "result" Hidden 2 2
    Delay "delay" Global 1 1
    Sleep "sleep" Global 1 1
    Debounce "debounce" Global 1 1
    DebounceOf "debounce" Hidden 2 2
    DebounceCall "debounce" Hidden 2 MANY
    Deferred "call" Hidden 1 MANY
    Log "log" Console 0 MANY
    Warn "warn" Console 0 MANY
    Error "error" Console 0 MANY
    Debug "debug" Console 0 MANY
    Resolve "Promise.resolve" Promise 1 1
    Reject "Promise.reject" Promise 1 1
    All "Promise.all" Promise 1 1
    ArrayMap "map" Array 2 2
    ArrayFilter "filter" Array 2 2
    ArrayReduce "reduce" Array 2 3
    Push "push" Array 2 MANY
    ForEach "forEach" Array 2 2
    Join "join" Array 1 2
    Slice "slice" ExtraArray 1 3
    Includes "includes" ExtraArray 2 2
    Find "find" ExtraArray 2 2
    Some "some" ExtraArray 2 2
    Every "every" ExtraArray 2 2
    Concat "concat" ExtraArray 1 MANY
    IndexOf "indexOf" ExtraArray 2 2
    Sort "sort" ExtraArray 1 2
    TextIncludes "includes" String 2 2
    Split "split" String 1 2
    Trim "trim" String 1 1
    ToLowerCase "toLowerCase" String 1 1
    ToUpperCase "toUpperCase" String 1 1
    Average "average" Extra 1 1
    WeightedAverage "weightedAverage" Extra 1 2
    MajorityVote "majorityVote" Extra 1 2
    Synthesize "synthesize" Extra 1 1
    Agreement "agreement" Extra 1 1
    Range "range" Extra 1 3
    Parallel "parallel" Extra 1 2
    Race "race" Extra 1 1
    ExecutePattern "executePattern" Extra 1 2
    Now "now" Extra 0 0
    Random "random" Extra 0 0
    Analyze "analyze" Hidden 1 4
}

impl Native {
    fn entry(self) -> &'static (Native, &'static str, Owner, usize, usize) {
        &ALL[self as usize]
    }

    pub(crate) fn name(self) -> &'static str {
        self.entry().1
    }

    pub(crate) fn arity(self) -> (usize, usize) {
        (self.entry().3, self.entry().4)
    }

    /// Whether it takes pending arguments as they are.
    pub(crate) fn lazy(self) -> bool {
        use Native::*;
        matches!(
            self,
            Map | Filter
                | Reduce
                | ArrayMap
                | ArrayFilter
                | ArrayReduce
                | ForEach
                | Find
                | Some
                | Every
                | Push
                | Concat
                | Slice
                | Resolve
                | Parallel
                | Race
                | StreamNext
                | StreamCancel
                | StreamResult
                | DebounceCall
                | Deferred
        )
    }

    /// Whether it looks at more than the elements of its arguments.
    pub(crate) fn deep(self) -> bool {
        use Native::*;
        matches!(
            self,
            Join | Includes
                | IndexOf
                | Sort
                | SortByOf
                | GroupByOf
                | MajorityVote
                | Synthesize
                | Agreement
                | TextIncludes
                | Split
                | Trim
                | ToLowerCase
                | ToUpperCase
        )
    }

    pub(crate) fn method(name: &str, owner: Owner, profile: Profile) -> Option<Native> {
        let extra = profile == Profile::Pattern;
        let found = ALL.iter().find(|(_, text, o, ..)| {
            *text == name
                && match owner {
                    Owner::Array => *o == Owner::Array || extra && *o == Owner::ExtraArray,
                    Owner::String => extra && *o == Owner::String,
                    _ => *o == owner,
                }
        });
        found.map(|(native, ..)| *native)
    }

    /// Names of the methods of a kind of value, for suggestions.
    pub(crate) fn methods(owner: Owner, profile: Profile) -> impl Iterator<Item = &'static str> {
        ALL.iter()
            .map(|(_, text, ..)| *text)
            .filter(move |text| Native::method(text, owner, profile).is_some())
    }
}

/// The built-in of this name.
pub(crate) fn global(name: &str, profile: Profile) -> Option<Val> {
    let members = |owner: Owner| {
        let own = ALL.iter().filter(move |(_, _, o, ..)| *o == owner);
        let object: Object = own
            .map(|(native, text, ..)| {
                (Arc::from(text.rsplit('.').next().unwrap_or(text)), Val::Native(*native))
            })
            .collect();
        Val::Obj(Arc::new(object))
    };
    match name {
        "console" => Some(members(Owner::Console)),
        "Promise" => Some(members(Owner::Promise)),
        _ => {
            let found = ALL.iter().find(|(_, text, owner, ..)| {
                *text == name
                    && (*owner == Owner::Global || profile == Profile::Pattern && *owner == Owner::Extra)
            });
            found.map(|(native, ..)| Val::Native(*native))
        }
    }
}

/// Names that exist without being declared.
pub(crate) fn global_names(profile: Profile) -> impl Iterator<Item = &'static str> {
    let own = ALL.iter().map(|(_, text, ..)| *text).filter(move |text| global(text, profile).is_some());
    own.chain(["console", "Promise"])
}

/// Names that the machine defines for every run that has agents.
pub(crate) const HOST_NAMES: [&str; 6] =
    ["input", "agents", "agentList", "agentCount", "agentResults", "successfulResults"];

/// Arguments that the author does not write: the receiver of a method, what was given before.
pub(crate) fn hidden_args(native: Native) -> usize {
    use Native::*;
    match native {
        StreamNext | StreamCancel | StreamResult => 2,
        ConfidenceOf | ThresholdOf | GroupByOf | DebounceOf | Deferred | Analyze => 1,
        SortByOf | DebounceCall => 2,
        _ => usize::from(matches!(native.entry().2, Owner::Array | Owner::ExtraArray | Owner::String)),
    }
}

/// Built-ins that only look at their arguments, which are settled.
pub(crate) fn pure(native: Native, args: &[Val]) -> Raised<Val> {
    use Native::*;
    match native {
        Max | Min => lists::extreme(native, args),
        Confidence | Threshold | ConfidenceOf | ThresholdOf => confidence::graded(native, args),
        Consensus => confidence::consensus(args),
        SortBy | SortByOf | GroupBy | GroupByOf | Sort => lists::ordered(native, args),
        Debounce | DebounceOf => agents::debounce(native, args),
        Resolve => Val::promise(crate::value::Promise::Fulfilled(first(args))),
        Reject => Val::promise(crate::value::Promise::Rejected(first(args))),
        Join | Slice | Includes | Concat | IndexOf => lists::array_method(native, args),
        TextIncludes | Split | Trim | ToLowerCase | ToUpperCase => lists::text_method(native, args),
        Average | WeightedAverage => votes::average(native, args),
        MajorityVote => votes::majority(args),
        Synthesize => votes::synthesize(args),
        Agreement => votes::agreement(args),
        Range => lists::range(args),
        other => unreachable!("{} is not pure", other.name()),
    }
}

fn first(args: &[Val]) -> Val {
    args.first().cloned().unwrap_or(Val::Null)
}

/// What to do instead of something that other languages have.
pub(crate) fn foreign(name: &str) -> Option<&'static str> {
    Some(match name {
        "throw" => "there is no `throw`: return a value with a low confidence, or let an operation fail",
        "new" | "class" | "this" => "there are no classes: build objects with `{key: value}`",
        "var" => "declare variables with `let` or `const`",
        "switch" | "case" => "there is no `switch`: use `match value { pattern => result }`",
        "Math" => "there is no `Math`: `max`, `min`, `average`, `random` and the operators are built in",
        "JSON" | "Object" | "Array" | "String" | "Number" | "Date" => {
            "JavaScript's classes are not there; `now()` gives the time"
        }
        "elif" | "elseif" => "write `else if (condition)`",
        "not" => "write `!condition`",
        "and" => "write `&&`",
        "or" => "write `||`",
        _ if name.strip_prefix('e').is_some_and(|n| n.parse::<u16>().is_ok()) => {
            "a number has no exponent: write its digits"
        }
        _ => return None,
    })
}

/// When `parallel` is done.
pub(crate) const MODES: [&str; 3] = ["all", "first", "quorum"];

/// The options that a function takes, as an object behind its first argument; of `analyze` behind its data.
pub(crate) fn option_names(native: Native) -> &'static [&'static str] {
    match native {
        Native::Parallel => &["mode", "n", "maxConcurrency"],
        Native::Analyze => &["timeout", "timeoutMs", "context"],
        Native::MajorityVote => &["weighted", "key"],
        Native::Consensus => &["strategy"],
        Native::Aggregate => &["strategy", "combine"],
        Native::Llm | Native::StreamLlm => agents::LLM_OPTIONS,
        _ => &[],
    }
}

/// The options of a call; none if they are null or absent. An unknown one is an error, whatever its value.
pub(crate) fn options(native: Native, given: Option<&Val>) -> Raised<Option<&Object>> {
    let options = match given.map(Val::plain) {
        None | Some(Val::Null) => return Ok(None),
        Some(Val::Obj(options)) => options,
        Some(other) => return Err(bad_argument(native, "options as an object", other)),
    };
    match options.entries().find_map(|(key, _)| unknown_option(native, key)) {
        Some(raise) => Err(raise),
        None => Ok(Some(options)),
    }
}

pub(crate) fn unknown_option(native: Native, key: &str) -> Option<Box<Raise>> {
    let known = option_names(native);
    if known.contains(&key) {
        return None;
    }
    let hint = match closest(key, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("options are {}", known.join(", ")),
    };
    Some(Raise::new("bad_argument", format!("`{}` has no option `{key}`", native.name())).hint(hint))
}
