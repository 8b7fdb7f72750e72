//! Metrics: how well predictions agree with labels and references.

pub mod entities;
pub mod metrics;
pub mod overlap;
pub mod segmentation;
pub mod squad;
pub mod word_errors;
