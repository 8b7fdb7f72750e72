//! Encoders with decoders: models that read a source and write a target.

pub mod bart;
pub mod t5;
