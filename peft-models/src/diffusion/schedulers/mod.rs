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
mod scheduler;
mod sigmas;
mod spacing;

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
pub use scheduler::Scheduler;

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
