//! Jinja as chat templates expect it: the environment that transformers makes, on minijinja.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use peft_core::{PeftError, Result as PeftResult};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::data::filters;

/// `_cached_compile_jinja_template` of transformers' `utils/chat_template_utils.py`, but for `strftime_now`.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_formatter(write_python);
    filters::limit(&mut environment, |plain| plain.add_filter("tojson", to_json));
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter(BOUNDED, limits::bounded);
    environment.set_fuel(Some(limits::FUEL));
    environment.set_recursion_limit(limits::RECURSION);
    environment
}

fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// Prints a value as Python's `str` does: `True`, `None`, `{'a': 1}`.
fn write_python(out: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    python(&mut text, value, 0)?;
    out.write_str(&text).map_err(Error::from)
}

fn python(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    limits::check(out.len(), depth)?;
    match value.kind() {
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None => out.push_str("None"),
        ValueKind::String if depth > 0 => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            out.push(quote);
            for letter in text.chars() {
                match letter {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    it if it == quote => out.extend(['\\', it]),
                    it => out.push(it),
                }
            }
            out.push(quote);
        }
        // A sum of lists is one that is put together when it is read.
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                python(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                python(out, &key, depth + 1)?;
                out.push_str(": ");
                python(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Spaces of a level of JSON.
const MOST_INDENT: usize = 64;

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// Jinja's own filter differs: it escapes HTML and sorts keys.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    limits::check_depth(value)?;
    let bad = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(bad)?;
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        sort_keys(&mut json);
    }
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|it| it > MOST_INDENT) {
        return Err(filters::too_much("a wider text"));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;

    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            json.serialize(&mut Serializer::with_formatter(&mut bytes, formatter)).map_err(bad)?;
        }
        None => {
            let [item, key] = match separators.as_deref() {
                Some([item, key]) => [item.clone(), key.clone()],
                _ => [", ".to_owned(), ": ".to_owned()],
            };
            json.serialize(&mut Serializer::with_formatter(&mut bytes, Separators { item, key })).map_err(bad)?;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Value::from(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text }))
}

fn sort_keys(json: &mut Json) {
    match json {
        Json::Object(fields) => {
            fields.sort_keys();
            fields.values_mut().for_each(sort_keys);
        }
        Json::Array(items) => items.iter_mut().for_each(sort_keys),
        _ => {}
    }
}

fn escape_non_ascii(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
        }
    }
    out
}

/// One line, with the separators of Python.
struct Separators {
    item: String,
    key: String,
}

impl Formatter for Separators {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
}

/// The filter that every assignment of a template goes through.
const BOUNDED: &str = "peft_bounded";
/// Blocks whose nesting doubles a text at each level. Templates of models have one or two.
const MOST_WITH_BLOCKS: usize = 8;

/// A template as it is run, and whether it says which part of the text the assistant wrote.
///
/// - `{% generation %}`, a tag of transformers' own, becomes a block of `filter`. A filter block is a statement like the tag
///   it replaces, so `trim_blocks`, `lstrip_blocks` and the dashes of the tag strip the same white space as before.
/// - What is assigned goes through a filter that keeps it small, and free of circles: see [`limits::bounded`].
///
/// # Errors
/// The template has more `with` blocks than any needs.
pub(crate) fn prepare(source: &str, filter: &str) -> PeftResult<(String, bool)> {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut found, mut withs) = (source, false, 0);
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open + 2..].find("%}") else { break };
        let inside = &rest[open + 2..open + 2 + length];
        let statement = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..open + 2]);
        match statement.split_whitespace().next() {
            Some("generation") if statement == "generation" => {
                found = true;
                out.push_str(&inside.replacen(statement, &format!("filter {filter}"), 1));
            }
            Some("endgeneration") => out.push_str(&inside.replacen(statement, "endfilter", 1)),
            Some("set") => out.push_str(&inside.replacen(statement, &bounded_assignment(statement), 1)),
            Some(word) => {
                withs += usize::from(word == "with");
                out.push_str(inside);
            }
            None => out.push_str(inside),
        }
        out.push_str("%}");
        rest = &rest[open + 2 + length + 2..];
    }
    out.push_str(rest);
    if withs > MOST_WITH_BLOCKS {
        return Err(PeftError::Invalid(format!(
            "the chat template has {withs} `with` blocks, at most {MOST_WITH_BLOCKS} are run"
        )));
    }
    Ok((out, found))
}

