//! What became of the rows of a file: said once, instead of nothing.

use std::collections::BTreeMap;

use peft_core::Result;

use crate::data::dataset::Dataset;
use crate::data::messages::{ASSISTANT, Message, said_roles};
use crate::data::sample::Sample;

/// What a row has to answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// No turn of the assistant.
    None,
    /// Turns of the assistant, none of which is to be learned.
    Weightless,
    /// An answer that is to be learned.
    Learned,
}

impl Answers {
    pub(crate) fn of(messages: &[Message]) -> Self {
        let mut turns = messages.iter().filter(|it| it.role == ASSISTANT).peekable();
        match (turns.peek().is_some(), turns.any(|it| it.learned)) {
            (false, _) => Self::None,
            (true, false) => Self::Weightless,
            (true, true) => Self::Learned,
        }
    }
}

/// Counts rows that were cut, and those that hold nothing to learn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    rows: usize,
    /// Lost tokens.
    cut: usize,
    /// Lost all that was to be learned when they were cut.
    answer_cut: usize,
    /// Had nothing to learn before.
    empty: usize,
    /// Conversations in which no turn is the assistant's.
    silent: usize,
    /// Conversations in which no turn of the assistant counts.
    weightless: usize,
    /// How often each role speaks.
    roles: BTreeMap<String, usize>,
}

impl Tally {
    /// Counts a row that becomes a sample of its own, of `whole` tokens before it was cut.
    pub(crate) fn count(&mut self, whole: usize, sample: &Sample) {
        self.rows += 1;
        self.cut += usize::from(whole > sample.len());
    }

    /// Counts a row of a language model, as it was and as it is after it was cut.
    pub(crate) fn count_language(&mut self, before: &Sample, after: &Sample, answers: Answers) {
        self.count(before.len(), after);
        match (before.targets(), after.targets()) {
            (0, _) => match answers {
                Answers::None => self.silent += 1,
                Answers::Weightless => self.weightless += 1,
                Answers::Learned => self.empty += 1,
            },
            (_, 0) => self.answer_cut += 1,
            _ => {}
        }
    }

    /// Counts a speaker.
    pub(crate) fn speaks(&mut self, role: &str) {
        *self.roles.entry(role.to_owned()).or_default() += 1;
    }

    fn lost(&self, max_length: usize) -> Option<String> {
        let reasons = [
            (
                self.answer_cut,
                format!(
                    "lost their answer when they were cut to {max_length} tokens; raise `--max-length`, or keep answers with \
                     `--truncation left`"
                ),
            ),
            (
                self.silent,
                format!(
                    "have no turn of the assistant (roles: {}); name the role that answers with `--assistant-role`",
                    said_roles(&self.roles)
                ),
            ),
            (self.weightless, "give every turn of the assistant the weight 0".to_owned()),
            (self.empty, "are empty".to_owned()),
        ];
        let found: Vec<String> =
            reasons.iter().filter(|it| it.0 > 0).map(|(count, reason)| format!("{count} {reason}")).collect();
        (!found.is_empty()).then(|| found.join("; "))
    }

    /// Says how many rows were cut or hold nothing to learn, and why.
    ///
    /// # Errors
    /// If no row holds anything to learn.
    pub(crate) fn say(&self, max_length: usize, data: &Dataset) -> Result<()> {
        let lost = self.answer_cut + self.silent + self.weightless + self.empty;
        match self.lost(max_length) {
            Some(reason) if lost == self.rows => {
                return Err(data.bad(format!("no row holds a token to learn: of {} rows, {reason}", self.rows)));
            }
            Some(reason) => {
                tracing::warn!("{lost} of {} rows hold nothing to learn and are left out: {reason}", self.rows);
            }
            None => {}
        }
        if self.cut > self.answer_cut {
            tracing::warn!("{} of {} rows were cut to {max_length} tokens", self.cut, self.rows);
        }
        Ok(())
    }
}
