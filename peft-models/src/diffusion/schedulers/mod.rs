//! How a noisy picture becomes a clean one, step by step. Source: `diffusers/schedulers` (0.42), one file each.
//!
//! A [`SchedulerConfig`] is `scheduler_config.json`. [`SchedulerConfig::schedule`] makes the steps of a run of it,
//! [`SchedulerConfig::noise_schedule`] what training needs.

mod betas;
mod config;
mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod euler_ancestral;
mod pndm;
mod sigmas;
mod spacing;

use burn::tensor::Tensor;
use peft_core::Result;

pub use betas::NoiseSchedule;
pub use config::{
    AlgorithmType, BetaSchedule, FinalSigmas, PredictionType, SchedulerConfig, SchedulerKind, SolverType,
    TimestepSpacing, VarianceType,
};
pub use ddim::Ddim;
pub use ddpm::Ddpm;
pub use dpm_solver::DpmSolverMultistep;
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use pndm::Pndm;

/// The steps from noise to a picture.
///
/// The noise predictor is called once for every [timestep](Scheduler::timesteps), in their order, with the sample that
/// [`scale_model_input`](Scheduler::scale_model_input) gives; [`step`](Scheduler::step) takes what it says.
pub trait Scheduler {
    /// What the noise predictor is told, call by call.
    fn timesteps(&self) -> &[f32];

    /// What standard normal noise is multiplied by to be the first sample.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The sample as the noise predictor sees it in call `at`.
    fn scale_model_input(&self, sample: Tensor<4>, at: usize) -> Tensor<4> {
        let _ = at;
        sample
    }

    /// The sample behind call `at`, whose `output` is what the noise predictor says of `sample`.
    ///
    /// `noise` is called for standard normal noise of their shape where the step needs some.
    fn step(
        &mut self,
        at: usize,
        output: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;
}

impl SchedulerConfig {
    /// The scheduler for a run of so many steps.
    ///
    /// # Errors
    /// If there are none, or more than the noise predictor knows.
    pub fn schedule(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(match self.kind {
            SchedulerKind::Ddpm => Box::new(Ddpm::new(self, steps)?),
            SchedulerKind::Ddim => Box::new(Ddim::new(self, steps)?),
            SchedulerKind::Pndm => Box::new(Pndm::new(self, steps)?),
            SchedulerKind::DpmSolverMultistep => Box::new(DpmSolverMultistep::new(self, steps)?),
            SchedulerKind::Euler => Box::new(Euler::new(self, steps)?),
            SchedulerKind::EulerAncestral => Box::new(EulerAncestral::new(self, steps)?),
        })
    }
}