/// `set ns.x = value` as `set ns.x = (value)|peft_bounded(ns)`, `set x` as `set x|peft_bounded`.
fn bounded_assignment(statement: &str) -> String {
    let sign = statement.char_indices().find(|(at, it)| {
        let behind = statement[at + 1..].starts_with('=');
        *it == '=' && !behind
    });
    let Some((at, _)) = sign else {
        // A block may have filters already.
        return format!("{statement}|{BOUNDED}");
    };
    let (targets, value) = (statement[..at].trim_end(), &statement[at + 1..]);
    let names = targets.trim_start_matches("set").split(',');
    let owners: Vec<&str> = names.filter_map(|it| Some(it.trim().rsplit_once('.')?.0)).collect();
    let arguments = if owners.is_empty() { String::new() } else { format!("({})", owners.join(", ")) };
    format!("{targets} = ({})|{BOUNDED}{arguments}", value.trim())
}

/// What a template may use up.
mod limits {
    use minijinja::value::{Rest, ValueKind};
    use minijinja::{Error, ErrorKind, Value};

    use crate::data::filters::{DEPTH, ELEMENTS, TEXT, too_much};

    /// Instructions of a rendering: a second's worth, for conversations of thousands of turns.
    pub(super) const FUEL: u64 = 20_000_000;
    /// Depth of calls and blocks, of which a macro's call costs several.
    pub(super) const RECURSION: usize = 100;
    /// Refuses a value that is too large, and a namespace in a namespace: one that holds itself has no end when it is
    /// printed or compared. `owners` are the namespaces that the value is assigned to.
    pub(super) fn bounded(value: Value, owners: Rest<Value>) -> Result<Value, Error> {
        if value.as_str().is_some_and(|it| it.len() > TEXT) {
            return Err(too_much("a longer text"));
        }
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
            && value.len().is_some_and(|it| it > ELEMENTS)
        {
            return Err(too_much("a longer list"));
        }
        if !owners.is_empty() {
            search(&value, true, 0)?;
        }
        Ok(value)
    }

    fn search(value: &Value, is_member: bool, depth: usize) -> Result<(), Error> {
        let Some(object) = value.as_object() else { return Ok(()) };
        check(0, depth)?;
        if is_member && object.type_name().ends_with("::Namespace") {
            return Err(Error::new(ErrorKind::InvalidOperation, "it puts a namespace into a namespace"));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                value.try_iter()?.try_for_each(|it| search(&it, is_member, depth + 1))
            }
            ValueKind::Map => {
                value.try_iter()?.try_for_each(|key| search(&value.get_item(&key)?, is_member, depth + 1))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what has become too long or too deep.
    pub(super) fn check(length: usize, depth: usize) -> Result<(), Error> {
        match (length > TEXT, depth > DEPTH) {
            (true, _) => Err(too_much("a longer text")),
            (_, true) => Err(too_much("deeper lists")),
            _ => Ok(()),
        }
    }

    /// Refuses lists in lists in lists without end.
    pub(super) fn check_depth(value: &Value) -> Result<(), Error> {
        search(value, false, 0)
    }

    /// A place for output that takes no more than a text may have.
    pub(super) struct Page(pub(super) Vec<u8>);

    impl std::io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0.len() + bytes.len() > TEXT {
                return Err(std::io::Error::other("it makes a longer text than a conversation can be"));
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}

/// The text of a template.
pub(crate) fn render<S: Serialize>(template: &minijinja::Template<'_, '_>, scope: S) -> Result<String, Error> {
    let mut page = limits::Page(Vec::new());
    template.render_captured_to(scope, &mut page)?;
    String::from_utf8(page.0).map_err(|error| Error::new(ErrorKind::WriteFailure, error.to_string()))
}
