//! Conversations as text: the chat template of a checkpoint.
//!
//! Templates are rendered the way transformers does it (`utils/chat_template_utils.py`), `{% generation %}` blocks
//! included, and [`ChatTemplate::render_turns`] says which part of the text the assistant wrote.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, State, Value};
use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::data::dataset::{Dataset, Row, kind};
use crate::data::jinja;
use crate::data::strftime::{now, strftime};
use crate::data::tokenizer::{SpecialTokens, json_object};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else a template knows.
    pub role: String,
    /// What was said.
    #[serde(default)]
    pub content: String,
    /// Fields that only some templates read: `tool_calls`, `reasoning_content`, `name`, ….
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

impl Message {
    /// A turn without other fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), other: Map::new() }
    }
}

/// Reads a conversation: a list of `{"role", "content"}`, or of `{"from", "value"}` as ShareGPT writes it, whose
/// `human` and `gpt` become `user` and `assistant`.
///
/// # Errors
/// The column is missing or something else; the message says which turn is wrong.
pub fn messages(data: &Dataset, row: &Row, column: &str) -> Result<Vec<Message>> {
    let value = data.value(row, column)?;
    let Some(turns) = value.as_array() else {
        return Err(data.bad_row(row, format!("column `{column}` is {}, expected a list of messages", kind(value))));
    };
    if turns.is_empty() {
        return Err(data.bad_row(row, format!("column `{column}` holds no message")));
    }
    let read = |(index, turn): (usize, &Json)| {
        message(turn).map_err(|reason| data.bad_row(row, format!("message {} of `{column}` {reason}", index + 1)))
    };
    turns.iter().enumerate().map(read).collect()
}

fn message(turn: &Json) -> Result<Message, String> {
    let mut fields = turn.as_object().cloned().ok_or_else(|| format!("is {}, expected an object", kind(turn)))?;
    let role = fields.shift_remove("role").or_else(|| fields.shift_remove("from"));
    let role = match role.as_ref().and_then(Json::as_str) {
        Some("human") => "user",
        Some("gpt") => "assistant",
        Some(role) => role,
        None => return Err("has no `role`".to_owned()),
    };
    let content = match fields.shift_remove("content").or_else(|| fields.shift_remove("value")) {
        Some(Json::String(text)) => text,
        // A turn that calls tools says nothing.
        None | Some(Json::Null) if fields.contains_key("tool_calls") => String::new(),
        None | Some(Json::Null) => return Err("has no `content`".to_owned()),
        Some(other) => return Err(format!("has {} as its content, expected text", kind(&other))),
    };
    Ok(Message { role: role.to_owned(), content, other: fields })
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// The whole conversation.
    pub text: String,
    /// The parts that the assistant wrote, as byte ranges of `text`, in order.
    pub assistant: Vec<Range<usize>>,
}

