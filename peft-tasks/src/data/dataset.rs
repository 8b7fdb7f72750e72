//! Rows of a data file: JSON lines, a JSON array, CSV, TSV or plain text.
//!
//! A row keeps its line, so that whatever is wrong with it later can be said with the place to look at.

use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};
use serde_json::{Map, Value};

use crate::data::rng;

/// One row: its fields, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Line of the file, counted from 1; in a JSON array the number of the element.
    pub line: usize,
    /// Column → value. Cells of CSV and TSV files are strings.
    pub fields: Map<String, Value>,
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

/// The rows of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Where they came from; named in errors.
    pub path: PathBuf,
    /// In the file's order unless shuffled.
    pub rows: Vec<Row>,
}

impl Dataset {
    /// Reads a file; its ending (`jsonl`, `ndjson`, `json`, `csv`, `tsv`, `txt`) says how.
    ///
    /// # Errors
    /// An unknown ending, a file that is empty or not UTF-8, and a row that does not parse.
    pub fn read(path: impl AsRef<Path>, text: TextRows) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(PeftError::io("read", path))?;
        let contents = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            PeftError::bad_file(path, format!("byte {at} is not UTF-8; convert it, for example with `iconv -t utf-8`"))
        })?;
        Self::parse(path, &contents, text)
    }

    /// Like [`Dataset::read`], for contents that are in memory already. `path` gives the ending and names the errors.
    pub fn parse(path: impl AsRef<Path>, contents: &str, text: TextRows) -> Result<Self> {
        let path = path.as_ref();
        // Spreadsheets write a byte order mark, which would become part of the first column's name.
        let contents = contents.strip_prefix('\u{feff}').unwrap_or(contents);
        let ending = path.extension().and_then(|it| it.to_str()).unwrap_or_default().to_lowercase();
        let rows = match ending.as_str() {
            "jsonl" | "ndjson" => json_lines(path, contents)?,
            // Much of the Hub calls JSON lines `.json`.
            "json" if contents.trim_start().starts_with('{') => json_lines(path, contents)?,
            "json" => json_array(path, contents)?,
            "csv" => delimited(path, contents, b',')?,
            "tsv" => delimited(path, contents, b'\t')?,
            "txt" => plain(contents, text),
            _ => {
                return Err(PeftError::bad_file(
                    path,
                    "its ending is not a known one; name it .jsonl, .json, .csv, .tsv or .txt",
                ));
            }
        };
        if rows.is_empty() {
            return Err(PeftError::bad_file(path, "it has no rows"));
        }
        Ok(Self { path: path.to_path_buf(), rows })
    }

    /// The names of all columns, in the order in which they appear first.
    pub fn columns(&self) -> Vec<String> {
        let mut names: indexmap::IndexSet<&str> = indexmap::IndexSet::new();
        for row in &self.rows {
            names.extend(row.fields.keys().map(String::as_str));
        }
        names.into_iter().map(str::to_owned).collect()
    }

    /// The value of `column`.
    ///
    /// # Errors
    /// The row lacks the column: the message lists what it has.
    pub fn value<'a>(&self, row: &'a Row, column: &str) -> Result<&'a Value> {
        row.fields.get(column).ok_or_else(|| {
            let has: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            self.bad_row(row, format!("no column `{column}`; it has {}", quoted(&has)))
        })
    }

    /// The value of `column` as text. Numbers and truth values are written out; `null`, lists and objects are errors.
    pub fn text(&self, row: &Row, column: &str) -> Result<String> {
        match self.value(row, column)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(truth) => Ok(truth.to_string()),
            other => Err(self.bad_row(row, format!("column `{column}` is {}, expected text", kind(other)))),
        }
    }

    /// A [`PeftError::BadRow`] of this file.
    pub fn bad_row(&self, row: &Row, reason: impl std::fmt::Display) -> PeftError {
        PeftError::bad_row(&self.path, row.line, reason)
    }

    /// Puts the rows in an order that depends on `seed` and their number only.
    pub fn shuffle(&mut self, seed: u64) {
        rng::shuffle(&mut rng::generator(seed, 0), &mut self.rows);
    }

    /// Splits off `eval_fraction` of the rows, at least one, drawn by `seed`. Both parts keep the file's order.
    ///
    /// Returns `(train, eval)`.
    ///
    /// # Errors
    /// A fraction outside `(0, 1)`, and a file with a single row.
    pub fn split(self, eval_fraction: f64, seed: u64) -> Result<(Self, Self)> {
        if !(eval_fraction > 0.0 && eval_fraction < 1.0) {
            return Err(PeftError::config("eval_fraction", format!("is {eval_fraction}, expected between 0 and 1")));
        }
        let total = self.rows.len();
        if total < 2 {
            return Err(PeftError::bad_file(
                &self.path,
                "it has one row, so nothing is left to train on after a split",
            ));
        }
        let wanted = ((total as f64 * eval_fraction).round() as usize).clamp(1, total - 1);
        let mut order: Vec<usize> = (0..total).collect();
        rng::shuffle(&mut rng::generator(seed, 0), &mut order);
        let mut held_out = vec![false; total];
        order[..wanted].iter().for_each(|it| held_out[*it] = true);

        let (mut train, mut eval) = (Vec::with_capacity(total - wanted), Vec::with_capacity(wanted));
        for (row, out) in self.rows.into_iter().zip(held_out) {
            if out { eval.push(row) } else { train.push(row) }
        }
        Ok((Self { path: self.path.clone(), rows: train }, Self { path: self.path, rows: eval }))
    }
}

fn json_lines(path: &Path, contents: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (index, text) in contents.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = index + 1;
        let value = serde_json::from_str(text).map_err(|error| PeftError::bad_row(path, line, bad_json(&error)))?;
        rows.push(object(path, line, value)?);
    }
    Ok(rows)
}

