//! Conversations in data files, in the forms of OpenAI, TRL, ShareGPT and Alpaca.

use std::collections::BTreeMap;

use peft_core::{Result, brief};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::data::columns::Columns;
use crate::data::dataset::{Dataset, Row, kind};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else a template knows.
    pub role: String,
    /// What was said.
    #[serde(default)]
    pub content: String,
    /// Whether the loss counts it, if it is the assistant's: `weight` of OpenAI's fine-tuning format.
    #[serde(skip, default = "yes")]
    pub learned: bool,
    /// Fields that only some templates read: `tool_calls`, `reasoning_content`, `name`, ….
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn yes() -> bool {
    true
}

/// The role whose turns are learned.
pub const ASSISTANT: &str = "assistant";

impl Message {
    /// A turn without other fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), learned: true, other: Map::new() }
    }
}

/// A conversation, and what its template is told beside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// More variables of the template: `tools`, and those of a column `chat_template_kwargs`.
    pub variables: Map<String, Value>,
}

/// Reads conversations.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// What the role that answers is called in the file, if neither `assistant` nor `gpt`.
    pub assistant_role: Option<String>,
    /// Whether prompts are learned too, and with them the answers in prompts.
    pub learns_prompts: bool,
}

/// Reads a conversation: a list of `{"role", "content"}`, or of `{"from", "value"}` as ShareGPT writes it, whose
/// `human` and `gpt` become `user` and `assistant`.
///
/// # Errors
/// The column is missing or something else; the message says which turn is wrong.
pub fn messages(data: &Dataset, row: &Row, column: &str) -> Result<Vec<Message>> {
    Reader::default().messages(data, row, column)
}

/// Whether a cell holds a list of turns and not a text: as JSON, or as JSON in a text, which is how CSV files have it.
pub(crate) fn is_list_of_turns(value: &Value) -> bool {
    let is_turn = |it: &Value| it.as_object().is_some_and(|it| it.contains_key("role") || it.contains_key("from"));
    let is_list = |it: &Value| it.as_array().is_some_and(|it| !it.is_empty() && it.iter().all(is_turn));
    match value {
        Value::String(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str(text).is_ok_and(|it| is_list(&it))
        }
        other => is_list(other),
    }
}

