//! A run as data, and what a program does with any task: train, evaluate, compute one pass.

pub mod actions;
#[cfg(feature = "lora")]
mod calibrate;
pub mod config;
mod drawn;
pub mod evaluate;
pub mod fit;
pub mod forward;
pub mod labels;
pub(crate) mod quantised;
pub mod registry;

pub use actions::{evaluate, forward, train};
pub use config::{DataConfig, RUN_FILE, RunConfig};
pub use evaluate::EvalRequest;
pub use fit::{RunObserver, RunReport};
pub use forward::ForwardRequest;
pub use peft_tasks::train::Start;
pub use registry::{KnownTask, Registry, TaskRegistry};
