//! DDPM: Ho et al. 2020, arXiv 2006.11239. Source: `scheduling_ddpm.py` (0.42).

use burn::tensor::Tensor;
use peft_core::Result;

use super::betas::NoiseSchedule;
use super::config::{PredictionType, SchedulerConfig, VarianceType};
use super::scheduler::Scheduler;

/// A run of DDPM.
#[derive(Debug, Clone)]
pub struct Ddpm {
    schedule: NoiseSchedule,
    timesteps: Vec<f32>,
    whole: Vec<i64>,
    prediction: PredictionType,
    variance: VarianceType,
    /// The clean picture is kept within ± this.
    clip: Option<f64>,
}

impl Ddpm {
    /// A run of so many steps.
    ///
    /// # Errors
    /// If there are none, or more than the schedule has.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let (schedule, whole) = (config.noise_schedule(), config.whole_timesteps(steps));
        schedule.check(&whole, steps)?;
        Ok(Self {
            schedule,
            timesteps: whole.iter().map(|it| *it as f32).collect(),
            whole,
            prediction: config.prediction_type,
            variance: config.variance_type,
            clip: config.clip_sample.then_some(config.clip_sample_range),
        })
    }
}

/// The clean picture that a prediction means, where `alpha` is what is left of its variance.
pub(super) fn original(prediction: PredictionType, alpha: f64, output: &Tensor<4>, sample: &Tensor<4>) -> Tensor<4> {
    let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
    match prediction {
        PredictionType::Epsilon => (sample.clone() - output.clone().mul_scalar(noise)).div_scalar(signal),
        PredictionType::Sample => output.clone(),
        PredictionType::VPrediction => sample.clone().mul_scalar(signal) - output.clone().mul_scalar(noise),
    }
}

impl Scheduler for Ddpm {
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
        let alpha = self.schedule.alpha_before(self.whole[at], 1.0);
        let before = self.whole.get(at + 1).map_or(1.0, |it| self.schedule.alpha_before(*it, 1.0));
        let (noise_now, noise_before) = (1.0 - alpha, 1.0 - before);
        let (kept, added) = (alpha / before, 1.0 - alpha / before);

        let mut original = original(self.prediction, alpha, &output, &sample);
        if let Some(range) = self.clip {
            original = original.clamp(-range, range);
        }
        let of_original = before.sqrt() * added / noise_now;
        let of_sample = kept.sqrt() * noise_before / noise_now;
        let mean = original.mul_scalar(of_original) + sample.mul_scalar(of_sample);
        if self.whole[at] == 0 {
            return mean;
        }
        let deviation = match self.variance {
            VarianceType::FixedSmall | VarianceType::FixedSmallLog => {
                (noise_before / noise_now * added).max(1e-20).sqrt()
            }
            VarianceType::FixedLarge => added.sqrt(),
        };
        mean + noise().mul_scalar(deviation)
    }
}
