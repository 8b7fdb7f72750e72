//! Losses, data, training and generation for models with adapters.

pub mod batches;
pub mod beams;
pub mod chat;
pub mod classification;
pub mod collate;
pub mod columns;
pub mod curve;
pub mod data;
pub mod features;
pub mod generate;
mod jinja;
pub mod labels;
pub mod language_modelling;
pub mod logits;
pub mod loss;
pub mod metrics;
pub mod pack;
pub mod rng;
pub mod runlog;
pub mod sampling;
pub mod schedule;
pub mod seq2seq_generate;
mod strftime;
pub mod task;
pub mod tensors;
pub mod tokenizer;
pub mod trainer;
