//! PNDM: Liu et al. 2022, arXiv 2202.09778. Source: `scheduling_pndm.py` (0.42).
//!
//! Without `skip_prk_steps` a run begins with three steps of Runge and Kutta, of four calls each.

use burn::tensor::Tensor;
use peft_core::{PeftError, Result};

use super::betas::NoiseSchedule;
use super::config::{PredictionType, SchedulerConfig};
use super::scheduler::Scheduler;

/// Steps of a run that the method of Runge and Kutta needs.
const ORDER: usize = 4;

/// A run of PNDM.
#[derive(Debug, Clone)]
pub struct Pndm {
    schedule: NoiseSchedule,
    timesteps: Vec<f32>,
    whole: Vec<i64>,
    /// Calls that belong to steps of Runge and Kutta.
    runge_kutta: usize,
    /// Timesteps between two steps.
    ratio: i64,
    prediction: PredictionType,
    first: f64,
    /// Sum of what a step of Runge and Kutta has been told so far.
    sum: Option<Tensor<4>>,
    /// Where the current step began.
    begin: Option<Tensor<4>>,
    /// What the model said, the latest last.
    outputs: Vec<Tensor<4>>,
}

impl Pndm {
    /// A run of so many steps.
    ///
    /// # Errors
    /// If there are none, more than the schedule has, or too few for the method of Runge and Kutta.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let schedule = config.noise_schedule();
        let mut ascending = config.whole_timesteps(steps);
        ascending.reverse();
        schedule.check(&ascending, steps)?;
        let count = ascending.len();
        let ratio = (config.num_train_timesteps / steps) as i64;
        let (whole, runge_kutta): (Vec<i64>, usize) = if config.skip_prk_steps {
            // The second step is taken twice: first to learn more of the first.
            let twice = ascending[count.saturating_sub(2)..count - 1].iter();
            let calls = ascending[..count - 1].iter().chain(twice).chain(&ascending[count - 1..]);
            (calls.rev().copied().collect(), 0)
        } else {
            if count < ORDER {
                let reason = format!("is {steps}, and this scheduler needs {ORDER} without `skip_prk_steps`");
                return Err(PeftError::config("steps", reason));
            }
            let halves = ascending[count - ORDER..].iter().flat_map(|it| [*it, *it + ratio / 2]);
            let halves: Vec<i64> = halves.take(2 * ORDER - 1).flat_map(|it| [it, it]).collect();
            let calls: Vec<i64> = halves[1..halves.len() - 1].iter().rev().copied().collect();
            let runge_kutta = calls.len();
            (calls.into_iter().chain(ascending[..count - 3].iter().rev().copied()).collect(), runge_kutta)
        };
        schedule.check(&whole, steps)?;
        Ok(Self {
            first: if config.set_alpha_to_one { 1.0 } else { schedule.alpha(0) },
            schedule,
            timesteps: whole.iter().map(|it| *it as f32).collect(),
            whole,
            runge_kutta,
            ratio,
            prediction: config.prediction_type,
            sum: None,
            begin: None,
            outputs: Vec::new(),
        })
    }

    /// A call of a step of Runge and Kutta.
    fn runge_kutta(&mut self, at: usize, output: Tensor<4>, sample: Tensor<4>) -> Tensor<4> {
        let before = self.whole[at] - if at % 2 == 1 { 0 } else { self.ratio / 2 };
        let timestep = self.whole[at / 4 * 4];
        let weighted = output.clone().mul_scalar(if matches!(at % 4, 0 | 3) { 1.0 / 6.0 } else { 1.0 / 3.0 });
        let sum = self.sum.take().map_or(weighted.clone(), |sum| sum + weighted);
        let slope = if at % 4 == 3 {
            sum
        } else {
            self.sum = Some(sum);
            output.clone()
        };
        if at.is_multiple_of(4) {
            self.outputs.push(output);
            self.begin = Some(sample.clone());
        }
        let begin = self.begin.clone().unwrap_or(sample);
        self.moved(begin, timestep, before, slope)
    }

    /// A step by what the model said before.
    fn multistep(&mut self, at: usize, output: Tensor<4>, sample: Tensor<4>) -> Tensor<4> {
        let mut timestep = self.whole[at];
        let mut before = timestep - self.ratio;
        let mut begin = sample;
        if at == 1 {
            (timestep, before) = (timestep + self.ratio, timestep);
        } else {
            let spare = self.outputs.len().saturating_sub(3);
            self.outputs.drain(..spare);
            self.outputs.push(output.clone());
        }
        let mixed = |weights: &[f64], divisor: f64| {
            let latest = self.outputs.iter().rev().zip(weights).map(|(it, weight)| it.clone().mul_scalar(*weight));
            latest.reduce(|a, b| a + b).map(|it| it.div_scalar(divisor))
        };
        let slope = match (self.outputs.len(), at) {
            (1, 0) => {
                self.begin = Some(begin.clone());
                Some(output.clone())
            }
            (1, 1) => {
                let slope = mixed(&[1.0], 1.0).map(|first| (output.clone() + first).div_scalar(2.0));
                begin = self.begin.take().unwrap_or(begin);
                slope
            }
            (2, _) => mixed(&[3.0, -1.0], 2.0),
            (3, _) => mixed(&[23.0, -16.0, 5.0], 12.0),
            _ => mixed(&[55.0, -59.0, 37.0, -9.0], 24.0),
        };
        self.moved(begin, timestep, before, slope.unwrap_or(output))
    }

    /// Formula (9) of the paper.
    fn moved(&self, sample: Tensor<4>, timestep: i64, before: i64, output: Tensor<4>) -> Tensor<4> {
        let alpha = self.schedule.alpha_before(timestep, self.first);
        let alpha_before = self.schedule.alpha_before(before, self.first);
        let (beta, beta_before) = (1.0 - alpha, 1.0 - alpha_before);
        let output = match self.prediction {
            PredictionType::VPrediction => output.mul_scalar(alpha.sqrt()) + sample.clone().mul_scalar(beta.sqrt()),
            _ => output,
        };
        let divisor = alpha * beta_before.sqrt() + (alpha * beta * alpha_before).sqrt();
        let of_sample = (alpha_before / alpha).sqrt();
        sample.mul_scalar(of_sample) - output.mul_scalar((alpha_before - alpha) / divisor)
    }
}

impl Scheduler for Pndm {
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
        match at < self.runge_kutta {
            true => self.runge_kutta(at, output, sample),
            false => self.multistep(at, output, sample),
        }
    }
}
