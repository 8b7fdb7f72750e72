//! What a trainer asks of a task.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::Result;
use serde_json::{Map, Value};

/// Items to learn from, and how a model's loss on them is computed.
///
/// A [`Trainer`](crate::train::Trainer) asks for nothing else, so an implementation for a model of yours is all that a new
/// task needs: `examples/custom_task.rs` is a complete one. Items are numbered from 0, and the trainer names those of a
/// batch by their numbers. Given the same items a task must give the same loss, but for what the model draws on the device
/// (dropout): resumed runs rely on it.
///
/// # Example
/// A regression on the mean squared error, for any model that maps `[batch, 1]` to `[batch, 1]`.
/// ```
/// use burn::nn::Linear;
/// use burn::tensor::{Device, Tensor, TensorData};
/// use peft_core::Result;
/// use peft_tasks::tasks::task::{Evaluation, Task, scalar};
///
/// struct Points(Vec<(f32, f32)>);
///
/// impl Task<Linear> for Points {
///     fn lengths(&self) -> Vec<usize> {
///         vec![1; self.0.len()]
///     }
///
///     fn tokens(&self, items: &[usize]) -> usize {
///         items.len()
///     }
///
///     fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
///         items.len()
///     }
///
///     fn loss_sum(&self, model: &Linear, items: &[usize], device: &Device) -> Result<Tensor<1>> {
///         let column = |values: Vec<f32>| {
///             let shape = [values.len(), 1];
///             Tensor::<2>::from_data(TensorData::new(values, shape), device)
///         };
///         let input = column(items.iter().map(|it| self.0[*it].0).collect());
///         let labels = column(items.iter().map(|it| self.0[*it].1).collect());
///         Ok((model.forward(input) - labels).square().sum())
///     }
///
///     fn evaluate(&self, model: &Linear, _batch_size: usize, device: &Device) -> Result<Evaluation> {
///         let items: Vec<usize> = (0..self.0.len()).collect();
///         let loss = scalar(&self.loss_sum(model, &items, device)?) / items.len() as f64;
///         Ok(Evaluation { loss, ..Evaluation::default() })
///     }
/// }
/// ```
pub trait Task<M: Module> {
    /// Length of every item in tokens; as many as there are items. Batches may be grouped by it.
    ///
    /// It must be the same at every call: a run asks once, and a resumed run relies on the order of batches that follows.
    fn lengths(&self) -> Vec<usize>;

    /// Tokens of some items, padding excluded: what the log counts; or what else [`unit`](Task::unit) says.
    fn tokens(&self, items: &[usize]) -> usize;

    /// What [`tokens`](Task::tokens) counts, in the plural, for those who watch a run.
    fn unit(&self) -> &'static str {
        "tokens"
    }

    /// How many terms [`loss_sum`](Task::loss_sum) is a sum of: tokens that are predicted, or rows. Adapters put
    /// `virtual_tokens` before every row ([`forward::virtual_tokens`](peft_core::forward::virtual_tokens)), behind which a
    /// language model predicts the first token too; other tasks need not look at it.
    ///
    /// May be 0 for some items, whose [`loss_sum`](Task::loss_sum) is then 0. If it is 0 for all batches of a step, the sum is
    /// not divided.
    fn targets(&self, virtual_tokens: usize, items: &[usize]) -> usize;

    /// Says which items the next batch will have, before the one of this step is computed: what takes time to read may be read
    /// meanwhile, on threads of the task's own.
    fn announce(&self, items: &[usize]) {
        let _ = items;
    }

    /// The loss of a batch of items, summed over its targets and not averaged; `[1]`. The trainer divides by the targets of
    /// all batches of a step, so that accumulation gives the gradients of one large batch.
    ///
    /// # Errors
    /// If the items make no batch; the run ends with it.
    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>>;

    /// Which places of a batch a layer's input counts at that starts from data, numbered as `row · sequence + place` in the
    /// forward of [`loss_sum`](Task::loss_sum): those of padding do not, and with `labelled` none that nothing is learned
    /// from. `None` if there is no such forward, as where a model has two sequences; items then go through it one by one.
    ///
    /// # Errors
    /// As [`loss_sum`](Task::loss_sum).
    fn places(&self, model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        let _ = (model, items, labelled);
        Ok(None)
    }

    /// What is worth a line before the first step, such as the token that texts end with.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// What is odd about the items beside what acts in a model, for the user: a trainer warns of it before the first step.
    fn notes(&self, model: &M) -> Vec<String> {
        let _ = model;
        Vec::new()
    }

    /// Loss and metrics over all items, `batch_size` at a time. The model is in evaluation mode: see
    /// [`nn::eval`](peft_core::nn::eval).
    ///
    /// # Errors
    /// As [`loss_sum`](Task::loss_sum), or if a metric is not defined for what the model gives.
    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation>;
}

/// What an evaluation found.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// Mean loss over all targets.
    pub loss: f64,
    /// Metrics of the task: `perplexity`, `accuracy`.
    pub metrics: Map<String, Value>,
}

/// The number in a tensor of one element.
pub fn scalar(tensor: &Tensor<1>) -> f64 {
    let data = tensor.to_data().convert::<f32>();
    data.as_slice::<f32>().ok().and_then(|it| it.first().copied()).map_or(f64::NAN, f64::from)
}
