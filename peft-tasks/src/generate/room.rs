//! How far a text may grow: the model's positions, and the rows of its embedding matrix.

use peft_core::{ModelSpec, PeftError, Result};

use crate::generate::config::GenerationPlan;

/// What a model has room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Positions that tokens may stand at.
    positions: Option<usize>,
    /// Tokens that the embedding matrix has rows for.
    rows: Option<usize>,
}

/// How many tokens may follow a prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) tokens: usize,
    /// The model's positions, if it is they that end the text.
    positions: Option<usize>,
}

impl Room {
    /// Of a model.
    pub(crate) fn of(spec: &ModelSpec) -> Self {
        Self { positions: spec.max_positions(), rows: spec.token_table().map(|it| it.shape[0]) }
    }

    /// Refuses a token that the model has no row for.
    pub(crate) fn check_tokens(&self, tokens: impl IntoIterator<Item = u32>) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        match tokens.into_iter().find(|it| *it as usize >= rows) {
            Some(token) => Err(PeftError::Invalid(format!(
                "there is no token {token}: the model's embedding matrix has {rows} rows"
            ))),
            None => Ok(()),
        }
    }

    /// Refuses a text with more tokens than the model has positions.
    pub(crate) fn check_length(&self, what: &str, tokens: usize) -> Result<()> {
        match self.positions.filter(|it| tokens > *it) {
            Some(positions) => {
                let reason =
                    format!("{what} has {tokens} tokens, but the model only {positions} positions: shorten it");
                Err(PeftError::Invalid(reason))
            }
            None => Ok(()),
        }
    }

    /// How many tokens may follow a prompt, before which adapters have put `virtual_tokens`. The last token takes no
    /// position, since nothing is read behind it.
    pub(crate) fn budget(&self, prompt: usize, virtual_tokens: usize, plan: &GenerationPlan) -> Result<Budget> {
        let tokens = plan.budget(prompt)?;
        self.check_length("the prompt", prompt + virtual_tokens)?;
        let left = self.positions.map(|it| it - prompt - virtual_tokens + 1);
        Ok(match left {
            Some(left) if left < tokens => Budget { tokens: left, positions: self.positions },
            _ => Budget { tokens, positions: None },
        })
    }
}

impl Budget {
    /// Says that a text did not end by itself but with the model's positions.
    pub(crate) fn used_up(&self) {
        if let Some(positions) = self.positions {
            tracing::warn!("the text ends where the model does, at {positions} positions, not by itself");
        }
    }
}
