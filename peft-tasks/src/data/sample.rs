//! Documents, prompts with completions, conversations and sequences as training samples.
//!
//! Labels stand where their tokens stand, as in transformers: the shift by one (position `i` predicts label `i + 1`) is the
//! loss function's.

use std::ops::Range;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

use crate::data::chat::{ChatTemplate, Message};
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
    /// The end at which a language-model sample is cut. `Left` keeps the answer of a long conversation.
    pub truncate: Side,
    /// Whether the loss also counts what the model is given: prompts, and the turns of others.
    pub train_on_prompt: bool,
    /// Whether documents and completions end with the end token, so that a model learns to stop.
    pub append_eos: bool,
}

impl<'a> Preprocessor<'a> {
    /// The usual settings: no truncation, loss on completions alone, end token appended.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, max_length: None, truncate: Side::Right, train_on_prompt: false, append_eos: true }
    }

    /// Running text for a language model: special tokens, text, end token.
    pub fn text(&self, text: &str) -> Result<Sample> {
        Ok(self.finish(Sample::language(self.tokenizer.ids(text, true)?), self.append_eos))
    }

    /// A prompt and what to answer. The two are put together as they are, without a space or line break between, and
    /// tokenized as one; a token that spans the seam counts as the completion's.
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<Sample> {
        let text = format!("{prompt}{completion}");
        let encoded = self.tokenizer.encode(&text, true)?;
        let answer = prompt.len()..text.len();
        let sample =
            if self.train_on_prompt { Sample::language(encoded.ids) } else { Sample::within(&encoded, &[answer]) };
        Ok(self.finish(sample, self.append_eos))
    }

    /// A conversation; the loss counts the assistant's turns. The template writes its own special tokens, so none are
    /// added.
    pub fn chat(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Sample> {
        let sample = if self.train_on_prompt {
            Sample::language(self.tokenizer.ids(&template.render(messages, false)?, false)?)
        } else {
            let turns = template.render_turns(messages)?;
            Sample::within(&self.tokenizer.encode(&turns.text, false)?, &turns.assistant)
        };
        Ok(self.finish(sample, false))
    }

    /// A sequence or a pair of sequences with one target for all of it. Truncation keeps the special tokens.
    pub fn sequence(&self, text: &str, pair: Option<&str>) -> Result<Sample> {
        let max_length = self.max_length.unwrap_or(usize::MAX);
        let encoded = self.tokenizer.encode_within(text, pair, max_length)?;
        Ok(Sample { input_ids: encoded.ids, type_ids: Some(encoded.type_ids), ..Sample::default() })
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
        let encoded = self.tokenizer.encode_within(&text, None, self.max_length.unwrap_or(usize::MAX))?;
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

    fn finish(&self, mut sample: Sample, eos: bool) -> Sample {
        if eos && let Some(id) = self.tokenizer.eos_id() {
            if sample.input_ids.last() != Some(&id) {
                sample.input_ids.push(id);
                sample.labels.push(IGNORED);
            }
            if let Some(label) = sample.labels.last_mut() {
                *label = i64::from(id);
            }
        }
        if let Some(max_length) = self.max_length {
            sample.truncate(max_length, self.truncate);
        }
        sample
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