/// Whether a cell holds anything.
pub(crate) fn is_filled(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !matches!(text.trim(), "" | "[]" | "null"),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

impl Reader {
    /// The conversation in a column of messages. Beside it, LLaMA-Factory has columns `system` and `tools`, OpenAI `tools`, and
    /// TRL `chat_template_kwargs`.
    ///
    /// # Errors
    /// A column is missing or something else.
    pub fn conversation(&self, data: &Dataset, row: &Row, columns: &Columns, column: &str) -> Result<Conversation> {
        let mut messages = self.messages(data, row, column)?;
        // A system turn of the conversation itself goes before the column, as in LLaMA-Factory.
        if messages.first().is_none_or(|it| it.role != "system") {
            let system = self.system(data, row, columns)?;
            messages.splice(0..0, system);
        }
        Ok(Conversation { messages, variables: variables(data, row, columns)? })
    }

    /// A prompt and its completion as lists of turns, as TRL has them: the loss counts the completion's.
    ///
    /// # Errors
    /// One of them is a text, or something else.
    pub fn completion(&self, data: &Dataset, row: &Row, columns: &Columns, parts: [&str; 2]) -> Result<Conversation> {
        let [prompt, completion] = parts.map(|it| self.messages(data, row, it));
        let mut messages: Vec<Message> = self.system(data, row, columns)?.into_iter().collect();
        messages.extend(prompt?.into_iter().map(|it| Message { learned: it.learned && self.learns_prompts, ..it }));
        messages.extend(completion?);
        Ok(Conversation { messages, variables: variables(data, row, columns)? })
    }

    /// An instruction with what was said before: Alpaca's `system` and `history` as LLaMA-Factory reads them, where a history is
    /// a list of pairs of question and answer. All answers are learned.
    ///
    /// # Errors
    /// A column is missing or something else.
    pub fn instruction(
        &self,
        data: &Dataset,
        row: &Row,
        columns: &Columns,
        prompt: String,
        answer: String,
    ) -> Result<Conversation> {
        let mut messages: Vec<Message> = self.system(data, row, columns)?.into_iter().collect();
        if let Some(column) = &columns.history
            && let Some(value) = row.fields.get(column).filter(|it| is_filled(Some(it)))
        {
            let odd =
                || data.bad_row(row, format!("column `{column}` is no list of pairs, [[\"question\", \"answer\"], …]"));
            let pairs = parsed(value).and_then(|it| it.as_array().cloned()).ok_or_else(odd)?;
            for pair in &pairs {
                let (Some(asked), Some(said)) = (pair[0].as_str(), pair[1].as_str()) else { return Err(odd()) };
                messages.extend([Message::new("user", asked), Message::new(ASSISTANT, said)]);
            }
        }
        messages.extend([Message::new("user", prompt), Message::new(ASSISTANT, answer)]);
        Ok(Conversation { messages, variables: variables(data, row, columns)? })
    }

    fn system(&self, data: &Dataset, row: &Row, columns: &Columns) -> Result<Option<Message>> {
        let Some(column) = columns.system.as_ref().filter(|it| is_filled(row.fields.get(*it))) else { return Ok(None) };
        Ok(Some(Message::new("system", data.text(row, column)?)))
    }

    fn messages(&self, data: &Dataset, row: &Row, column: &str) -> Result<Vec<Message>> {
        let value = data.value(row, column)?;
        let turns = match parsed(value) {
            Some(Value::Array(turns)) => turns,
            _ if value.as_str().is_some_and(|it| it.trim_start().starts_with("[{'")) => {
                let reason = "is a list as Python prints it; write JSON into the file, with `json.dumps`";
                return Err(data.bad_row(row, format!("column `{column}` {reason}")));
            }
            _ => {
                let reason = format!("column `{column}` is {}, expected a list of messages", kind(value));
                return Err(data.bad_row(row, reason));
            }
        };
        if turns.is_empty() {
            return Err(data.bad_row(row, format!("column `{column}` holds no message")));
        }
        let read = |(index, turn): (usize, &Value)| {
            self.message(turn)
                .map_err(|reason| data.bad_row(row, format!("message {} of `{column}` {reason}", index + 1)))
        };
        turns.iter().enumerate().map(read).collect()
    }

    fn message(&self, turn: &Value) -> Result<Message, String> {
        let mut fields = turn.as_object().cloned().ok_or_else(|| format!("is {}, expected an object", kind(turn)))?;
        let role = fields.shift_remove("role").or_else(|| fields.shift_remove("from"));
        let role = role.as_ref().and_then(Value::as_str).ok_or("has no `role`")?;
        let learned = match fields.shift_remove("weight") {
            None | Some(Value::Null) => true,
            Some(weight) if weight.as_f64() == Some(0.0) => false,
            Some(weight) if weight.as_f64() == Some(1.0) => true,
            Some(weight) => return Err(format!("has the weight {weight}; it counts with 1 or not with 0")),
        };
        let content = fields.shift_remove("content").or_else(|| fields.shift_remove("value"));
        // LLaMA-Factory's names of the turns of tools.
        if role == "function_call" {
            let call = content.as_ref().and_then(parsed).filter(Value::is_object).ok_or("holds no call as JSON")?;
            fields.insert("tool_calls".into(), json!([{"type": "function", "function": call}]));
            return Ok(Message { role: ASSISTANT.into(), content: String::new(), learned, other: fields });
        }
        let role = match role {
            _ if self.assistant_role.as_deref() == Some(role) => ASSISTANT,
            "human" => "user",
            "gpt" => ASSISTANT,
            "observation" => "tool",
            role => role,
        };
        let content = match content {
            Some(Value::String(text)) => text,
            // A turn that calls tools says nothing.
            None | Some(Value::Null) if fields.contains_key("tool_calls") => String::new(),
            None | Some(Value::Null) => return Err("has no `content`".to_owned()),
            Some(Value::Array(parts)) => parts.iter().map(part).collect::<Result<String, String>>()?,
            Some(other) => return Err(format!("has {} as its content, expected text", kind(&other))),
        };
        Ok(Message { role: role.to_owned(), content, learned, other: fields })
    }
}

/// The text of a part of a content, as OpenAI has them.
fn part(part: &Value) -> Result<String, String> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    match (part.as_str().or_else(|| part.get("text")?.as_str()), kind) {
        (Some(text), "text" | "input_text" | "output_text") => Ok(text.to_owned()),
        _ => Err(format!("has a part of the kind `{kind}`, but only text can be learned")),
    }
}

/// A cell, or the JSON in its text.
fn parsed(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        other => Some(other.clone()),
    }
}

/// Column of TRL with variables of the template.
pub(crate) const TEMPLATE_VARIABLES: &str = "chat_template_kwargs";

fn variables(data: &Dataset, row: &Row, columns: &Columns) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    if let Some(column) = &columns.tools
        && let Some(value) = row.fields.get(column).filter(|it| is_filled(Some(it)))
    {
        match parsed(value) {
            Some(tools @ Value::Array(_)) => variables.insert("tools".to_owned(), tools),
            _ => return Err(data.bad_row(row, format!("column `{column}` is no list of tools as JSON"))),
        };
    }
    if let Some(value) = row.fields.get(TEMPLATE_VARIABLES).filter(|it| is_filled(Some(it))) {
        match parsed(value) {
            Some(Value::Object(more)) => variables.extend(more),
            _ => return Err(data.bad_row(row, format!("column `{TEMPLATE_VARIABLES}` is no object"))),
        }
    }
    Ok(variables)
}

