//! Training: the step loop and what it needs.

pub mod batches;
mod checkpoint;
mod clip;
pub mod config;
pub mod curve;
pub mod log;
pub mod optimizer;
pub mod progress;
pub mod schedule;
pub mod trainer;

pub use config::TrainConfig;
pub use progress::Observer;
pub use trainer::{Outcome, Trainer};
