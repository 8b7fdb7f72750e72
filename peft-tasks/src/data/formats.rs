//! Rows of a text in one of the formats of data files.

use std::path::Path;

use peft_core::{PeftError, Result};
use serde_json::{Map, Value};

use crate::data::reading::ENDINGS;
use crate::data::row::{Row, TextRows, kind};

/// The rows of a text. `ending` is that of its file; without one, as of a pipe, it must be JSON.
pub(crate) fn rows(path: &Path, ending: Option<&str>, contents: &str, text: TextRows) -> Result<Vec<Row>> {
    // Spreadsheets write a byte order mark, which would become part of the first column's name.
    let contents = contents.strip_prefix('\u{feff}').unwrap_or(contents);
    match ending {
        Some("jsonl" | "ndjson" | "json") => json(path, contents),
        Some("csv") => delimited(path, contents, b',', true),
        Some("tsv") => delimited(path, contents, b'\t', is_quoted(contents)),
        Some("txt") => Ok(plain(contents, text)),
        _ if path.extension().is_none() && contents.trim_start().starts_with(['{', '[']) => json(path, contents),
        _ => {
            let reason =
                format!("its ending is not a known one; name it .{}, or one of these and .gz", ENDINGS.join(", ."));
            Err(PeftError::bad_file(path, reason))
        }
    }
}

/// JSON lines, a list of objects, or one object. Much of the Hub calls any of them `.json`.
fn json(path: &Path, contents: &str) -> Result<Vec<Row>> {
    if contents.trim_start().starts_with('[') {
        match serde_json::from_str(contents) {
            Ok(Value::Array(items)) => {
                return items.into_iter().enumerate().map(|(index, item)| object(path, index + 1, item)).collect();
            }
            // Lines of one list each are told apart below.
            Err(error) if contents.lines().next().is_some_and(|it| serde_json::from_str::<Value>(it).is_err()) => {
                return Err(PeftError::bad_row(path, error.line(), bad_json(&error)));
            }
            _ => {}
        }
    }
    let mut rows = Vec::new();
    for (index, text) in contents.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = index + 1;
        match serde_json::from_str(text) {
            Ok(value) => rows.push(object(path, line, value)?),
            // An object that goes on in the next line: the file is printed to be read.
            Err(error) if error.is_eof() && rows.is_empty() => return pretty(path, contents),
            Err(error) => return Err(PeftError::bad_row(path, line, bad_json(&error))),
        }
    }
    unwrapped(path, rows)
}

/// Objects over several lines each.
fn pretty(path: &Path, contents: &str) -> Result<Vec<Row>> {
    let mut values = serde_json::Deserializer::from_str(contents).into_iter::<Value>();
    let mut rows = Vec::new();
    loop {
        let blank = contents[values.byte_offset()..].len() - contents[values.byte_offset()..].trim_start().len();
        let line = 1 + contents[..values.byte_offset() + blank].matches('\n').count();
        match values.next() {
            None => return unwrapped(path, rows),
            Some(Ok(value)) => rows.push(object(path, line, value)?),
            Some(Err(error)) => return Err(PeftError::bad_row(path, error.line(), bad_json(&error))),
        }
    }
}

/// Names that a list of rows has where it is not the whole file: `{"data": […]}`.
const WRAPPERS: [&str; 5] = ["data", "rows", "train", "examples", "instances"];

/// The rows within the only object of a file, if it holds a list of them.
fn unwrapped(path: &Path, mut rows: Vec<Row>) -> Result<Vec<Row>> {
    let [only] = rows.as_mut_slice() else { return Ok(rows) };
    let is_list = |it: &Value| it.as_array().is_some_and(|it| !it.is_empty() && it.iter().all(Value::is_object));
    let Some(name) = WRAPPERS.into_iter().find(|it| only.fields.get(*it).is_some_and(is_list)) else { return Ok(rows) };
    let Some(Value::Array(items)) = only.fields.get_mut(name).map(Value::take) else { return Ok(rows) };
    let row = |(index, item): (usize, Value)| {
        let mut row = object(path, index + 1, item)?;
        // The Hub's server puts each row beside its number.
        if row.fields.contains_key("row_idx")
            && let Some(Value::Object(fields)) = row.fields.get_mut("row").map(Value::take)
        {
            row.fields = fields;
        }
        Ok(row)
    };
    items.into_iter().enumerate().map(row).collect()
}

fn object(path: &Path, line: usize, value: Value) -> Result<Row> {
    match value {
        Value::Object(fields) => Ok(Row { line, fields, file: 0 }),
        other => Err(PeftError::bad_row(path, line, format!("it holds {}, expected an object", kind(&other)))),
    }
}

fn delimited(path: &Path, contents: &str, delimiter: u8, quoting: bool) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).quoting(quoting).from_reader(contents.as_bytes());
    let header = reader.headers().map_err(|error| bad_csv(path, &error))?.clone();
    for (index, name) in header.iter().enumerate() {
        if header.iter().take(index).any(|it| it == name) {
            return Err(PeftError::bad_row(path, 1, format!("two columns are called `{name}`; rename one")));
        }
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| bad_csv(path, &error))?;
        let line = record.position().map_or(0, |it| it.line() as usize);
        let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
        rows.push(Row { line, fields: header.iter().map(str::to_owned).zip(cells).collect(), file: 0 });
    }
    Ok(rows)
}

/// Whether a tab-separated file was written with quotation marks around what needs them, as pandas does, or without, as those
/// of GLUE, whose texts hold lone ones.
///
/// It was if every cell with a quotation mark in it is a whole one in marks, with those inside doubled, and if marks were
/// needed somewhere: for a tab, a line break or a mark in the cell, or because every cell of the header has them.
fn is_quoted(contents: &str) -> bool {
    let header = contents.lines().next().unwrap_or_default();
    let mut needed = header.split('\t').all(|it| it.len() > 1 && it.starts_with('"') && it.ends_with('"'));
    let mut rest = contents;
    while !rest.is_empty() {
        let Some(inside) = rest.strip_prefix('"') else {
            let end = rest.find(['\t', '\n']).unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return false;
            }
            rest = rest.get(end + 1..).unwrap_or_default();
            continue;
        };
        let mut at = 0;
        let end = loop {
            match inside[at..].find('"') {
                None => return false,
                Some(place) if inside[at + place + 1..].starts_with('"') => at += place + 2,
                Some(place) => break at + place,
            }
        };
        needed |= inside[..end].contains(['\t', '\n', '"']);
        rest = inside[end + 1..].trim_start_matches('\r');
        if !rest.is_empty() && !rest.starts_with(['\t', '\n']) {
            return false;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    needed
}

fn bad_csv(path: &Path, error: &csv::Error) -> PeftError {
    let line = error.position().map_or(1, |it| it.line() as usize);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "it has {len} fields, the header has {expected_len}; put fields that hold the delimiter in quotation marks"
        ),
        _ => error.to_string(),
    };
    PeftError::bad_row(path, line, reason)
}

fn plain(contents: &str, text: TextRows) -> Vec<Row> {
    let row =
        |line, text: &str| Row { line, fields: Map::from_iter([("text".to_owned(), Value::from(text))]), file: 0 };
    let blank = |text: &str| text.trim().is_empty();
    match text {
        TextRows::Document if blank(contents) => Vec::new(),
        TextRows::Document => vec![row(1, contents)],
        TextRows::Lines => {
            contents.lines().enumerate().filter(|(_, it)| !blank(it)).map(|(index, it)| row(index + 1, it)).collect()
        }
    }
}

fn bad_json(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
    format!("bad JSON at column {}: {message}", error.column())
}
