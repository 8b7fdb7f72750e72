//! Losses, data, training and generation for models with adapters.

pub mod data;
pub mod eval;
pub mod generate;
pub mod parallel;
pub mod tasks;
pub mod train;
