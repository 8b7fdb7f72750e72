//! Kinds of tasks, one a file: which model each loads, and what it makes of a data file.

pub mod causal_lm;
#[cfg(feature = "image")]
pub mod image_classification;
#[cfg(feature = "image")]
pub mod image_to_text;
pub mod inputs;
pub mod kind;
pub mod masked_lm;
pub mod question_answering;
#[cfg(feature = "image")]
pub mod semantic_segmentation;
pub mod seq2seq_lm;
pub mod sequence_classification;
pub mod similarity;
#[cfg(feature = "audio")]
pub mod speech_to_text;
#[cfg(feature = "image")]
pub mod text_to_image;
pub mod token_classification;
pub mod unet;

pub use inputs::ForwardInputs;
pub use kind::{ForwardOutput, TaskKind, TaskOptions, TaskSource};
