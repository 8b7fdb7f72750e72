//! Generation: one token after another, greedy, sampled or by beams.

pub mod beams;
pub mod causal;
pub mod logits;
pub mod sampling;
pub mod seq2seq;
