//! Heads that differ between architectures in names only: one file a kind of head, and which of them an architecture has.

pub(crate) mod causal_lm;
pub(crate) mod decoder;
pub(crate) mod masked_lm;
pub mod missing;
pub(crate) mod question_answerer;
pub(crate) mod sequence_classifier;
pub(crate) mod token_classifier;
pub(crate) mod token_heads;
