//! Jinja as chat templates expect it: the environment that transformers makes, on minijinja.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `_cached_compile_jinja_template` of transformers' `utils/chat_template_utils.py`, but for `strftime_now`.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(write_python);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment
}

fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// Prints a value as Python's `str` does: `True`, `None`, `{'a': 1}`.
fn write_python(out: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    python(&mut text, value, false)?;
    out.write_str(&text).map_err(Error::from)
}

fn python(out: &mut String, value: &Value, nested: bool) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None => out.push_str("None"),
        ValueKind::String if nested => {
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
        ValueKind::Seq => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                python(out, &item, true)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                python(out, &key, true)?;
                out.push_str(": ");
                python(out, &value.get_item(&key)?, true)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// Jinja's own filter differs: it escapes HTML and sorts keys.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let bad = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(bad)?;
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        sort_keys(&mut json);
    }
    let indent: Option<usize> = options.get("indent")?;
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

/// Writes `{% generation %}` blocks, a tag of transformers' own, as blocks of a filter, and says whether there was one.
///
/// A filter block is a statement like the tag it replaces, so `trim_blocks`, `lstrip_blocks` and the dashes of the tag
/// strip the same white space as before.
pub(crate) fn generation_as_filter(source: &str, filter: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open + 2..].find("%}") else { break };
        let inside = &rest[open + 2..open + 2 + length];
        let name = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..open + 2]);
        match name {
            "generation" => {
                found = true;
                out.push_str(&inside.replacen(name, &format!("filter {filter}"), 1));
            }
            "endgeneration" => out.push_str(&inside.replacen(name, "endfilter", 1)),
            _ => out.push_str(inside),
        }
        out.push_str("%}");
        rest = &rest[open + 2 + length + 2..];
    }
    out.push_str(rest);
    (out, found)
}
