//! One adapter of several, and LoRA of an adapter of another method.

pub mod convert;
pub mod weighted;
