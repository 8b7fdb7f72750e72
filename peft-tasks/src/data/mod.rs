//! Data: from a file of rows to batches of tensors.

pub mod chat;
pub mod columns;
pub mod dataset;
mod jinja;
pub mod labels;
pub mod pack;
pub mod rng;
pub mod sample;
mod strftime;
pub mod tensors;
pub mod tokenizer;
