//! Jinja's filters and Python's methods, with limits.
//!
//! minijinja counts the instructions of a template, and a filter is one, whatever it does: `indent` may write as much as a
//! number says, and `join` as much as a list of one text a million times. So what a filter is given is measured before it
//! runs, what it gives afterwards, and both count against what a rendering may do.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Object, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

/// Bytes of a text.
pub(super) const TEXT: usize = 1 << 26;
/// Elements of a list.
pub(super) const ELEMENTS: usize = 1 << 20;
/// Lists in lists.
pub(super) const DEPTH: usize = 64;
/// Characters that a filter may be told to fill a line with.
const WIDTH: u64 = 1000;
/// Bytes and elements that the filters of one rendering read and write, all together.
const WORK: u64 = 1 << 28;

/// Filters whose work depends on what they are given. The others look at one element, or at none.
const MEASURED: [&str; 37] = [
    "escape",
    "e",
    "lower",
    "upper",
    "title",
    "capitalize",
    "replace",
    "dictsort",
    "items",
    "reverse",
    "trim",
    "join",
    "split",
    "lines",
    "min",
    "max",
    "sort",
    "list",
    "string",
    "batch",
    "slice",
    "sum",
    "indent",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "map",
    "groupby",
    "unique",
    "chain",
    "zip",
    "pprint",
    "format",
    "urlencode",
    "tojson",
    "last",
];

/// Filters that give more than they are given, which `map` would call without a limit.
const GROWING: [&str; 6] = ["replace", "join", "indent", "batch", "slice", "format"];

/// Puts a limit before every filter and method that needs one. `prepare` adds the filters that are not minijinja's.
pub(super) fn limit(environment: &mut Environment<'static>, prepare: fn(&mut Environment<'static>)) {
    for name in MEASURED {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            before(state, name, &args)?;
            let plain = plain(state.undefined_behavior(), prepare);
            after(state, plain.empty_state().apply_filter(name, &args)?)
        });
    }
    environment.set_unknown_method_callback(|state, value, method, args| {
        let all: Vec<Value> = match method {
            // `", ".join(list)` is the filter the other way round.
            "join" => args.iter().chain([value]).cloned().collect(),
            _ => [value].into_iter().chain(args).cloned().collect(),
        };
        before(state, method, &all)?;
        after(state, minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)?)
    });
}

/// The filters without limits, which are the same for every template.
fn plain(undefined: UndefinedBehavior, prepare: fn(&mut Environment<'static>)) -> &'static Environment<'static> {
    static PLAIN: [OnceLock<Environment<'static>>; 2] = [OnceLock::new(), OnceLock::new()];
    let is_strict = matches!(undefined, UndefinedBehavior::Strict);
    PLAIN[usize::from(is_strict)].get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(undefined);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        prepare(&mut environment);
        environment
    })
}

/// What the filters of this rendering have done.
#[derive(Debug, Default)]
struct Work(AtomicU64);

impl Object for Work {}

fn count(state: &State, size: usize) -> Result<(), Error> {
    let work = state.get_or_set_temp_object("peft work", Work::default);
    // A call costs something, too.
    let size = size as u64 + 16;
    match work.0.fetch_add(size, Ordering::Relaxed).saturating_add(size) > WORK {
        true => Err(too_much("more work")),
        false => Ok(()),
    }
}

pub(super) fn too_much(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("it makes {what} than a conversation can be"))
}

/// Refuses what would become too large, and counts what is read.
fn before(state: &State, name: &str, args: &[Value]) -> Result<(), Error> {
    let mut size = 0;
    for arg in args {
        measure(arg, 0, &mut size)?;
    }
    count(state, size)?;
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let made = match name {
        "replace" => {
            let (text, from, to) = (text(0), text(1), text(2));
            let found = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() };
            text.len().saturating_add(found.saturating_mul(to.len()))
        }
        "join" => {
            let elements = args.first().and_then(Value::len).unwrap_or(0);
            size.saturating_add(elements.saturating_mul(text(1).len()))
        }
        "indent" => {
            let width = numbers(&args[1.min(args.len())..]).max().unwrap_or(4);
            if width > WIDTH {
                return Err(too_much("a wider text"));
            }
            let lines = text(0).lines().count();
            text(0).len().saturating_add(lines.saturating_mul(width as usize))
        }
        "map" => match args.iter().skip(1).filter_map(Value::as_str).find(|it| GROWING.contains(it)) {
            Some(filter) => {
                let reason = format!("`map` does not take `{filter}` here: write a loop");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
            None => 0,
        },
        "batch" | "slice" => numbers(&args[1.min(args.len())..]).max().unwrap_or(0) as usize,
        "format" if widths(text(0)).any(|it| it > WIDTH) => return Err(too_much("a wider text")),
        _ => 0,
    };
    let limit = if matches!(name, "batch" | "slice") { ELEMENTS } else { TEXT };
    if made > limit { Err(too_much("a longer text")) } else { Ok(()) }
}

fn after(state: &State, value: Value) -> Result<Value, Error> {
    let mut size = 0;
    // What is put together when it is read, as `map` does, is counted by who reads it.
    if !matches!(value.kind(), ValueKind::Iterable) {
        measure(&value, 0, &mut size)?;
    }
    count(state, size)?;
    Ok(value)
}

/// Adds the bytes and elements of a value, however deep they lie.
fn measure(value: &Value, depth: usize, size: &mut usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(too_much("deeper lists"));
    }
    *size = size.saturating_add(value.as_str().map_or(1, str::len));
    if *size > TEXT {
        return Err(too_much("a longer text"));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            if value.len().is_some_and(|it| it > ELEMENTS) {
                return Err(too_much("a longer list"));
            }
            value.try_iter()?.try_for_each(|it| measure(&it, depth + 1, size))
        }
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            measure(&key, depth + 1, size)?;
            measure(&value.get_item(&key)?, depth + 1, size)
        }),
        _ => Ok(()),
    }
}

/// Whole numbers among arguments, by place or by name.
fn numbers(args: &[Value]) -> impl Iterator<Item = u64> {
    let of =
        |value: &Value| value.as_i64().map(|it| it.max(0) as u64).or_else(|| value.is_number().then_some(u64::MAX));
    let mut found = Vec::new();
    for arg in args {
        found.extend(of(arg));
        if arg.kind() == ValueKind::Map {
            let keys = arg.try_iter().into_iter().flatten();
            found.extend(keys.filter_map(|key| of(&arg.get_item(&key).ok()?)));
        }
    }
    found.into_iter()
}

/// Numbers in a text that says how others are written, as `%10d` and `{:>10}` do.
fn widths(text: &str) -> impl Iterator<Item = u64> {
    text.split(|it: char| !it.is_ascii_digit()).filter(|it| !it.is_empty()).map(|it| it.parse().unwrap_or(u64::MAX))
}
