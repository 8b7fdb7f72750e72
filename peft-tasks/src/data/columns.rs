//! Which column of a data file plays which part.

use std::collections::BTreeMap;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

use crate::data::dataset::{Dataset, Row, quoted};

/// Names of the columns that a task reads. What is `None` is not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Running text, or the first sequence of a pair.
    pub text: Option<String>,
    /// The second sequence of a pair.
    pub text_pair: Option<String>,
    /// What the model is given.
    pub prompt: Option<String>,
    /// More of what the model is given; put behind the prompt after a blank line where a row has some.
    pub context: Option<String>,
    /// What the model is to write after the prompt.
    pub completion: Option<String>,
    /// A conversation: a list of messages.
    pub messages: Option<String>,
    /// A class, a number, or a list of classes.
    pub label: Option<String>,
    /// What a conversation starts with, beside its turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What was said before the prompt: a list of pairs of question and answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<String>,
    /// Tools that a conversation may use, as its template takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
    /// Columns of parts that only tasks of other crates know, by the names of the parts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, String>,
}

const TEXT: &[&str] = &["text", "content", "sentence", "sentence1", "premise", "question1"];
const TEXT_PAIR: &[&str] = &["text_pair", "sentence2", "hypothesis", "question2"];
const PROMPT: &[&str] = &["prompt", "instruction", "question"];
const CONTEXT: &[&str] = &["input", "context"];
const COMPLETION: &[&str] = &["completion", "response", "output", "answer"];
const MESSAGES: &[&str] = &["messages", "conversations"];
const LABEL: &[&str] = &["label", "labels"];
const SYSTEM: &[&str] = &["system"];
const HISTORY: &[&str] = &["history"];
const TOOLS: &[&str] = &["tools"];

impl Columns {
    /// Finds the usual names (`text`, `content`; `prompt`, `instruction`, `question`; `completion`, `response`,
    /// `output`, `answer`; `messages`, `conversations`; `label`, `labels`; …) among `names`, best known first.
    ///
    /// # Errors
    /// None of them is there.
    pub fn detect<T: AsRef<str>>(names: &[T]) -> Result<Self> {
        let (prompt, completion) = (find(names, PROMPT), find(names, COMPLETION));
        let asks = prompt.is_some() && completion.is_some();
        let columns = Self {
            text: find(names, TEXT),
            text_pair: find(names, TEXT_PAIR),
            context: if asks { find(names, CONTEXT) } else { None },
            // Half of a pair is something else: a `question` to classify, an `output` of another system.
            prompt: prompt.filter(|_| asks),
            completion: completion.filter(|_| asks),
            messages: find(names, MESSAGES),
            label: find(names, LABEL),
            ..Self::default()
        }
        .with_context(names);
        if columns.text.is_none() && columns.messages.is_none() && !asks {
            return Err(PeftError::Invalid(format!(
                "no column has a usual name (`text`, `prompt` with `completion`, `messages`); the columns are {}; say \
                 which one to read",
                quoted(names)
            )));
        }
        Ok(columns)
    }

    /// Fills in from [`Columns::detect`] what is `None`. A source of text that was given (`text`, `prompt` or
    /// `messages`) stays the only one.
    pub fn or_detected<T: AsRef<str>>(self, names: &[T]) -> Result<Self> {
        let label = self.label.clone().or_else(|| find(names, LABEL));
        if self.prompt.is_some() {
            let completion = self.completion.clone().or_else(|| find(names, COMPLETION));
            return Ok(Self { label, completion, ..self }.with_context(names));
        }
        if self.text.is_some() || self.messages.is_some() {
            return Ok(Self { label, ..self }.with_context(names));
        }
        let found = Self::detect(names)?;
        Ok(Self {
            text_pair: self.text_pair.or(found.text_pair),
            context: self.context.or(found.context),
            completion: self.completion.or(found.completion),
            label,
            system: self.system.or(found.system),
            history: self.history.or(found.history),
            tools: self.tools.or(found.tools),
            more: self.more,
            ..found
        })
    }

    /// For prompts that a template words: only the completion is a column.
    ///
    /// # Errors
    /// If no column has the name of one.
    pub fn for_prompt_template<T: AsRef<str>>(self, names: &[T]) -> Result<Self> {
        let completion = self.completion.clone().or_else(|| find(names, COMPLETION));
        let completion = Some(completion.ok_or_else(|| unset("completion", names))?);
        let label = self.label.clone().or_else(|| find(names, LABEL));
        Ok(Self { completion, label, prompt: None, messages: None, text: None, ..self })
    }

    /// Fills in what may stand beside the text.
    fn with_context<T: AsRef<str>>(self, names: &[T]) -> Self {
        Self {
            system: self.system.or_else(|| find(names, SYSTEM)),
            history: self.history.or_else(|| find(names, HISTORY)),
            tools: self.tools.or_else(|| find(names, TOOLS)),
            ..self
        }
    }

