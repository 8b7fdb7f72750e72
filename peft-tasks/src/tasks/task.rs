//! What a trainer asks of a task.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::Result;
use serde_json::{Map, Value};

/// Items to learn from, and how a model's loss on them is computed.
pub trait Task<M: Module> {
    /// Length of every item in tokens, by which batches may be grouped.
    fn lengths(&self) -> Vec<usize>;

    /// Tokens of some items, filling excluded.
    fn tokens(&self, items: &[usize]) -> usize;

    /// How many terms the loss of some items is a mean of, where prompts put `virtual_tokens` before every row
    /// ([`forward::virtual_tokens`](peft_core::forward::virtual_tokens)).
    fn targets(&self, virtual_tokens: usize, items: &[usize]) -> usize;

    /// The loss of some items, summed over their targets; `[1]`.
    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>>;

    /// Loss and measures over all items, `batch_size` at a time. The model is in evaluation mode: see
    /// [`nn::eval`](peft_core::nn::eval).
    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation>;
}

/// What an evaluation found.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// Mean loss over all targets.
    pub loss: f64,
    /// Measures of the task: `perplexity`, `accuracy`.
    pub metrics: Map<String, Value>,
}

/// The number in a tensor of one element.
pub fn scalar(tensor: &Tensor<1>) -> f64 {
    let data = tensor.to_data().convert::<f32>();
    data.as_slice::<f32>().ok().and_then(|it| it.first().copied()).map_or(f64::NAN, f64::from)
}