/// The chat template of a checkpoint, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    special: SpecialTokens,
    marks_turns: bool,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja` of a folder or else `chat_template` of its `tokenizer_config.json`; of several
    /// templates the one called `default`. `None` when the folder has no template.
    ///
    /// # Errors
    /// A file that does not parse, or a list of templates without a `default`.
    pub fn load(folder: impl AsRef<Path>, special: &SpecialTokens) -> Result<Option<Self>> {
        let path = folder.as_ref().join("chat_template.jinja");
        if path.exists() {
            let source = std::fs::read_to_string(&path).map_err(PeftError::io("read", &path))?;
            return Self::new(source, special.clone()).map(Some).map_err(|error| PeftError::bad_file(&path, error));
        }
        let path = folder.as_ref().join("tokenizer_config.json");
        let source = match json_object(&path)?.and_then(|it| it.get("chat_template").cloned()) {
            None | Some(Json::Null) => return Ok(None),
            Some(Json::String(source)) => source,
            Some(Json::Array(named)) => {
                let default = named.iter().find(|it| it.get("name").and_then(Json::as_str) == Some("default"));
                match default.and_then(|it| it.get("template")).and_then(Json::as_str) {
                    Some(source) => source.to_owned(),
                    None => return Err(PeftError::bad_file(&path, "`chat_template` has no template named `default`")),
                }
            }
            Some(other) => {
                return Err(PeftError::bad_file(&path, format!("`chat_template` is {}, expected text", kind(&other))));
            }
        };
        Self::new(source, special.clone()).map(Some).map_err(|error| PeftError::bad_file(&path, error))
    }

    /// A template from its text. `special` gives `bos_token`, `eos_token` and the like.
    ///
    /// # Errors
    /// The text is not a template.
    pub fn new(source: impl Into<String>, special: SpecialTokens) -> Result<Self> {
        let (source, marks_turns) = jinja::generation_as_filter(&source.into(), TURN_FILTER);
        let mut environment = jinja::environment();
        environment.add_filter(TURN_FILTER, mark_turn);
        environment.add_function("strftime_now", |format: String| strftime(&format, now()));
        environment.template_from_str(&source).map_err(explain)?;
        Ok(Self { source, special, marks_turns, environment })
    }

    /// Fixes what `strftime_now` says, in seconds since 1970 (UTC). Without it that is the clock, and a template that
    /// writes the date gives other token ids tomorrow.
    pub fn at(mut self, seconds: i64) -> Self {
        self.environment.add_function("strftime_now", move |format: String| strftime(&format, seconds));
        self
    }

    /// The text of a conversation; `add_generation_prompt` ends it where the assistant is to go on.
    ///
    /// # Errors
    /// What the template raises, such as two user turns in a row.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, add_generation_prompt, &Map::new())
    }

    /// Like [`ChatTemplate::render`], with more variables: `tools`, `documents`, `enable_thinking`, ….
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String> {
        self.run(messages, add_generation_prompt, variables, false)
    }

    /// The text of a conversation and the parts of it that the assistant wrote.
    ///
    /// A template with `{% generation %}` blocks says itself which they are. For any other, the conversation is
    /// rendered turn by turn: a turn of the assistant is what follows the generation prompt, up to the end-of-text
    /// token where the template writes one and else up to the end of the turn.
    ///
    /// # Errors
    /// The template changes earlier turns when later ones follow, so that no part of the text belongs to a turn.
    pub fn render_turns(&self, messages: &[Message]) -> Result<Turns> {
        if messages.iter().any(|it| it.content.contains([OPEN, CLOSE])) {
            return Err(PeftError::Invalid(format!(
                "a message holds one of the noncharacters {OPEN:?} and {CLOSE:?}, which mark turns; remove them"
            )));
        }
        if self.marks_turns {
            return Ok(unmark(&self.run(messages, false, &Map::new(), true)?));
        }
        let text = self.render(messages, false)?;
        let mut assistant = Vec::new();
        for index in (0..messages.len()).filter(|it| messages[*it].role == "assistant") {
            let upto = self.render(&messages[..=index], false)?;
            let start = self.start_of_turn(messages, index, &upto)?;
            if !text.starts_with(&upto) || start.is_none() {
                return Err(PeftError::unsupported(
                    "the loss on assistant turns alone",
                    "this chat template rewrites earlier turns when later ones follow; put {% generation %} and \
                     {% endgeneration %} around the assistant's part of the template, or split conversations into \
                     prompt and completion",
                ));
            }
            let start = start.unwrap_or_default();
            assistant.push(start..self.end_of_turn(&upto, start));
        }
        Ok(Turns { text, assistant })
    }

    /// Where the assistant's words start in `upto`, the text up to and with turn `index`.
    fn start_of_turn(&self, messages: &[Message], index: usize, upto: &str) -> Result<Option<usize>> {
        // A template may refuse a conversation that ends here, or read `messages[0]` of none.
        if let Ok(prompt) = self.render(&messages[..index], true)
            && index > 0
            && upto.starts_with(&prompt)
        {
            return Ok(Some(prompt.len()));
        }
        // The generation prompt may hold what the turn lacks, such as an opened thought. Then the words themselves show
        // where they would stand.
        let mut probe = messages[..=index].to_vec();
        probe[index].content = OPEN.to_string();
        let probe = self.render(&probe, false)?;
        Ok(probe.find(OPEN).filter(|it| upto.starts_with(&probe[..*it])))
    }

    fn end_of_turn(&self, upto: &str, start: usize) -> usize {
        let turn = &upto[start..];
        let end = self.special.get("eos_token").filter(|it| !it.is_empty()).and_then(|eos| {
            let end = turn.rfind(eos)? + eos.len();
            // The line break that a template puts behind is never generated.
            turn[end..].trim().is_empty().then_some(end)
        });
        start + end.unwrap_or(turn.len())
    }

    fn run(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
        mark: bool,
    ) -> Result<String> {
        let mut scope: BTreeMap<&str, Value> = BTreeMap::new();
        scope.extend(self.special.roles.iter().map(|(role, token)| (role.as_str(), Value::from(token.as_str()))));
        // Absent is none and not undefined: templates ask `tools is not none`.
        scope.extend([("tools", Value::from(())), ("documents", Value::from(()))]);
        scope.extend(variables.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))));
        scope.insert("messages", messages.iter().map(|it| Value::from_serialize(with_reasoning(it))).collect());
        scope.insert("add_generation_prompt", Value::from(add_generation_prompt));
        scope.insert(MARKING, Value::from(mark));
        let template = self.environment.template_from_str(&self.source).map_err(explain)?;
        template.render(scope).map_err(explain)
    }
}

/// Templates disagree about the name of a model's thoughts: `_alias_reasoning_fields` in transformers.
fn with_reasoning(message: &Message) -> Message {
    let mut message = message.clone();
    let names = ["reasoning_content", "thinking", "reasoning"];
    if let Some(thoughts) = names.iter().find_map(|it| message.other.get(*it).filter(|it| !it.is_null())).cloned() {
        message.other.entry("thinking").or_insert_with(|| thoughts.clone());
        message.other.insert("reasoning_content".to_owned(), thoughts);
    }
    message
}

/// Stands for `{% generation %}`, see [`jinja::generation_as_filter`].
const TURN_FILTER: &str = "peft_turn";
const MARKING: &str = "peft_marking";
/// Noncharacters: Unicode keeps them free for uses such as this one.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

fn mark_turn(state: &State, turn: String) -> String {
    match state.lookup(MARKING) {
        Some(mark) if mark.is_true() => format!("{OPEN}{turn}{CLOSE}"),
        _ => turn,
    }
}

fn unmark(marked: &str) -> Turns {
    let mut turns = Turns { text: String::with_capacity(marked.len()), assistant: Vec::new() };
    let mut start = 0;
    for letter in marked.chars() {
        match letter {
            OPEN => start = turns.text.len(),
            CLOSE => turns.assistant.push(start..turns.text.len()),
            other => turns.text.push(other),
        }
    }
    turns
}

fn explain(error: Error) -> PeftError {
    let reason = match error.kind() {
        // What a template raises is written for the user already.
        ErrorKind::InvalidOperation if error.detail().is_some() => error.detail().unwrap_or_default().to_owned(),
        _ => error.to_string(),
    };
    PeftError::Invalid(format!("the chat template says: {reason}"))
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
