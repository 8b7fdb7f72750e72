//! Rows of data files: JSON lines, a JSON array, CSV, TSV or plain text.
//!
//! A row keeps its line, so that whatever is wrong with it later can be said with the place to look at.

use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};
use serde_json::Value;

use crate::data::reading::{self, MAX_BYTES, PARQUET, files_of};
use crate::data::{formats, parquet, rng};

pub use crate::data::row::{Row, TextRows};
pub(crate) use crate::data::row::{kind, quoted};

/// The rows of one file, or of several.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Where they came from; named in errors.
    pub files: Vec<PathBuf>,
    /// In the file's order unless shuffled.
    pub rows: Vec<Row>,
}

impl Dataset {
    /// Reads a file; its ending (`jsonl`, `ndjson`, `json`, `csv`, `tsv`, `txt`, each with or without `.gz`, or `parquet`) says how. A folder,
    /// a pattern such as `data/*.jsonl` and names with commas between them are several files: see [`files_of`].
    ///
    /// # Errors
    /// An unknown ending, a file that is empty, has no end or is not UTF-8, and a row that does not parse.
    pub fn read(name: impl AsRef<Path>, text: TextRows) -> Result<Self> {
        let name = name.as_ref();
        let files = files_of(name)?;
        let mut rows = Vec::new();
        for (file, path) in files.iter().enumerate() {
            let of_file = match reading::ending(path) {
                Some(PARQUET) => parquet::rows(path, MAX_BYTES)?,
                ending => formats::rows(path, ending, &reading::text(path)?, text)?,
            };
            rows.extend(of_file.into_iter().map(|it| Row { file, ..it }));
        }
        if rows.is_empty() {
            return Err(PeftError::bad_file(name, "it has no rows"));
        }
        Ok(Self { files, rows })
    }

    /// Like [`Dataset::read`], for contents that are in memory already. `path` gives the ending and names the errors.
    pub fn parse(path: impl AsRef<Path>, contents: &str, text: TextRows) -> Result<Self> {
        let path = path.as_ref();
        let rows = formats::rows(path, reading::ending(path), contents, text)?;
        if rows.is_empty() {
            return Err(PeftError::bad_file(path, "it has no rows"));
        }
        Ok(Self { files: vec![path.to_path_buf()], rows })
    }

    /// The file that a row is in.
    pub fn path(&self, row: &Row) -> &Path {
        self.files.get(row.file).or(self.files.first()).map_or(Path::new(""), |it| it)
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
        PeftError::bad_row(self.path(row), row.line, reason)
    }

    /// A [`PeftError::BadFile`] of the rows together: of their file, or of the first of several.
    pub fn bad(&self, reason: impl std::fmt::Display) -> PeftError {
        let path = self.files.first().map_or(Path::new(""), |it| it);
        match self.files.len() {
            0 | 1 => PeftError::bad_file(path, reason),
            2 => PeftError::bad_file(path, format!("with the file beside it, {reason}")),
            many => PeftError::bad_file(path, format!("with the {} files beside it, {reason}", many - 1)),
        }
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
            let reason = "it has one row, so nothing is left to train on after a split";
            return Err(PeftError::bad_file(self.path(&self.rows[0]), reason));
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
        Ok((Self { files: self.files.clone(), rows: train }, Self { files: self.files, rows: eval }))
    }
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
        assert_eq!(message(parse("a.jsonl", "[1]")), "a.jsonl, line 1: it holds a number, expected an object");
        let ragged = message(parse("a.csv", "a,b\n1,2\n1,2,3\n"));
        assert!(ragged.starts_with("a.csv, line 3: it has 3 fields, the header has 2"), "{ragged}");
        assert_eq!(message(parse("a.csv", "a,a\n1,2\n")), "a.csv, line 1: two columns are called `a`; rename one");
        for name in ["a.jsonl", "a.json", "a.csv", "a.txt"] {
            assert_eq!(message(parse(name, " \n")), format!("{name} is not usable: it has no rows"));
        }
        assert!(message(parse("a.xlsx", "x")).contains("name it .jsonl"));
        let lists = message(parse("a.jsonl", "[{}]\n[{}]\n"));
        assert_eq!(lists, "a.jsonl, line 1: it holds a list, expected an object");
    }

    #[test]
    fn json_in_the_forms_that_programs_write() {
        let texts = |name, contents: &str| {
            let data = parse(name, contents).unwrap();
            data.rows.iter().map(|row| (row.line, data.text(row, "text").unwrap())).collect::<Vec<_>>()
        };
        let two = |lines: [usize; 2]| vec![(lines[0], "one".to_owned()), (lines[1], "two".to_owned())];
        for name in ["a.json", "a.jsonl", "a.json.gz"] {
            assert_eq!(texts(name, "{\n  \"text\": \"one\"\n}\n{\n  \"text\": \"two\"\n}\n"), two([1, 4]));
            assert_eq!(texts(name, r#"{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}"#), two([1, 2]));
            let served = r#"{"features": [], "rows": [{"row_idx": 0, "row": {"text": "one"}}, {"row_idx": 1, "row": {"text": "two"}}]}"#;
            assert_eq!(texts(name, served), two([1, 2]));
            assert_eq!(texts(name, "[\n{\"text\": \"one\"},\n{\"text\": \"two\"}\n]"), two([1, 2]));
        }
        // A row with a list of objects is a row.
        let row = parse("a.json", r#"{"messages": [{"role": "user", "content": "x"}]}"#).unwrap();
        assert_eq!(row.columns(), ["messages"]);
        let broken = message(parse("a.json", "{\n\"text\": \"one\"\n"));
        assert!(broken.starts_with("a.json, line 3: bad JSON"), "{broken}");
        // What comes out of a pipe has no ending.
        assert_eq!(texts("/dev/fd/63", "{\"text\": \"one\"}\n{\"text\": \"two\"}"), two([1, 2]));
        assert!(message(parse("/dev/fd/63", "text\none\n")).contains("its ending"));
    }

    #[test]
    fn tab_separated_files_have_marks_as_pandas_writes_them_or_none() {
        let texts = |contents: &str| {
            let data = parse("a.tsv", contents).unwrap();
            data.rows.iter().map(|row| data.text(row, "text").unwrap()).collect::<Vec<_>>()
        };
        // `DataFrame.to_csv(sep="\t", index=False)`
        let pandas = "text\tlabel\n\"a \"\"quoted\"\" word\"\t1\n\"two\nlines\"\t0\nplain\t1\n";
        assert_eq!(texts(pandas), ["a \"quoted\" word", "two\nlines", "plain"]);
        let all = "\"text\"\t\"label\"\n\"one\"\t\"1\"\n";
        assert_eq!(texts(all), ["one"]);
        // GLUE: marks are part of the text.
        assert_eq!(texts("text\tlabel\n\"Yes\" he said\t1\nfive\" long\t0\n"), ["\"Yes\" he said", "five\" long"]);
        assert_eq!(texts("text\tlabel\n\"a whole one\"\t1\n"), ["\"a whole one\""]);
    }

    #[test]
    fn several_files_are_one_and_errors_name_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.jsonl", "{\"text\":\"one\"}\n");
        write("b.csv", "text\ntwo\n");
        let data = Dataset::read(folder.path(), TextRows::Lines).unwrap();
        assert_eq!(data.rows.iter().map(|it| data.text(it, "text").unwrap()).collect::<Vec<_>>(), ["one", "two"]);
        let error = data.bad_row(&data.rows[1], "odd").to_string();
        assert!(error.ends_with("b.csv, line 2: odd"), "{error}");
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
