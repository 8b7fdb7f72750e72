//! What a method does between two steps of an optimizer.

use std::fmt::Debug;

use crate::config::peft_config::PeftConfig;
use crate::error::Result;
use crate::files::checkpoint::Stored;

/// Changes an adapter after every optimizer step, as AdaLoRA does when it takes ranks away.
///
/// A [`PeftConfig`] makes one for a run. Tensors are keyed as in the adapter file, whole.
pub trait AfterStep: Debug + Send {
    /// Looks at the tensors after step number `step`, counted from 0, and at the gradients that moved them. Returns
    /// the tensors that change.
    fn after_step(&mut self, step: usize, tensors: &[Stored], gradients: &[Stored]) -> Result<Vec<Stored>>;

    /// The configuration as it now is.
    fn config(&self) -> Box<dyn PeftConfig>;

    /// What a resumed run must know, as tensors of floats.
    fn state(&self) -> Vec<Stored>;

    /// Goes on from a [`state`](AfterStep::state).
    fn restore(&mut self, state: Vec<Stored>) -> Result<()>;
}
