//! Documents, prompts with completions, conversations and sequences as training samples.
//!
//! Labels stand where their tokens stand, as in transformers: the shift by one (position `i` predicts label `i + 1`) is the
//! loss function's.

use std::ops::Range;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use tokenizers::TruncationDirection;

use crate::data::chat::{ChatTemplate, Conversation, Message};
use crate::data::tokenizer::{Encoded, Tokenizer};

/// A label that no loss looks at.
pub const IGNORED: i64 = peft_core::ops::IGNORE_INDEX;

/// One sequence to train on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, `[seq]`.
    pub input_ids: Vec<u32>,
    /// What to predict, `[seq]`, [`IGNORED`] where nothing is; empty where the target is one for the whole sequence.
    pub labels: Vec<i64>,
    /// 0 for the first sequence of a pair, 1 for the second, `[seq]`.
    pub type_ids: Option<Vec<u32>>,
    /// Number of the task that the sequence is of, for prompts that tell tasks apart.
    pub task_id: Option<i64>,
}

/// An end of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The start.
    Left,
    /// The end.
    #[default]
    Right,
}

/// What happens to a sequence that is longer than rows may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// It loses its start, so that the answer at its end is kept: `keep_end` in TRL.
    Left,
    /// It loses its end: `keep_start` in TRL.
    #[default]
    Right,
    /// It is an error.
    Refuse,
}

impl Truncation {
    /// The end that is cut.
    pub fn side(self) -> Side {
        if self == Self::Left { Side::Left } else { Side::Right }
    }
}

impl std::str::FromStr for Truncation {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            "refuse" => Ok(Self::Refuse),
            other => Err(PeftError::config("truncation", format!("is `{other}`, expected left, right or refuse"))),
        }
    }
}

impl Sample {
    /// A sample that predicts every one of its tokens.
    pub fn language(input_ids: Vec<u32>) -> Self {
        let labels = input_ids.iter().map(|it| i64::from(*it)).collect();
        Self { input_ids, labels, ..Self::default() }
    }

    /// A sample that predicts the tokens which overlap one of `spans`, byte ranges of the encoded text.
    pub fn within(encoded: &Encoded, spans: &[Range<usize>]) -> Self {
        let mut sample = Self::language(encoded.ids.clone());
        for (token, label) in sample.labels.iter_mut().enumerate() {
            let inside = !encoded.added[token] && spans.iter().any(|it| overlap(&encoded.offsets[token], it));
            if !inside {
                *label = IGNORED;
            }
        }
        sample
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// How many labels count in the loss of a language model. The first has no predecessor and never does.
    pub fn targets(&self) -> usize {
        self.labels.iter().skip(1).filter(|it| **it != IGNORED).count()
    }

    /// How many positions have a label, as for a model that says something of each.
    pub fn labelled(&self) -> usize {
        self.labels.iter().filter(|it| **it != IGNORED).count()
    }

    /// Cuts what is longer than `max_length`, at the end that `side` names.
    pub fn truncate(&mut self, max_length: usize, side: Side) {
        let excess = self.len().saturating_sub(max_length);
        if excess > 0 {
            let range = match side {
                Side::Left => excess..self.len(),
                Side::Right => 0..max_length,
            };
            *self = self.slice(range);
        }
    }

    /// Cuts a long document into pieces of `max_length`, the last one shorter. No token is lost and none comes twice.
    /// The first label of each piece has no predecessor there, so one target in `max_length` is given up.
    pub fn chunks(&self, max_length: usize) -> Vec<Self> {
        let max_length = max_length.max(1);
        (0..self.len()).step_by(max_length).map(|it| self.slice(it..self.len().min(it + max_length))).collect()
    }

    fn slice(&self, range: Range<usize>) -> Self {
        Self {
            input_ids: self.input_ids[range.clone()].to_vec(),
            labels: if self.labels.is_empty() { Vec::new() } else { self.labels[range.clone()].to_vec() },
            type_ids: self.type_ids.as_ref().map(|it| it[range].to_vec()),
            task_id: self.task_id,
        }
    }
}

fn overlap(token: &Range<usize>, span: &Range<usize>) -> bool {
    // Byte-level tokenizers trim offsets: a token of white space alone covers nothing, and stands at its end.
    if token.is_empty() {
        return span.start < token.start && token.start <= span.end;
    }
    token.start < span.end && span.start < token.end
}

/// Makes samples of text: the preprocessing that transformers does with a tokenizer.
#[derive(Debug, Clone)]
pub struct Preprocessor<'a> {
    /// Splits the text.
    pub tokenizer: &'a Tokenizer,
    /// The most tokens a sample has; `None` truncates nothing.
    pub max_length: Option<usize>,
    /// What is done with longer ones.
    pub truncation: Truncation,
    /// Whether the loss also counts what the model is given: prompts, and the turns of others.
    pub train_on_prompt: bool,
    /// Whether documents and completions end with the end token, so that a model learns to stop.
    pub append_eos: bool,
}

