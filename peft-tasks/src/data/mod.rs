//! Data: from a file of rows to batches of tensors.

pub mod batch;
pub mod chat;
pub mod columns;
pub mod dataset;
mod jinja;
pub mod labels;
pub mod pack;
pub mod questions;
pub mod rng;
pub mod sample;
mod strftime;
pub mod tags;
pub mod tensors;
pub mod text_data;
pub mod tokenizer;
pub mod windows;

pub use batch::{Batch, Padding, collate};
pub use sample::{IGNORED, Preprocessor, Sample};
pub use text_data::TextData;
pub use tokenizer::Tokenizer;
