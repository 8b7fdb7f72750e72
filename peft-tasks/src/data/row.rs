//! A row of a data file.

use std::borrow::Cow;

use peft_core::brief;
use serde_json::{Map, Value};

/// One row: its fields, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Line of the file, counted from 1; in a JSON array the number of the element.
    pub line: usize,
    /// Column → value. Cells of CSV and TSV files are strings.
    pub fields: Map<String, Value>,
    /// Number of the file among those of the data, from 0.
    pub file: usize,
}

/// How a `.txt` file becomes rows. Either way they have one column, `text`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextRows {
    /// The whole file is one row.
    #[default]
    Document,
    /// Every line that is not blank is a row.
    Lines,
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Names for a message: `a`, `b`, `c`. A file may have thousands, each as long as a book.
pub(crate) fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    const MOST: usize = 20;
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = names.iter().take(MOST).map(|it| format!("`{}`", brief(it.as_ref()))).collect();
    match names.len() {
        0..=MOST => shown.join(", "),
        many => format!("{} and {} more", shown.join(", "), many - MOST),
    }
}

/// A list, which cells of CSV files hold as JSON; anything else as it is.
///
/// # Errors
/// The cell holds a list as Python prints it, which is not JSON.
pub(crate) fn listed(value: &Value) -> Result<Cow<'_, Value>, String> {
    let Some(text) = value.as_str().map(str::trim).filter(|it| it.starts_with('[') && it.ends_with(']')) else {
        return Ok(Cow::Borrowed(value));
    };
    match serde_json::from_str(text) {
        Ok(list) => Ok(Cow::Owned(list)),
        Err(_) if text.starts_with("['") => {
            Err("is a list as Python prints it; write JSON into the file, with `json.dumps`".to_owned())
        }
        Err(_) => Ok(Cow::Borrowed(value)),
    }
}
