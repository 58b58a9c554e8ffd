//! Calls: of the program's functions, and of the library's, which call back or ask somebody.

use super::amount::{Amount, Atom};
use super::interpret::Interpreter;
use super::loops::Trips;
use super::state::{Calls, State};
use super::value::{Callable, List, Value, smaller};
use super::{Asked, Most, Reason};
use crate::builtins::Native;
use crate::compile::VarId;
use std::collections::BTreeMap;
use std::rc::Rc;

/// With whether each is spread.
pub(super) type Args<'a> = Vec<(Value<'a>, bool)>;

/// Where a call stands.
pub(super) struct Site {
    /// What a built-in goes through, as the author wrote it.
    pub(super) over: String,
    pub(super) line: u32,
}

impl<'a> Interpreter<'a> {
    pub(super) fn call(
        &mut self,
        state: &mut State<'a>,
        callee: &Value<'a>,
        args: &Args<'a>,
        site: &Site,
    ) -> Value<'a> {
        if callee.lost {
            self.unbounded(
                state,
                &format!("which function `{}` comes to cannot be told", site.over),
                site.line,
            );
            self.forget(state);
            return Value::lost();
        }
        match callee.callables.as_slice() {
            // Calling what is no function is an error.
            [] => Value::default(),
            [one] => self.invoke(state, one, args, site),
            many => {
                let entry = std::mem::replace(state, State::dead());
                let mut value = None::<Value<'a>>;
                for one in many {
                    let mut own = entry.clone();
                    let given = self.invoke(&mut own, one, args, site);
                    value = Some(value.map_or(given.clone(), |value| value.or(&given)));
                    *state = std::mem::take(state).or(own);
                }
                value.unwrap_or_default()
            }
        }
    }

    fn invoke(
        &mut self,
        state: &mut State<'a>,
        callable: &Callable<'a>,
        args: &Args<'a>,
        site: &Site,
    ) -> Value<'a> {
        match callable {
            Callable::Own(f) => self.call_own(state, f, args, site.line),
            Callable::Native(native) => self.native(state, *native, args, site),
            Callable::Partial(native, given) => {
                let mut all = vec![((**given).clone(), false)];
                all.extend(args.iter().cloned());
                self.native(state, *native, &all, site)
            }
        }
    }

    fn native(&mut self, state: &mut State<'a>, native: Native, args: &Args<'a>, site: &Site) -> Value<'a> {
        use Native as N;
        let unknown = self.unknown_length(&site.over, site.line);
        // What is spread may be any of the arguments.
        let any = args.iter().any(|(_, spread)| *spread).then(|| {
            args.iter().fold(Value::default(), |all, (value, spread)| {
                if *spread { all.or(&value.as_list(&unknown).item) } else { all.or(value) }
            })
        });
        let arg = |i: usize| match &any {
            Some(any) if args[..args.len().min(i + 1)].iter().any(|(_, spread)| *spread) => any.clone(),
            _ => args.get(i).map(|(value, _)| value.clone()).unwrap_or_default(),
        };
        let list = || arg(0).as_list(&unknown);
        let of = |list: &List<'a>, item: Value<'a>| Value::list(list.least.clone(), list.most.clone(), item);
        let some = |list: &List<'a>| Value::list(Amount::default(), list.most.clone(), list.item.clone());
        match native {
            N::Map | N::ArrayMap => {
                let list = list();
                let made = self.each(state, &list, false, &arg(1), site);
                of(&list, made)
            }
            N::Filter | N::ArrayFilter => {
                let list = list();
                self.each(state, &list, false, &arg(1), site);
                some(&list)
            }
            N::ForEach => {
                self.each(state, &list(), false, &arg(1), site);
                Value::default()
            }
            N::Find => {
                let list = list();
                self.each(state, &list, true, &arg(1), site);
                list.item
            }
            N::Some | N::Every => {
                self.each(state, &list(), true, &arg(1), site);
                Value::default()
            }
            N::GroupByOf => {
                let list = arg(1).as_list(&unknown);
                self.each(state, &list, false, &arg(0), site);
                list.item.blurred()
            }
            N::Reduce | N::ArrayReduce => {
                self.reduce(state, list(), (args.len() > 2).then(|| arg(2)), &arg(1), site)
            }
            N::Sort => {
                let list = list();
                let why = "how often `sort` compares is not counted".to_string();
                let most = Most::Unbounded(Reason { why, line: site.line });
                let pairs = List { least: Amount::default(), most, item: list.item.clone() };
                self.each(state, &pairs, false, &arg(1), site);
                of(&list, list.item.clone())
            }
            N::Push => self.extended(arg(0), &args[1..], site.line),
            N::Concat => self.joined(&arg(0), &args[1..], site.line),
            N::Slice => slice(&list(), (args.len() > 1).then(|| arg(1)), (args.len() > 2).then(|| arg(2))),
            N::SortByOf => {
                let list = arg(1).as_list(&unknown);
                of(&list, list.item.clone())
            }
            N::ThresholdOf => some(&arg(1).as_list(&unknown)),
            // What a function gives is then graded or late, and no other.
            N::ConfidenceOf | N::DebounceOf => arg(1),
            N::SortBy => partial(N::SortByOf, &arg(0)),
            N::GroupBy => partial(N::GroupByOf, &arg(0)),
            N::Threshold => partial(N::ThresholdOf, &arg(0)),
            N::Confidence => partial(N::ConfidenceOf, &arg(0)),
            N::Debounce => partial(N::DebounceOf, &arg(0)),
            N::Consensus => list().item,
            N::Aggregate => {
                let combine = self.member(&arg(1), "combine");
                let made = self.call(state, &combine, &vec![(arg(0), false)], site);
                arg(0).or(&made)
            }
            N::MajorityVote | N::Synthesize => arg(0).blurred(),
            N::Max | N::Min => extreme(native, args),
            N::Range => {
                range(&arg(0), (args.len() > 1).then(|| arg(1)), (args.len() > 2).then(|| arg(2)), site)
            }
            N::Split => {
                // A separator stands between characters at the most.
                let length = self.member(&arg(0), "length").as_number().most;
                let most =
                    length.map_or(Most::Unbounded(unknown), |most| Most::Of(most.plus(&Amount::from(1))));
                Value::list(Amount::default(), most, Value::some_text())
            }
            N::Parallel | N::Race => self.together(state, native, &list(), &arg(1), site),
            N::All => {
                let list = list();
                of(&list, list.item.clone())
            }
            N::Resolve => arg(0),
            N::Analyze => self.request(state, Asked::Agent, &arg(1), site),
            N::Llm | N::StreamLlm => {
                let response = self.request(state, Asked::Model, &arg(0), site);
                let extractor = self.member(&arg(1), "extractor");
                self.call(state, &extractor, &vec![(response.clone(), false)], site);
                response
            }
            N::ExecutePattern => self.request(state, Asked::Pattern, &arg(0), site),
            N::Sleep | N::Delay => {
                self.ask(Asked::Sleep, None, site.line);
                Value::default()
            }
            N::Now | N::Random | N::IndexOf | N::Average | N::WeightedAverage | N::Agreement => {
                Value::number(None, None)
            }
            N::Print
            | N::Log
            | N::Warn
            | N::Error
            | N::Debug
            | N::Reject
            | N::Join
            | N::Includes
            | N::TextIncludes
            | N::Trim
            | N::ToLowerCase
            | N::ToUpperCase
            | N::StreamNext
            | N::StreamCancel
            | N::StreamResult
            | N::DebounceCall
            | N::Deferred => Value::default(),
        }
    }

    fn request(&mut self, state: &mut State<'a>, asked: Asked, what: &Value<'a>, site: &Site) -> Value<'a> {
        self.ask(asked, what.text.known(), site.line);
        state.calls = state.calls.plus(&Calls::one());
        Value::data(None)
    }

    /// A function called with each element, or with those before the one that is searched.
    fn each(
        &mut self,
        state: &mut State<'a>,
        list: &List<'a>,
        searching: bool,
        f: &Value<'a>,
        site: &Site,
    ) -> Value<'a> {
        let least = if searching { Amount::default() } else { list.least.clone() };
        let trips =
            Trips { least, most: list.most.clone(), over: format!("each of {}", site.over), line: site.line };
        let args = with_index(vec![(list.item.clone(), false)], f);
        self.repeat(state, trips, &mut |i, s| i.call(s, f, &args, site))
    }

    fn reduce(
        &mut self,
        state: &mut State<'a>,
        list: List<'a>,
        init: Option<Value<'a>>,
        f: &Value<'a>,
        site: &Site,
    ) -> Value<'a> {
        // Without a value to begin with, the first element is one.
        let least = if init.is_some() { list.least.clone() } else { Amount::default() };
        let trips = Trips { least, most: list.most, over: format!("each of {}", site.over), line: site.line };
        // The accumulator is a variable that no program can name.
        self.reducing += 1;
        let sum = VarId::MAX - self.reducing;
        self.write(state, sum, init.unwrap_or_else(|| list.item.clone()));
        self.repeat(state, trips, &mut |i, s| {
            let so_far = s.vars.get(&sum).cloned().unwrap_or_default();
            let args = with_index(vec![(so_far, false), (list.item.clone(), false)], f);
            let next = i.call(s, f, &args, site);
            i.write(s, sum, next.clone());
            next
        });
        self.reducing -= 1;
        state.vars.remove(&sum).unwrap_or_default()
    }

    /// The array with these behind it.
    pub(super) fn extended(&mut self, array: Value<'a>, more: &[(Value<'a>, bool)], line: u32) -> Value<'a> {
        let unknown = self.unknown_length("the array", line);
        let mut list = array.as_list(&unknown);
        for (value, spread) in more {
            let (least, most, item) = match spread {
                true => {
                    let part = value.as_list(&unknown);
                    (part.least, part.most, part.item)
                }
                false => (Amount::from(1), Most::Of(Amount::from(1)), value.clone()),
            };
            // The first element is all there is to begin with.
            list.item = if list.most.is_zero() { item } else { list.item.or(&item) };
            (list.least, list.most) = (list.least.plus(&least), list.most.plus(&most));
        }
        Value::list(list.least, list.most, list.item)
    }

    /// `concat`: arrays are taken apart, anything else is one element.
    fn joined(&mut self, array: &Value<'a>, more: &[(Value<'a>, bool)], line: u32) -> Value<'a> {
        let unknown = self.unknown_length("what is put behind the array", line);
        let mut list = array.as_list(&unknown);
        for (value, spread) in more {
            let part = value.as_list(&unknown);
            let one = Amount::from(1);
            list.item = list.item.or(&part.item).or(value);
            let surely = value.list.is_some() && value.data.is_none() && !value.lost && !spread;
            if surely {
                list.least = list.least.plus(&part.least);
            }
            list.most = match spread {
                true => list.most.plus(&Most::Unbounded(unknown.clone())),
                false => {
                    list.most.plus(&part.most.or(&Most::Of(if surely { Amount::default() } else { one })))
                }
            };
        }
        Value::list(list.least, list.most, list.item)
    }

    /// `parallel` and `race`: functions among the calls are called, others are asked for already.
    fn together(
        &mut self,
        state: &mut State<'a>,
        native: Native,
        calls: &List<'a>,
        options: &Value<'a>,
        site: &Site,
    ) -> Value<'a> {
        let mode = options.fields.as_ref().and_then(|fields| fields.get("mode"));
        let all = native == Native::Parallel
            && options.data.is_none()
            && !options.lost
            && match mode {
                None => true,
                Some(mode) => *mode == Value::text("all"),
            };
        if !all {
            // Once it is decided, what is not yet asked never will be, wherever it was written.
            self.raced = true;
        }
        let item = &calls.item;
        let thunks = Value { callables: item.callables.clone(), lost: item.lost, ..Value::default() };
        let mut result = item.clone();
        if !thunks.callables.is_empty() || thunks.lost {
            let over = format!("each of {}", site.over);
            // Each may fail before it asks.
            let least = Amount::default();
            let trips = Trips { least, most: calls.most.clone(), over, line: site.line };
            let made = self.repeat(state, trips, &mut |i, s| i.attempted(s, &thunks, site));
            result = result.or(&made);
        }
        let results = Value::list(Amount::default(), calls.most.clone(), result.clone());
        match (native, all) {
            (_, true) => Value::list(calls.least.clone(), calls.most.clone(), result),
            (Native::Race, _) => result,
            _ => results.or(&result),
        }
    }

    /// Calls a function whose failure is no more than a failed call.
    fn attempted(&mut self, state: &mut State<'a>, f: &Value<'a>, site: &Site) -> Value<'a> {
        let before = state.clone();
        self.tries.push(BTreeMap::new());
        let value = self.call(state, f, &vec![], site);
        let most = state.calls.most.clone();
        let failed = self.caught(before, most);
        *state = std::mem::take(state).or(failed);
        value
    }
}

