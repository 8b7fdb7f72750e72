//! Training: the step loop and what it needs.

mod adamw;
mod adamw_8bit;
pub mod batches;
mod checkpoint;
mod clip;
pub mod config;
pub mod curve;
pub mod folder;
pub mod identity;
mod learner;
pub mod limits;
pub mod log;
pub mod optimizer;
mod pass;
mod pending;
mod placed;
pub mod progress;
pub mod schedule;
mod shared;
mod state;
pub mod trainer;

pub use config::{Optim, TrainConfig};
pub use folder::{RunFolder, Start};
pub use progress::{Observer, Started, StepDone};
pub use trainer::{Outcome, Trainer};
