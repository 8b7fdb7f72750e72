//! Training: the step loop and what it needs.

pub mod batches;
pub mod curve;
pub mod log;
pub mod optimizer;
pub mod schedule;
pub mod trainer;
