//! Euler's method with new noise in every step. Source: `scheduling_euler_ancestral_discrete.py` (0.42), after
//! k-diffusion's `sample_euler_ancestral`.

use burn::tensor::Tensor;
use peft_core::Result;

use super::config::{PredictionType, SchedulerConfig};
use super::euler::{init_noise_sigma, interpolated, original, scaled, single};
use super::scheduler::Scheduler;

/// A run of Euler's method with new noise in every step.
#[derive(Debug, Clone)]
pub struct EulerAncestral {
    timesteps: Vec<f32>,
    /// Noise for signal of each call, and 0.
    sigmas: Vec<f64>,
    init: f64,
    prediction: PredictionType,
}

impl EulerAncestral {
    /// A run of so many steps.
    ///
    /// # Errors
    /// If there are none, or more than the schedule has.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let known = config.noise_schedule().sigmas(config.rescale_betas_zero_snr);
        let (timesteps, mut sigmas) = interpolated(config, &known, steps)?;
        sigmas.push(0.0);
        Ok(Self {
            init: init_noise_sigma(config.timestep_spacing, &sigmas),
            timesteps: timesteps.into_iter().map(|it| it as f32).collect(),
            sigmas: single(sigmas),
            prediction: config.prediction_type,
        })
    }
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init
    }

    fn scale_model_input(&self, sample: Tensor<4>, at: usize) -> Tensor<4> {
        scaled(sample, self.sigmas[at])
    }

    fn step(
        &mut self,
        at: usize,
        output: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (from, to) = (self.sigmas[at], self.sigmas[at + 1]);
        let original = original(self.prediction, from, &output, &sample);
        let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
        let down = (to * to - up * up).max(0.0).sqrt();
        let slope = (sample.clone() - original).div_scalar(from);
        sample + slope.mul_scalar(down - from) + noise().mul_scalar(up)
    }
}
