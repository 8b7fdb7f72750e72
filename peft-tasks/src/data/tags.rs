//! Words with a tag each, as token classification has them: two columns of lists.

use std::collections::BTreeSet;
use std::sync::Arc;

use peft_core::{PeftError, Result, brief};
use serde_json::Value;

use crate::data::dataset::{Dataset, Row, quoted};
use crate::data::row::listed;
use crate::data::text_data::TextData;

/// More tags than any scheme has: beyond it the column holds something else.
const MAX_TAGS: u64 = 10_000;

impl TextData {
    /// The tags of the words in the file: names in order, or numbers from 0.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing or holds something else.
    pub fn tag_names(&self) -> Result<Vec<String>> {
        let (data, _, column) = self.words()?;
        let mut names = BTreeSet::new();
        let mut largest = None;
        for row in &data.rows {
            for tag in list(&data, row, &column)? {
                match (tag.as_str(), tag.as_u64()) {
                    (Some(name), _) => names.extend([name.to_owned()]),
                    (None, Some(number)) if number < MAX_TAGS => largest = largest.max(Some(number)),
                    _ => {
                        return Err(data.bad_row(
                            row,
                            format!("column `{column}` holds {}, expected tags", brief(&tag.to_string())),
                        ));
                    }
                }
            }
        }
        match (names.is_empty(), largest) {
            (false, None) => Ok(names.into_iter().collect()),
            (true, Some(largest)) => Ok((0..=largest).map(|it| it.to_string()).collect()),
            (true, None) => Err(PeftError::bad_file(&self.file, format!("column `{column}` holds no tag"))),
            (false, Some(_)) => {
                Err(PeftError::bad_file(&self.file, format!("column `{column}` holds names as well as numbers")))
            }
        }
    }

    /// Words and tags: lists in two columns, by their usual names or those that were given for text and label.
    pub(crate) fn words(&self) -> Result<(Arc<Dataset>, String, String)> {
        let data = self.data()?;
        let columns = data.columns();
        let find = |given: &Option<String>, what: &'static str, usual: &[&str]| {
            let hit = usual.iter().find_map(|it| columns.iter().find(|name| name == it)).cloned();
            given.clone().or(hit).ok_or_else(|| {
                let reason =
                    format!("is not set, and no column is called {}; there are {}", usual.join(", "), quoted(&columns));
                data.bad(PeftError::config(what, reason))
            })
        };
        let words = find(&self.columns.text, "text", &["tokens", "words", "text"])?;
        let tags = find(&self.columns.label, "label", &["ner_tags", "tags", "pos_tags", "labels", "label"])?;
        Ok((data, words, tags))
    }
}

/// A list in a column; text is a list of words.
pub(crate) fn list(data: &Dataset, row: &Row, column: &str) -> Result<Vec<Value>> {
    let value = listed(data.value(row, column)?);
    let value = value.map_err(|reason| data.bad_row(row, format!("column `{column}` {reason}")))?;
    match &*value {
        Value::Array(items) => Ok(items.clone()),
        Value::String(text) => Ok(text.split_whitespace().map(Value::from).collect()),
        other => {
            Err(data.bad_row(row, format!("column `{column}` holds {}, expected a list", brief(&other.to_string()))))
        }
    }
}