/// Callbacks that take one argument more get the index.
fn with_index<'a>(mut args: Args<'a>, f: &Value<'a>) -> Args<'a> {
    if f.callables.iter().any(|f| matches!(f, Callable::Own(f) if f.params.len() > args.len())) {
        args.push((Value::number(Some(Amount::default()), None), false));
    }
    args
}

fn partial<'a>(native: Native, given: &Value<'a>) -> Value<'a> {
    Value::callable(Callable::Partial(native, Rc::new(given.clone())))
}

fn extreme<'a>(native: Native, args: &Args<'a>) -> Value<'a> {
    if args.iter().any(|(_, spread)| *spread) {
        return Value::number(None, None);
    }
    let numbers: Vec<_> = args.iter().map(|(value, _)| value.as_number()).collect();
    let (least, most): (Vec<_>, Vec<_>) = numbers.into_iter().map(|n| (n.least, n.most)).unzip();
    let larger = |all: &mut dyn Iterator<Item = Amount>| all.reduce(|a, b| a.larger(&b));
    let every = |all: &[Option<Amount>]| all.iter().cloned().collect::<Option<Vec<_>>>();
    if native == Native::Max {
        let most = every(&most).and_then(|all| larger(&mut all.into_iter()));
        return Value::number(larger(&mut least.into_iter().flatten()), most);
    }
    let least = every(&least).filter(|all| all.iter().all(Amount::is_natural));
    let least = least.and_then(|all| all.into_iter().reduce(|a, b| smaller(&a, &b)));
    // Any of them bounds it: the plainest does.
    let most =
        most.into_iter().flatten().min_by_key(|most| (most.constant().is_none(), most.to_string().len()));
    Value::number(least, most)
}