/// How often each role speaks, for a message: `user` 12, `bot` 11.
pub(crate) fn said_roles(roles: &BTreeMap<String, usize>) -> String {
    const MOST: usize = 8;
    let shown: Vec<String> =
        roles.iter().take(MOST).map(|(role, count)| format!("`{}` {count}", brief(role))).collect();
    match roles.len() {
        0..=MOST => shown.join(", "),
        many => format!("{} and {} more", shown.join(", "), many - MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::TextRows;

    fn read(row: &Value, reader: &Reader) -> Result<Conversation, String> {
        let data = Dataset::parse("a.jsonl", &row.to_string(), TextRows::Lines).unwrap();
        let columns = Columns::detect(&data.columns()).unwrap();
        let row = &data.rows[0];
        let found = match &columns.messages {
            Some(column) => reader.conversation(&data, row, &columns, column),
            None if row.fields.get("completion").is_some_and(is_list_of_turns) => {
                reader.completion(&data, row, &columns, ["prompt", "completion"])
            }
            None => reader.instruction(&data, row, &columns, "ask".into(), "say".into()),
        };
        found.map_err(|it| it.to_string())
    }

    fn roles(found: &Conversation) -> Vec<(&str, &str, bool)> {
        found.messages.iter().map(|it| (it.role.as_str(), it.content.as_str(), it.learned)).collect()
    }

    #[test]
    fn what_stands_beside_a_conversation_is_part_of_it() {
        let plain = Reader::default();
        // LLaMA-Factory's ShareGPT.
        let row = json!({"system": "be brief", "tools": "[{\"name\": \"f\"}]", "conversations": [
            {"from": "human", "value": "hi"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
            {"from": "observation", "value": "3"}, {"from": "gpt", "value": "three"}]});
        let found = read(&row, &plain).unwrap();
        let expected =
            [("system", "be brief", true), ("user", "hi", true), ("assistant", "", true), ("tool", "3", true)];
        assert_eq!(roles(&found)[..4], expected);
        assert_eq!(found.messages[2].other["tool_calls"][0]["function"]["name"], "f");
        assert_eq!(found.variables["tools"][0]["name"], "f");
        // OpenAI: a turn of weight 0 is read and not learned, a content may come in parts.
        let row = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "no", "weight": 0}, {"role": "assistant", "content": "yes", "weight": 1}]});
        assert_eq!(
            roles(&read(&row, &plain).unwrap()),
            [("user", "ab", true), ("assistant", "no", false), ("assistant", "yes", true)]
        );
        // CSV: JSON in a cell.
        let row = json!({"messages": "[{\"role\": \"user\", \"content\": \"x\"}]"});
        assert_eq!(roles(&read(&row, &plain).unwrap()), [("user", "x", true)]);
        // TRL: of prompt and completion the latter is learned.
        let row = json!({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "completion": [{"role": "assistant", "content": "z"}], "chat_template_kwargs": {"enable_thinking": false}});
        let found = read(&row, &plain).unwrap();
        assert_eq!(roles(&found), [("user", "x", false), ("assistant", "y", false), ("assistant", "z", true)]);
        assert_eq!(found.variables["enable_thinking"], false);
        // Alpaca with what was said before.
        let row = json!({"instruction": "ask", "output": "say", "system": "s", "history": [["q", "a"]]});
        let expected = ["s", "q", "a", "ask", "say"];
        assert_eq!(
            read(&row, &plain).unwrap().messages.iter().map(|it| it.content.as_str()).collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn the_answering_role_can_be_named() {
        let row = json!({"messages": [{"role": "user", "content": "x"}, {"role": "bot", "content": "y"}]});
        assert_eq!(read(&row, &Reader::default()).unwrap().messages[1].role, "bot");
        let reader = Reader { assistant_role: Some("bot".into()), ..Reader::default() };
        assert_eq!(read(&row, &reader).unwrap().messages[1].role, "assistant");
    }

    #[test]
    fn what_is_not_a_conversation_is_said() {
        let error = |row: Value| read(&row, &Reader::default()).unwrap_err();
        assert!(error(json!({"messages": "[{'role': 'user'}]"})).contains("as Python prints it"));
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]});
        assert!(error(image).contains("message 1 of `messages` has a part of the kind `image_url`"));
        assert!(
            error(json!({"messages": [{"role": "user", "content": "x", "weight": 0.5}]}))
                .contains("has the weight 0.5")
        );
        assert!(
            error(json!({"messages": [{"role": "user", "content": "x"}], "tools": "f"})).contains("no list of tools")
        );
        assert!(error(json!({"instruction": "a", "output": "b", "history": "x"})).contains("no list of pairs"));
    }
}
