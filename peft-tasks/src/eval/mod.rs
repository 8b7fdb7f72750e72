//! Metrics: how well predictions agree with labels and references.

pub mod entities;
pub(crate) mod in_batches;
pub mod metrics;
pub mod overlap;
pub mod segmentation;
pub mod squad;
pub mod word_errors;
