//! DPM-Solver++ of first and second order: Lu et al. 2022, arXiv 2211.01095. Source:
//! `scheduling_dpmsolver_multistep.py` (0.42).

use burn::tensor::Tensor;
use peft_core::Result;

use super::config::{BetaSchedule, FinalSigmas, PredictionType, SchedulerConfig, SolverType, TimestepSpacing};
use super::euler::single;
use super::scheduler::Scheduler;
use super::{sigmas, spacing};

/// Runs of fewer steps end with steps of lower order.
const FEW_STEPS: usize = 15;

/// A run of DPM-Solver++.
#[derive(Debug, Clone)]
pub struct DpmSolverMultistep {
    timesteps: Vec<f32>,
    /// Noise for signal of each call, and what the run ends with.
    sigmas: Vec<f64>,
    prediction: PredictionType,
    order: usize,
    solver: SolverType,
    /// Whether the last step is of first order.
    ends_in_first_order: bool,
    /// What the model said of the clean picture in the call before.
    before: Option<Tensor<4>>,
}

impl DpmSolverMultistep {
    /// A run of so many steps.
    ///
    /// # Errors
    /// If there are none, or more than the schedule has.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let known = config.noise_schedule().sigmas(config.rescale_betas_zero_snr);
        let (timesteps, mut sigmas) = if config.use_karras_sigmas {
            spacing::check(&[0], steps, known.len())?;
            let greatest = known[known.len() - 1].into();
            let sigmas = sigmas::karras(greatest, known[0].into(), steps);
            let timesteps = sigmas.iter().map(|it| sigmas::timestep_of(*it, &known));
            let is_rounded = config.beta_schedule != BetaSchedule::SquaredCosine;
            let whole = timesteps.map(|it| if is_rounded { it.round_ties_even() } else { it } as i64).collect();
            (whole, sigmas)
        } else {
            let timesteps = timesteps(config, &known, steps);
            spacing::check(&timesteps, steps, known.len())?;
            let sigmas = timesteps.iter().map(|it| sigmas::at(*it as f64, &known)).collect();
            (timesteps, sigmas)
        };
        sigmas.push(sigmas::last(config.final_sigmas_type, &known).into());
        let few = timesteps.len() < FEW_STEPS;
        Ok(Self {
            timesteps: timesteps.iter().map(|it| *it as f32).collect(),
            sigmas: single(sigmas),
            prediction: config.prediction_type,
            order: config.solver_order,
            solver: config.solver_type,
            ends_in_first_order: config.euler_at_final
                || (config.lower_order_final && few)
                || config.final_sigmas_type == FinalSigmas::Zero,
            before: None,
        })
    }
}

/// Timesteps of a run. Unlike those of other schedulers, they are one less than what the range is divided into.
fn timesteps(config: &SchedulerConfig, known: &[f32], steps: usize) -> Vec<i64> {
    // The log signal-to-noise ratio rises from the last timestep to the first.
    let too_noisy = |sigma: &&f32| -f64::from(sigma.ln()) < config.lambda_min_clipped;
    let last = config.num_train_timesteps - known.iter().rev().take_while(too_noisy).count();
    let timesteps: Vec<f64> = match config.timestep_spacing {
        TimestepSpacing::Linspace => {
            let all = spacing::evenly(last as f64 - 1.0, steps + 1);
            all.into_iter().skip(1).rev().collect()
        }
        TimestepSpacing::Leading => {
            let ratio = last / (steps + 1);
            (1..=steps).rev().map(|at| (at * ratio + config.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => spacing::trailing(last, config.num_train_timesteps, steps),
    };
    timesteps.into_iter().map(|it| it.round_ties_even() as i64).collect()
}

/// Shares of signal and noise, and the logarithm of their ratio.
fn shares(sigma: f64) -> (f64, f64, f64) {
    let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
    (signal, sigma * signal, -sigma.ln())
}

impl Scheduler for DpmSolverMultistep {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(
        &mut self,
        at: usize,
        output: Tensor<4>,
        sample: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (signal, noise, lambda) = shares(self.sigmas[at]);
        let (next_signal, next_noise, next_lambda) = shares(self.sigmas[at + 1]);
        let original = match self.prediction {
            PredictionType::Epsilon => (sample.clone() - output.mul_scalar(noise)).div_scalar(signal),
            PredictionType::Sample => output,
            PredictionType::VPrediction => sample.clone().mul_scalar(signal) - output.mul_scalar(noise),
        };
        let step = next_lambda - lambda;
        let growth = (-step).exp() - 1.0;
        let first_order = sample.mul_scalar(next_noise / noise) - original.clone().mul_scalar(next_signal * growth);
        let before = self.before.replace(original.clone());
        let is_last = at + 1 == self.timesteps.len();
        let Some(before) = before.filter(|_| self.order > 1 && !(is_last && self.ends_in_first_order)) else {
            return first_order;
        };
        let (_, _, lambda_before) = shares(self.sigmas[at - 1]);
        let slope = (original - before).mul_scalar(step / (lambda - lambda_before));
        let weight = match self.solver {
            SolverType::Midpoint => -0.5 * next_signal * growth,
            SolverType::Heun => next_signal * (growth / step + 1.0),
        };
        first_order + slope.mul_scalar(weight)
    }
}