impl<'a> Preprocessor<'a> {
    /// The usual settings: no truncation, loss on completions alone, end token appended.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, max_length: None, truncation: Truncation::Right, train_on_prompt: false, append_eos: true }
    }

    /// Running text for a language model: special tokens, text, end token.
    pub fn text(&self, text: &str) -> Result<Sample> {
        self.finish(Sample::language(self.tokenizer.ids(text, true)?), self.append_eos)
    }

    /// A prompt and what to answer. The two are put together as they are, without a space or line break between, and
    /// tokenized as one; a token that spans the seam counts as the completion's.
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<Sample> {
        let text = format!("{prompt}{completion}");
        let encoded = self.tokenizer.encode(&text, true)?;
        let answer = prompt.len()..text.len();
        let sample =
            if self.train_on_prompt { Sample::language(encoded.ids) } else { Sample::within(&encoded, &[answer]) };
        self.finish(sample, self.append_eos)
    }

    /// A conversation; the loss counts the assistant's turns. The template writes its own special tokens, so none are
    /// added.
    pub fn chat(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Sample> {
        let conversation = Conversation { messages: messages.to_vec(), variables: Map::new() };
        self.conversation(template, &conversation)
    }

    /// The same with more variables for the template. Turns that are not [learned](Message::learned) count as another's.
    pub fn conversation(&self, template: &ChatTemplate, conversation: &Conversation) -> Result<Sample> {
        let Conversation { messages, variables } = conversation;
        let sample = if self.train_on_prompt && messages.iter().all(|it| it.learned) {
            Sample::language(self.tokenizer.ids(&template.render_with(messages, false, variables)?, false)?)
        } else {
            let turns = template.render_turns_with(messages, variables)?;
            Sample::within(&self.tokenizer.encode(&turns.text, false)?, &turns.assistant)
        };
        self.finish(sample, false)
    }

    /// A sequence or a pair of sequences with one target for all of it. Truncation keeps the special tokens.
    pub fn sequence(&self, text: &str, pair: Option<&str>) -> Result<Sample> {
        Ok(self.counted_sequence(text, pair)?.0)
    }

    /// The same, and how many tokens were cut off.
    pub(crate) fn counted_sequence(&self, text: &str, pair: Option<&str>) -> Result<(Sample, usize)> {
        let encoded = self.encode(text, pair)?;
        let sample = Sample { input_ids: encoded.ids, type_ids: Some(encoded.type_ids), ..Sample::default() };
        Ok((sample, encoded.cut))
    }

    /// Words with a target each. The first token of a word carries its target, the others are [`IGNORED`].
    ///
    /// # Errors
    /// Not as many targets as words.
    pub fn words<T: AsRef<str>>(&self, words: &[T], targets: &[i64]) -> Result<Sample> {
        if words.len() != targets.len() {
            let counts = format!("{} words have {} labels", words.len(), targets.len());
            return Err(PeftError::Invalid(format!("{counts}; every word needs one")));
        }
        // Joined and not word by word: byte-level vocabularies have other tokens for a word behind a space.
        let mut text = String::new();
        let mut places = Vec::with_capacity(words.len());
        for word in words {
            if !text.is_empty() {
                text.push(' ');
            }
            let start = text.len();
            text.push_str(word.as_ref());
            places.push(start..text.len());
        }
        let encoded = self.encode(&text, None)?;
        let mut labels = vec![IGNORED; encoded.ids.len()];
        let mut token = 0;
        for (place, target) in places.iter().zip(targets) {
            let belongs = |it: &usize| !encoded.added[*it] && overlap(&encoded.offsets[*it], place);
            if let Some(first) = (token..labels.len()).find(belongs) {
                labels[first] = *target;
                token = first + 1;
            }
        }
        Ok(Sample { input_ids: encoded.ids, labels, type_ids: Some(encoded.type_ids), ..Sample::default() })
    }

    /// A sequence or a pair, cut as it should be.
    ///
    /// # Errors
    /// It is too long and may not be cut, or as [`Tokenizer::encode_within`].
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Encoded> {
        let max_length = self.max_length.unwrap_or(usize::MAX);
        let direction = match self.truncation {
            Truncation::Left => TruncationDirection::Left,
            Truncation::Right | Truncation::Refuse => TruncationDirection::Right,
        };
        let encoded = self.tokenizer.encode_cut(text, pair, max_length, direction)?;
        self.check_length(encoded.ids.len() + encoded.cut)?;
        Ok(encoded)
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        match self.max_length.filter(|it| self.truncation == Truncation::Refuse && tokens > *it) {
            Some(max_length) => Err(PeftError::Invalid(format!(
                "it has {tokens} tokens, more than `max_length`, {max_length}, and nothing may be cut"
            ))),
            None => Ok(()),
        }
    }

    fn finish(&self, mut sample: Sample, eos: bool) -> Result<Sample> {
        if eos && let Some(id) = self.tokenizer.eos_id() {
            self.tokenizer.check(&[id])?;
            if sample.input_ids.last() != Some(&id) {
                sample.input_ids.push(id);
                sample.labels.push(IGNORED);
            }
            if let Some(label) = sample.labels.last_mut() {
                *label = i64::from(id);
            }
        }
        if let Some(max_length) = self.max_length {
            self.check_length(sample.len())?;
            sample.truncate(max_length, self.truncation.side());
        }
        Ok(sample)
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
