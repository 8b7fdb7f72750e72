//! DDIM: Song et al. 2020, arXiv 2010.02502. Source: `scheduling_ddim.py` (0.42).

use burn::tensor::Tensor;
use peft_core::Result;

use super::betas::NoiseSchedule;
use super::config::{PredictionType, SchedulerConfig};
use super::ddpm::original;
use super::scheduler::Scheduler;

/// A run of DDIM.
#[derive(Debug, Clone)]
pub struct Ddim {
    schedule: NoiseSchedule,
    timesteps: Vec<f32>,
    whole: Vec<i64>,
    /// Timesteps between two steps.
    ratio: i64,
    prediction: PredictionType,
    clip: Option<f64>,
    /// What is left of the variance before the first timestep.
    first: f64,
    eta: f64,
}

impl Ddim {
    /// A run of so many steps, without noise of its own.
    ///
    /// # Errors
    /// If there are none, or more than the schedule has.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let (schedule, whole) = (config.noise_schedule(), config.whole_timesteps(steps));
        schedule.check(&whole, steps)?;
        Ok(Self {
            first: if config.set_alpha_to_one { 1.0 } else { schedule.alpha(0) },
            schedule,
            timesteps: whole.iter().map(|it| *it as f32).collect(),
            whole,
            ratio: (config.num_train_timesteps / steps) as i64,
            prediction: config.prediction_type,
            clip: config.clip_sample.then_some(config.clip_sample_range),
            eta: 0.0,
        })
    }

    /// The share of DDPM's noise that every step adds: the reference's `eta`.
    pub fn with_eta(mut self, eta: f64) -> Self {
        self.eta = eta;
        self
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(
        &mut self,
        at: usize,
        output: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let timestep = self.whole[at];
        let alpha = self.schedule.alpha_before(timestep, self.first);
        let before = self.schedule.alpha_before(timestep - self.ratio, self.first);
        let (signal, rest) = (alpha.sqrt(), (1.0 - alpha).sqrt());

        let mut original = original(self.prediction, alpha, &output, &sample);
        let epsilon = match self.prediction {
            PredictionType::Epsilon => output,
            PredictionType::Sample => (sample - original.clone().mul_scalar(signal)).div_scalar(rest),
            PredictionType::VPrediction => output.mul_scalar(signal) + sample.mul_scalar(rest),
        };
        if let Some(range) = self.clip {
            original = original.clamp(-range, range);
        }
        let variance = (1.0 - before) / (1.0 - alpha) * (1.0 - alpha / before);
        let deviation = self.eta * variance.sqrt();
        let direction = epsilon.mul_scalar((1.0 - before - deviation * deviation).sqrt());
        let sample = original.mul_scalar(before.sqrt()) + direction;
        if self.eta > 0.0 { sample + noise().mul_scalar(deviation) } else { sample }
    }
}
