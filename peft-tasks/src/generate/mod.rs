//! Generation: texts one token after another, greedy, sampled or by beams; pictures step by step.
//!
//! What a text follows may be tokens, a source that an encoder has read, a recording, or a picture.

pub mod beams;
pub mod captions;
pub mod causal;
pub mod config;
pub mod logits;
#[cfg(feature = "image")]
pub mod pictures;
mod room;
pub mod sampling;
pub mod seq2seq;
#[cfg(feature = "audio")]
pub mod speech;
mod times;

pub use captions::generate_captions;
pub use causal::generate;
pub use config::{GenerationConfig, GenerationPlan};
pub use seq2seq::generate_targets;
#[cfg(feature = "audio")]
pub use speech::{SpeechConfig, Transcript, transcribe};
