//! Euler's method: algorithm 2 of Karras et al. 2022, arXiv 2206.00364. Source: `scheduling_euler_discrete.py` (0.42).

use burn::tensor::Tensor;
use peft_core::Result;

use super::config::{PredictionType, SchedulerConfig, TimestepSpacing};
use super::scheduler::Scheduler;
use super::sigmas;

/// A run of Euler's method.
#[derive(Debug, Clone)]
pub struct Euler {
    timesteps: Vec<f32>,
    /// Noise for signal of each call, and what the run ends with.
    sigmas: Vec<f64>,
    init: f64,
    prediction: PredictionType,
}

impl Euler {
    /// A run of so many steps.
    ///
    /// # Errors
    /// If there are none, or more than the schedule has.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let known = config.noise_schedule().sigmas(config.rescale_betas_zero_snr);
        let (mut timesteps, mut sigmas) = interpolated(config, &known, steps)?;
        if config.use_karras_sigmas {
            sigmas = sigmas::karras(sigmas[0], sigmas[sigmas.len() - 1], steps);
            timesteps = sigmas.iter().map(|it| sigmas::timestep_of(*it, &known)).collect();
        }
        sigmas.push(sigmas::last(config.final_sigmas_type, &known).into());
        Ok(Self {
            init: init_noise_sigma(config.timestep_spacing, &sigmas),
            timesteps: timesteps.into_iter().map(|it| it as f32).collect(),
            sigmas: single(sigmas),
            prediction: config.prediction_type,
        })
    }
}

/// Timesteps of a run and their ratios of noise to signal.
pub(super) fn interpolated(config: &SchedulerConfig, known: &[f32], steps: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    // Those between whole numbers are in single precision.
    let timesteps: Vec<f64> = config.timesteps(steps).into_iter().map(|it| f64::from(it as f32)).collect();
    let whole: Vec<i64> = timesteps.iter().map(|it| *it as i64).collect();
    super::spacing::check(&whole, steps, known.len())?;
    let sigmas = timesteps.iter().map(|it| sigmas::at(*it, known)).collect();
    Ok((timesteps, sigmas))
}

/// Rounded to single precision.
pub(super) fn single(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|it| f64::from(it as f32)).collect()
}

/// How noisy a run begins.
pub(super) fn init_noise_sigma(spacing: TimestepSpacing, sigmas: &[f64]) -> f64 {
    let greatest = sigmas.iter().copied().fold(0.0, f64::max);
    match spacing {
        TimestepSpacing::Leading => (greatest * greatest + 1.0).sqrt(),
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => greatest,
    }
}

/// The clean picture that a prediction means, where there is `sigma` times as much noise as signal.
pub(super) fn original(prediction: PredictionType, sigma: f64, output: &Tensor<4>, sample: &Tensor<4>) -> Tensor<4> {
    let square = sigma * sigma + 1.0;
    match prediction {
        PredictionType::Epsilon => sample.clone() - output.clone().mul_scalar(sigma),
        PredictionType::Sample => output.clone(),
        PredictionType::VPrediction => {
            output.clone().mul_scalar(-sigma / square.sqrt()) + sample.clone().div_scalar(square)
        }
    }
}

/// The sample as the model sees it.
pub(super) fn scaled(sample: Tensor<4>, sigma: f64) -> Tensor<4> {
    sample.div_scalar((sigma * sigma + 1.0).sqrt())
}

impl Scheduler for Euler {
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
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (sigma, next) = (self.sigmas[at], self.sigmas[at + 1]);
        let original = original(self.prediction, sigma, &output, &sample);
        let slope = (sample.clone() - original).div_scalar(sigma);
        sample + slope.mul_scalar(next - sigma)
    }
}
