//! Measures: how good predictions and texts are.

pub mod entities;
pub mod metrics;
pub mod overlap;
pub mod squad;
