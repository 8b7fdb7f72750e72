//! A task of your own: what to learn from, and how a model's loss on it is computed.
//!
//! The model is a small network of plain `burn::nn` layers, the task is a list of points of a curve that an adapter of it is
//! to learn. `Trainer` knows neither: it asks the task for the loss of some items, and does the rest (order, accumulation,
//! clipping, schedule, evaluation, checkpoints).
//!
//! ```text
//! cargo run -p peft-examples --example custom_task
//! ```

#![allow(clippy::print_stdout)]

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData, activation};
use peft::lora::LoraConfig;
use peft_core::{PeftModel, Result, nn};
use peft_tasks::tasks::task::{Evaluation, Task, scalar};
use peft_tasks::train::log::TrainRecord;
use peft_tasks::train::{Observer, TrainConfig, Trainer};

#[derive(Module, Debug)]
struct Net {
    hidden: Linear,
    output: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self { hidden: LinearConfig::new(1, 32).init(device), output: LinearConfig::new(32, 1).init(device) }
    }

    /// `[batch, 1]` to `[batch, 1]`
    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.output.forward(activation::tanh(self.hidden.forward(input)))
    }
}

/// Points of a curve: the items of this task.
struct Curve {
    points: Vec<(f32, f32)>,
}

impl Curve {
    fn of(points: usize, curve: impl Fn(f32) -> f32) -> Self {
        let x = |at: usize| 2.0 * at as f32 / points as f32 - 1.0;
        Self { points: (0..points).map(|at| (x(at), curve(x(at)))).collect() }
    }

    fn column(values: impl Iterator<Item = f32>, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = values.collect();
        let shape = [values.len(), 1];
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

impl Task<Net> for Curve {
    /// All items are equally long, so there is nothing to group by.
    fn lengths(&self) -> Vec<usize> {
        vec![1; self.points.len()]
    }

    /// What the log counts as tokens.
    fn tokens(&self, items: &[usize]) -> usize {
        items.len()
    }

    /// Every item is one term of the loss. Virtual tokens are for language models.
    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    /// The sum and not the mean: the trainer divides by the targets of all batches of a step, so that accumulation gives
    /// what one large batch would.
    fn loss_sum(&self, model: &Net, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let input = Self::column(items.iter().map(|it| self.points[*it].0), device);
        let labels = Self::column(items.iter().map(|it| self.points[*it].1), device);
        Ok((model.forward(input) - labels).square().sum())
    }

    fn evaluate(&self, model: &Net, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let items: Vec<usize> = (0..self.points.len()).collect();
        let mut sum = 0.0;
        for batch in items.chunks(batch_size.max(1)) {
            sum += scalar(&self.loss_sum(model, batch, device)?);
        }
        let mse = sum / items.len() as f64;
        // Metrics go into the log under the names given here.
        let metrics = [("rmse".to_owned(), mse.sqrt().into())].into_iter().collect();
        Ok(Evaluation { loss: mse, metrics })
    }
}

fn main() -> Result<()> {
    let device = peft::device::device("flex")?;
    device.seed(1);
    let curve = Curve::of(64, |x| (3.0 * x).sin() + x);
    let held_out = Curve::of(23, |x| (3.0 * x).sin() + x);

    let mut model = PeftModel::of_module(Net::new(&device));
    println!("{}", model.add_adapter(LoraConfig::new(4, 8.0).targets(["hidden", "output"]))?);
    let before = held_out.evaluate(&nn::eval(model.model()), 16, &device)?;
    println!("before: loss {:.5}", before.loss);

    let config = TrainConfig {
        learning_rate: 0.02,
        batch_size: 16,
        gradient_accumulation_steps: 2,
        max_steps: Some(200),
        logging_steps: 50,
        ..TrainConfig::default()
    };
    let mut print = Print;
    let outcome = Trainer::new(&mut model, &curve, config).eval(&held_out).observer(&mut print).run()?;
    assert_eq!(outcome.steps, 200);

    let after = held_out.evaluate(&nn::eval(model.model()), 16, &device)?;
    println!("after:  loss {:.5}, rmse {}", after.loss, after.metrics["rmse"]);
    assert!(after.loss < 0.1 * before.loss, "the adapter must have learned the curve");
    Ok(())
}

/// Sees the lines of the run's log.
struct Print;

impl Observer for Print {
    fn logged(&mut self, record: &TrainRecord, total: usize) {
        println!("step {}/{total}  loss {:.5}", record.step, record.loss);
    }
}
