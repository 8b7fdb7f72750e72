//! Questions about contexts, as SQuAD has them.

use std::ops::Range;
use std::sync::Arc;

use peft_core::Result;
use serde_json::Value;

use crate::data::dataset::{Dataset, Row, quoted};
use crate::data::text_data::TextData;

/// A question about a context, and where the context answers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// The text that may hold the answer.
    pub context: String,
    /// Reference answers as bytes of the context; none if it does not say. The first is learned.
    pub answers: Vec<Range<usize>>,
}

impl TextData {
    /// Questions about contexts in SQuAD's columns, or those that were given for text, prompt and label.
    pub(crate) fn questions(&self) -> Result<(Arc<Dataset>, Vec<Question>)> {
        let data = match unfolded(&*self.data()?) {
            Some(data) => Arc::new(data),
            None => self.data()?,
        };
        let columns = data.columns();
        let find = |given: &Option<String>, usual: &str| {
            let hit = columns.iter().find(|it| it.eq_ignore_ascii_case(usual)).cloned();
            given
                .clone()
                .or(hit)
                .ok_or_else(|| data.bad(format!("it has no column `{usual}`; it has {}", quoted(&columns))))
        };
        let [context, question, answers] = [
            find(&self.columns.text, "context")?,
            find(&self.columns.prompt, "question")?,
            find(&self.columns.label, "answers")?,
        ];
        let read = |row: &Row| {
            let text = data.text(row, &context)?;
            let places = answer_places(data.value(row, &answers)?, &text)
                .map_err(|reason| data.bad_row(row, format!("column `{answers}`: {reason}")))?;
            // transformers takes spaces off the front of questions, which may be so many that no text fits behind.
            let question = data.text(row, &question)?.trim_start().to_owned();
            Ok(Question { question, context: text, answers: places })
        };
        let questions = data.rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        self.say_unread(&data, &[&Some(context), &Some(question), &Some(answers)]);
        Ok((data, questions))
    }
}

/// SQuAD as it is published: articles of paragraphs, each a context with its questions. `None` for rows of another form.
fn unfolded(data: &Dataset) -> Option<Dataset> {
    let list = |value: &Value, name: &str| value.get(name)?.as_array().cloned();
    let mut rows = Vec::new();
    for row in &data.rows {
        for paragraph in row.fields.get("paragraphs")?.as_array()? {
            for asked in list(paragraph, "qas")? {
                let mut fields = asked.as_object()?.clone();
                fields.insert("context".into(), paragraph.get("context")?.clone());
                rows.push(Row { fields, ..row.clone() });
            }
        }
    }
    Some(Dataset { files: data.files.clone(), rows })
}

/// Where answers stand in their text, in bytes: SQuAD's `{"text": […], "answer_start": […]}`, a list of `{"text", "answer_start"}`, or
/// either as JSON in a cell. Starts count characters, as in Python.
fn answer_places(value: &Value, context: &str) -> std::result::Result<Vec<Range<usize>>, String> {
    let place = |text: &Value, start: &Value| {
        let (Some(text), Some(start)) = (text.as_str(), start.as_u64()) else {
            return Err(format!("{text} and {start} are no text and its start"));
        };
        let first = context.char_indices().map(|it| it.0).nth(start as usize);
        let place = first.map(|first| first..first + text.len());
        match place.filter(|it| context.get(it.clone()) == Some(text)) {
            Some(place) => Ok(place),
            None => Err(format!("`{text}` does not stand at character {start} of the text")),
        }
    };
    let shape = r#"expected {"text": […], "answer_start": […]}"#;
    match value {
        Value::String(cell) => match serde_json::from_str::<Value>(cell) {
            Ok(Value::String(_)) | Err(_) => Err(format!("it holds `{cell}`, {shape}")),
            Ok(value) => answer_places(&value, context),
        },
        Value::Array(items) => items.iter().map(|it| place(&it["text"], &it["answer_start"])).collect(),
        Value::Object(fields) => {
            let list = |name: &str| fields.get(name).and_then(Value::as_array);
            let (Some(texts), Some(starts)) = (list("text"), list("answer_start")) else {
                return Err(format!("it holds {value}, {shape}"));
            };
            if texts.len() != starts.len() {
                return Err(format!("it holds {} texts and {} starts", texts.len(), starts.len()));
            }
            texts.iter().zip(starts).map(|(text, start)| place(text, start)).collect()
        }
        other => Err(format!("it holds {other}, {shape}")),
    }
}
