//! What the examples share that train a model from nothing.

use std::f64::consts::PI;
use std::path::Path;

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Distribution, Tensor};
use peft::core::files::checkpoint::{FloatType, model_tensors, write_tensors};
use peft::core::spec::path::PathStack;
use peft::core::spec::walk::{MapParams, map_params};
use peft::core::{PeftError, Result};
use peft::tasks::tasks::task::scalar;

/// AdamW on all weights. The rate rises over a tenth of the steps, and falls along a cosine.
pub(crate) struct Learning {
    optimizer: ModuleOptimizer,
    highest_rate: f64,
    total: f64,
    step: f64,
    /// The loss, as a mean over about fifty steps.
    pub(crate) mean: f64,
}

impl Learning {
    pub(crate) fn new(total: usize, highest_rate: f64) -> Self {
        let optimizer = AdamWConfig::new().with_weight_decay(0.05).init();
        Self { optimizer, highest_rate, total: total as f64, step: 0.0, mean: 0.0 }
    }

    /// The model after a step against the gradient of the loss.
    ///
    /// # Errors
    /// If the loss is no number.
    pub(crate) fn step<M: Module>(&mut self, model: M, loss: &Tensor<1>) -> Result<M> {
        let value = scalar(loss);
        if !value.is_finite() {
            return Err(PeftError::NotFinite(format!("the loss of step {} is {value}", self.step + 1.0)));
        }
        self.mean = if self.step == 0.0 { value } else { 0.98 * self.mean + 0.02 * value };
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let rising = (10.0 * (self.step + 1.0) / self.total).min(1.0);
        let rate = self.highest_rate * rising * 0.5 * (1.0 + (PI * self.step / self.total).cos());
        self.step += 1.0;
        Ok(self.optimizer.step(rate, model, gradients))
    }
}

/// The model with its matrices and kernels drawn as torch draws them: evenly up to `1 / √inputs`.
///
/// A model that was not read from a checkpoint has those that transformers gives. They are small, and some are zeros, such
/// as the queries of BLIP-2, which would all stay alike.
pub(crate) fn drawn<M: Module>(model: M) -> M {
    struct Draw;
    impl MapParams for Draw {
        fn float<const D: usize>(&mut self, _at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let inputs: usize = param.shape().iter().skip(1).product();
            if D < 2 || inputs == 0 {
                return param;
            }
            let most = (inputs as f64).powf(-0.5);
            param.map(|old| Tensor::random(old.shape(), Distribution::Uniform(-most, most), &old.device()))
        }
    }
    map_params(model, &mut Draw)
}

/// Writes the weights of a model.
pub(crate) fn write_weights<M: Module>(model: &M, path: &Path) -> Result<()> {
    write_tensors(path, model_tensors(model), FloatType::F32)
}
