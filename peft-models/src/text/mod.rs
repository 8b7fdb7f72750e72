//! Models of text.

pub mod decoder;
pub mod encoder;
pub mod seq2seq;
