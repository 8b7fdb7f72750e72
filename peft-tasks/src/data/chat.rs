//! Conversations as text: the chat template of a checkpoint.
//!
//! Templates are rendered the way transformers does it (`utils/chat_template_utils.py`), `{% generation %}` blocks
//! included, and [`ChatTemplate::render_turns`] says which part of the text the assistant wrote.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::{Environment, Error, ErrorKind, State, Value};
use peft_core::{PeftError, Result};
use serde_json::{Map, Value as Json};

use crate::data::dataset::kind;
use crate::data::jinja;
use crate::data::strftime::{now, strftime};

use crate::data::messages::ASSISTANT;
pub use crate::data::messages::{Conversation, Message, messages};
use crate::data::special_tokens::{SpecialTokens, TOKENIZER_CONFIG, json_object};

/// Name of the file of a chat template.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Name of the file of the template for conversations with tools, beside the former.
const TOOLS_FILE: &str = "additional_chat_templates/tool_use.jinja";

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
    /// What words conversations with tools, if that is another one: `tool_use`.
    with_tools: Option<Box<ChatTemplate>>,
    /// The file that it is from, for messages.
    file: Option<PathBuf>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja` of a folder or else `chat_template` of its `tokenizer_config.json`; of several
    /// templates the one called `default`, and `tool_use` for conversations with tools. `None` when the folder has no
    /// template.
    ///
    /// # Errors
    /// A file that does not parse, or a list of templates without a `default`.
    pub fn load(folder: impl AsRef<Path>, special: &SpecialTokens) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let build = |source: &str, path: &Path| match Self::new(source, special.clone()) {
            Ok(template) => Ok(Self { file: Some(path.to_path_buf()), ..template }),
            Err(error) => Err(PeftError::bad_file(path, error)),
        };
        let path = folder.join(TEMPLATE_FILE);
        if path.exists() {
            let read = |path: &Path| {
                let source = peft_core::files::plain::read_text(path)?;
                build(&source, path)
            };
            let tools = folder.join(TOOLS_FILE);
            let tools = tools.is_file().then(|| read(&tools)).transpose()?;
            return Ok(Some(Self { with_tools: tools.map(Box::new), ..read(&path)? }));
        }
        let path = folder.join(TOKENIZER_CONFIG);
        match json_object(&path)?.and_then(|it| it.get("chat_template").cloned()) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(source)) => build(&source, &path).map(Some),
            Some(Json::Array(several)) => {
                let named = |name: &str| {
                    let found = several.iter().find(|it| it.get("name").and_then(Json::as_str) == Some(name));
                    found.and_then(|it| it.get("template")).and_then(Json::as_str)
                };
                let Some(default) = named("default") else {
                    return Err(PeftError::bad_file(&path, "`chat_template` has no template named `default`"));
                };
                let tools = named("tool_use").map(|it| build(it, &path)).transpose()?;
                Ok(Some(Self { with_tools: tools.map(Box::new), ..build(default, &path)? }))
            }
            Some(other) => {
                Err(PeftError::bad_file(&path, format!("`chat_template` is {}, expected text", kind(&other))))
            }
        }
    }

    /// Whether a folder has a template.
    pub fn is_in(folder: &Path) -> bool {
        let in_config = |it: Map<String, Json>| it.get("chat_template").is_some_and(|it| !it.is_null());
        let config = folder.join(TOKENIZER_CONFIG);
        folder.join(TEMPLATE_FILE).is_file() || json_object(&config).ok().flatten().is_some_and(in_config)
    }

    /// A template from its text. `special` gives `bos_token`, `eos_token` and the like.
    ///
    /// # Errors
    /// The text is not a template.
    pub fn new(source: impl Into<String>, special: SpecialTokens) -> Result<Self> {
        let (source, marks_turns) = jinja::prepare(&source.into(), TURN_FILTER)?;
        let mut environment = jinja::environment();
        environment.add_filter(TURN_FILTER, mark_turn);
        environment.add_function("strftime_now", |format: String| strftime(&format, now()));
        environment.template_from_str(&source).map_err(|it| explain(it, None))?;
        Ok(Self { source, special, marks_turns, environment, with_tools: None, file: None })
    }

    /// The file that it is from, if it is from one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Fixes what `strftime_now` says, in seconds since 1970 (UTC). Without it that is the clock, and a template that
    /// writes the date gives other token ids tomorrow.
    pub fn at(mut self, seconds: i64) -> Self {
        self.environment.add_function("strftime_now", move |format: String| strftime(&format, seconds));
        self.with_tools = self.with_tools.map(|it| Box::new(it.at(seconds)));
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
        self.template_for(variables).run(messages, add_generation_prompt, variables, false)
    }

    /// The template for conversations with tools, if there are tools and it is another one.
    fn template_for(&self, variables: &Map<String, Json>) -> &Self {
        let has_tools = variables.get("tools").is_some_and(|it| !it.is_null());
        self.with_tools.as_deref().filter(|_| has_tools).unwrap_or(self)
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
        self.render_turns_with(messages, &Map::new())
    }

    /// Like [`ChatTemplate::render_turns`], with more variables: `tools`, `documents`, `enable_thinking`, …. Turns that are not
    /// [learned](Message::learned) count as another's.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_turns`], or a template with `{% generation %}` blocks has not one for each answer, so that
    /// nobody knows which of them is not to be learned.
    pub fn render_turns_with(&self, messages: &[Message], variables: &Map<String, Json>) -> Result<Turns> {
        let template = self.template_for(variables);
        template.turns(messages, variables).map_err(|error| match (&template.file, error) {
            (Some(file), error @ PeftError::Unsupported { .. }) => error.in_file(file),
            (_, error) => error,
        })
    }

    fn turns(&self, messages: &[Message], variables: &Map<String, Json>) -> Result<Turns> {
        if messages.iter().any(|it| it.content.contains([OPEN, CLOSE])) {
            return Err(PeftError::Invalid(format!(
                "a message holds one of the noncharacters {OPEN:?} and {CLOSE:?}, which mark turns; remove them"
            )));
        }
        let answers: Vec<usize> = (0..messages.len()).filter(|it| messages[*it].role == ASSISTANT).collect();
        let is_learned = |answer: &usize| messages[*answer].learned;
        if self.marks_turns {
            let Turns { text, mut assistant } = unmark(&self.run(messages, false, variables, true)?);
            if !answers.iter().all(is_learned) {
                if assistant.len() != answers.len() {
                    return Err(PeftError::unsupported(
                        format!("{} blocks of the chat template for {} answers", assistant.len(), answers.len()),
                        "some answers are not to be learned, and nobody knows which blocks are theirs",
                    ));
                }
                let mut learned = answers.iter().map(is_learned);
                assistant.retain(|_| learned.next().unwrap_or(true));
            }
            return Ok(Turns { text, assistant });
        }
        let text = self.render_with(messages, false, variables)?;
        let mut assistant = Vec::new();
        for index in answers.into_iter().filter(is_learned) {
            let upto = self.render_with(&messages[..=index], false, variables)?;
            let start = self.start_of_turn(messages, index, &upto, variables)?;
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
    fn start_of_turn(
        &self,
        messages: &[Message],
        index: usize,
        upto: &str,
        variables: &Map<String, Json>,
    ) -> Result<Option<usize>> {
        // A template may refuse a conversation that ends here, or read `messages[0]` of none.
        if let Ok(prompt) = self.render_with(&messages[..index], true, variables)
            && index > 0
            && upto.starts_with(&prompt)
        {
            return Ok(Some(prompt.len()));
        }
        // The generation prompt may hold what the turn lacks, such as an opened thought. Then the words themselves show
        // where they would stand.
        let mut probe = messages[..=index].to_vec();
        probe[index].content = OPEN.to_string();
        let probe = self.render_with(&probe, false, variables)?;
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
        let explain = |error| explain(error, self.file.as_deref());
        let template = self.environment.template_from_str(&self.source).map_err(explain)?;
        jinja::render(&template, scope).map_err(explain)
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

/// Stands for `{% generation %}`, see [`jinja::prepare`].
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

/// What a template says. It may be about the template or about the messages, so that the file is named without blame.
fn explain(error: Error, file: Option<&Path>) -> PeftError {
    let reason = match error.kind() {
        // What a template raises is written for the user already.
        ErrorKind::InvalidOperation if error.detail().is_some() => error.detail().unwrap_or_default().to_owned(),
        _ => error.to_string(),
    };
    let of = file.map_or_else(String::new, |it| format!(" of {}", it.display()));
    PeftError::Invalid(format!("the chat template{of} says: {reason}"))
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