fn json_array(path: &Path, contents: &str) -> Result<Vec<Row>> {
    if contents.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: Value =
        serde_json::from_str(contents).map_err(|error| PeftError::bad_row(path, error.line(), bad_json(&error)))?;
    match value {
        Value::Array(items) => {
            items.into_iter().enumerate().map(|(index, item)| object(path, index + 1, item)).collect()
        }
        other => Err(PeftError::bad_file(path, format!("it holds {}, expected a list of objects", kind(&other)))),
    }
}

fn object(path: &Path, line: usize, value: Value) -> Result<Row> {
    match value {
        Value::Object(fields) => Ok(Row { line, fields }),
        other => Err(PeftError::bad_row(path, line, format!("it holds {}, expected an object", kind(&other)))),
    }
}

fn delimited(path: &Path, contents: &str, delimiter: u8) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        // Tab-separated files are written without quoting, and their texts hold lone quotation marks.
        .quoting(delimiter == b',')
        .from_reader(contents.as_bytes());
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
        rows.push(Row { line, fields: header.iter().map(str::to_owned).zip(cells).collect() });
    }
    Ok(rows)
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
    let row = |line, text: &str| Row { line, fields: Map::from_iter([("text".to_owned(), Value::from(text))]) };
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

/// Names for a message: `a`, `b`, `c`.
pub(crate) fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|it| format!("`{}`", it.as_ref())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, contents: &str) -> Result<Dataset> {
        Dataset::parse(name, contents, TextRows::Lines)
    }

    fn message(result: Result<Dataset>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn every_format_gives_the_same_rows() {
        let texts = |name, contents| {
            let data = parse(name, contents).unwrap();
            data.rows.iter().map(|row| data.text(row, "text").unwrap()).collect::<Vec<_>>()
        };
        let expected = ["one", "two, too"];
        assert_eq!(texts("a.jsonl", "{\"text\":\"one\"}\n\n{\"text\":\"two, too\"}\n"), expected);
        assert_eq!(texts("a.json", "[{\"text\":\"one\"},\n{\"text\":\"two, too\"}]"), expected);
        assert_eq!(texts("a.json", "{\"text\":\"one\"}\n{\"text\":\"two, too\"}"), expected);
        assert_eq!(texts("a.csv", "\u{feff}text\none\n\"two, too\"\n"), expected);
        assert_eq!(texts("a.tsv", "id\ttext\n1\tone\n2\ttwo, too\n"), expected);
        assert_eq!(texts("a.txt", "one\r\n\r\ntwo, too"), expected);
    }

    #[test]
    fn a_text_file_can_be_one_document() {
        let data = Dataset::parse("a.txt", "one\n\ntwo\n", TextRows::Document).unwrap();
        assert_eq!(data.text(&data.rows[0], "text").unwrap(), "one\n\ntwo\n");
        assert_eq!(data.rows.len(), 1);
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(
            message(parse("a.jsonl", "{\"a\":1}\n{\"a\":}\n")),
            "a.jsonl, line 2: bad JSON at column 6: expected value"
        );
        assert_eq!(message(parse("a.jsonl", "[1]")), "a.jsonl, line 1: it holds a list, expected an object");
        let ragged = message(parse("a.csv", "a,b\n1,2\n1,2,3\n"));
        assert!(ragged.starts_with("a.csv, line 3: it has 3 fields, the header has 2"), "{ragged}");
        assert_eq!(message(parse("a.csv", "a,a\n1,2\n")), "a.csv, line 1: two columns are called `a`; rename one");
        for name in ["a.jsonl", "a.json", "a.csv", "a.txt"] {
            assert_eq!(message(parse(name, " \n")), format!("{name} is not usable: it has no rows"));
        }
        assert!(message(parse("a.parquet", "x")).contains("name it .jsonl"));
    }

    #[test]
    fn a_missing_column_lists_the_columns_there_are() {
        let data = parse("a.jsonl", "{\"text\":\"x\",\"label\":null}").unwrap();
        let error = data.text(&data.rows[0], "body").unwrap_err().to_string();
        assert_eq!(error, "a.jsonl, line 1: no column `body`; it has `text`, `label`");
        let error = data.text(&data.rows[0], "label").unwrap_err().to_string();
        assert_eq!(error, "a.jsonl, line 1: column `label` is null, expected text");
    }

    #[test]
    fn a_quoted_cell_over_two_lines_keeps_later_lines_right() {
        let data = parse("a.csv", "text\n\"a\nb\"\nc\n").unwrap();
        assert_eq!(data.rows.iter().map(|it| it.line).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn a_split_is_a_partition_that_the_seed_fixes() {
        let contents: String = (0..10).map(|it| format!("row {it}\n")).collect();
        let data = parse("a.txt", &contents).unwrap();
        let (train, eval) = data.clone().split(0.2, 3).unwrap();
        assert_eq!((train.rows.len(), eval.rows.len()), (8, 2));
        assert_eq!(data.clone().split(0.2, 3).unwrap().1, eval);
        assert_ne!(data.clone().split(0.2, 4).unwrap().1, eval);
        let mut lines: Vec<usize> = train.rows.iter().chain(&eval.rows).map(|it| it.line).collect();
        assert!(train.rows.is_sorted_by_key(|it| it.line));
        lines.sort_unstable();
        assert_eq!(lines, (1..=10).collect::<Vec<_>>());
        assert!(data.clone().split(1.0, 3).is_err());

        let mut shuffled = data.clone();
        shuffled.shuffle(3);
        assert_ne!(shuffled, data);
        shuffled.rows.sort_by_key(|it| it.line);
        assert_eq!(shuffled, data);
    }
}
