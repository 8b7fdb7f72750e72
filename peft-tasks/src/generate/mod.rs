//! Generation: one token after another, greedy, sampled or by beams.

pub mod beams;
pub mod causal;
pub mod config;
pub mod logits;
mod room;
pub mod sampling;
pub mod seq2seq;
#[cfg(feature = "audio")]
pub mod speech;
mod times;

pub use causal::generate;
pub use config::{GenerationConfig, GenerationPlan};
pub use seq2seq::generate_targets;
#[cfg(feature = "audio")]
pub use speech::{SpeechConfig, Transcript, transcribe};