fn slice<'a>(list: &List<'a>, start: Option<Value<'a>>, end: Option<Value<'a>>) -> Value<'a> {
    let fixed = |n: &Option<Value<'a>>| n.as_ref().map_or(Some(0), |n| exact(n)).filter(|n| *n >= 0);
    let (least, most) = match (fixed(&start), &end) {
        // All but the first few.
        (Some(from), None) => {
            let rest = |all: &Amount| all.minus(&Amount::from(from)).count();
            let most = match &list.most {
                Most::Of(most) => Most::Of(rest(most)),
                unbounded => unbounded.clone(),
            };
            (rest(&list.least), most)
        }
        // The first few.
        (Some(0), Some(end)) if exact(end).is_some_and(|n| n >= 0) => {
            let n = Amount::from(exact(end).unwrap_or_default());
            let most = match &list.most {
                Most::Of(most) if most.within(&n) => most.clone(),
                _ => n.clone(),
            };
            (smaller(&list.least, &n), Most::Of(most))
        }
        _ => (Amount::default(), list.most.clone()),
    };
    Value::list(least, most, list.item.clone())
}

fn exact(value: &Value<'_>) -> Option<i64> {
    let number = value.as_number();
    number.least.filter(|least| Some(least) == number.most.as_ref())?.constant()
}

