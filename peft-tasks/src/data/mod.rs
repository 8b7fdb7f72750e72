//! Data: from a file of rows to batches of tensors.

pub mod ahead;
#[cfg(feature = "audio")]
pub mod audio;
pub mod augmentation;
pub mod batch;
pub mod chat;
pub mod clip_tokenizer;
pub mod columns;
pub mod dataset;
mod filters;
mod formats;
mod growth;
mod guard;
#[cfg(feature = "image")]
pub mod image;
#[cfg(feature = "image")]
pub mod image_data;
mod jinja;
pub mod labels;
pub mod messages;
pub(crate) mod new_tokens;
pub mod pack;
mod parquet;
pub mod questions;
pub mod reading;
pub mod rng;
mod row;
pub mod row_template;
pub mod sample;
pub mod special_tokens;
mod strftime;
pub mod tags;
pub(crate) mod tally;
pub mod tensors;
pub mod text_data;
pub mod tokenizer;
mod tokenizer_class;
mod tokenizer_file;
pub mod windows;

pub use batch::{Batch, Padding, collate};
pub use sample::{IGNORED, Preprocessor, Sample};
pub use text_data::TextData;
pub use tokenizer::Tokenizer;