    /// The column of a part that only some task knows: the one that was given for it, or one of the part's own name.
    ///
    /// # Errors
    /// If there is neither; the message lists the columns.
    pub fn of_part(&self, part: &str, data: &Dataset) -> Result<String> {
        self.of_part_called(part, &[part], data)
    }

    /// The same for a part with other usual names, best known first.
    ///
    /// # Errors
    /// As [`of_part`](Self::of_part).
    pub fn of_part_called(&self, part: &str, usual: &[&str], data: &Dataset) -> Result<String> {
        let names = data.columns();
        self.more.get(part).cloned().or_else(|| find(&names, usual)).ok_or_else(|| {
            let usual = if usual == [part] { "of this name".to_owned() } else { format!("called {}", quoted(usual)) };
            let reason = format!("names no column and there is none {usual}; there are {}", quoted(&names));
            data.bad(PeftError::config(part, reason))
        })
    }

    /// The prompt of a row, with its context behind it.
    ///
    /// # Errors
    /// No prompt column is set, or the row lacks it. A missing or empty context is no error.
    pub fn prompt_of(&self, data: &Dataset, row: &Row) -> Result<String> {
        let mut prompt = data.text(row, required("prompt", &self.prompt, data)?)?;
        if let Some(column) = &self.context
            && row.fields.get(column).is_some_and(|it| !it.is_null())
        {
            let context = data.text(row, column)?;
            if !context.trim().is_empty() {
                prompt.push_str("\n\n");
                prompt.push_str(&context);
            }
        }
        Ok(prompt)
    }
}

fn find<T: AsRef<str>>(names: &[T], usual: &[&str]) -> Option<String> {
    let hit = |wanted: &&str| names.iter().map(AsRef::as_ref).find(|it| it.eq_ignore_ascii_case(wanted));
    usual.iter().find_map(hit).map(str::to_owned)
}

/// The name of a column that a task cannot do without.
///
/// # Errors
/// It is not set; `part` is the field of [`Columns`] to set. The message names the file of `data` and its columns.
pub fn required<'a>(part: &str, column: &'a Option<String>, data: &Dataset) -> Result<&'a str> {
    column.as_deref().ok_or_else(|| data.bad(unset(part, &data.columns())))
}

fn unset<T: AsRef<str>>(part: &str, names: &[T]) -> PeftError {
    let reason = format!(
        "is not set and no column has a usual name for it; the columns are {}; name the column to read",
        quoted(names)
    );
    PeftError::config(part, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::TextRows;

    #[test]
    fn usual_names_are_found() {
        let found = Columns::detect(&["id", "Text", "label"]).unwrap();
        assert_eq!((found.text.as_deref(), found.label.as_deref()), (Some("Text"), Some("label")));
        let found = Columns::detect(&["instruction", "input", "output"]).unwrap();
        assert_eq!(found.prompt.as_deref(), Some("instruction"));
        assert_eq!(found.context.as_deref(), Some("input"));
        assert_eq!(found.completion.as_deref(), Some("output"));
        let found = Columns::detect(&["premise", "hypothesis", "label"]).unwrap();
        assert_eq!((found.text.as_deref(), found.text_pair.as_deref()), (Some("premise"), Some("hypothesis")));
        assert_eq!(Columns::detect(&["conversations"]).unwrap().messages.as_deref(), Some("conversations"));
    }

    #[test]
    fn nothing_found_lists_the_columns() {
        let error = Columns::detect(&["question", "body"]).unwrap_err().to_string();
        assert!(error.contains("the columns are `question`, `body`"), "{error}");
        let names: Vec<String> = (0..60).map(|it| format!("{it}\n").repeat(100)).collect();
        let error = Columns::detect(&names).unwrap_err().to_string();
        assert!(error.len() < 2000 && !error.contains('\n') && error.contains("and 40 more"), "{error}");
    }

    #[test]
    fn a_given_name_wins_and_admits_no_rival() {
        let given = Columns { text: Some("body".into()), ..Columns::default() };
        let columns = given.or_detected(&["body", "messages", "label"]).unwrap();
        assert_eq!(columns.text.as_deref(), Some("body"));
        assert_eq!(columns.messages, None);
        let given = Columns { text: Some("body".into()), ..Columns::default() };
        assert_eq!(given.or_detected(&["body", "text", "label"]).unwrap().label.as_deref(), Some("label"));
    }

    #[test]
    fn context_follows_the_prompt_where_there_is_some() {
        let rows =
            "{\"instruction\":\"Sum\",\"input\":\"1 2\",\"output\":\"3\"}\n{\"instruction\":\"Hi\",\"input\":\"\"}";
        let data = Dataset::parse("a.jsonl", rows, TextRows::Lines).unwrap();
        let columns = Columns::detect(&data.columns()).unwrap();
        assert_eq!(columns.prompt_of(&data, &data.rows[0]).unwrap(), "Sum\n\n1 2");
        assert_eq!(columns.prompt_of(&data, &data.rows[1]).unwrap(), "Hi");
        let error = required("label", &columns.label, &data).unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl is not usable: `label` is not set"), "{error}");
        assert!(error.contains("the columns are `instruction`, `input`, `output`;"), "{error}");
    }
}