fn range<'a>(
    first: &Value<'a>,
    second: Option<Value<'a>>,
    step: Option<Value<'a>>,
    site: &Site,
) -> Value<'a> {
    let why = format!("how long a range to `{}` is cannot be told before the run", site.over);
    let unknown = Most::Unbounded(Reason { why, line: site.line });
    let one = second.is_none();
    let (start, end) = match second {
        Some(second) => (first.as_number(), second.as_number()),
        None => (Value::exactly(Amount::default()).as_number(), first.as_number()),
    };
    let up = start.least.as_ref().zip(end.most.as_ref()).map(|(from, to)| to.minus(from));
    let surely = start.most.as_ref().zip(end.least.as_ref()).map(|(from, to)| to.minus(from));
    let rises = surely.as_ref().is_some_and(Amount::is_natural);
    let (least, most) = match step {
        Some(step) => {
            let steps = step.as_number().least.zip(up);
            (Amount::default(), steps.map(|(step, up)| Amount::of(Atom::Steps(up, step))))
        }
        None if one || rises => (surely.unwrap_or_default().count(), up.map(|up| up.count())),
        // Without a step it may also go down.
        None => {
            let down = surely.map(|up| Amount::default().minus(&up));
            (Amount::default(), up.zip(down).map(|(up, down)| up.count().larger(&down.count())))
        }
    };
    let most = most.map_or(unknown, Most::Of);
    Value::list(least, most, Value::number(None, None))
}
