//! Which timesteps a run of so many steps uses.

use peft_core::{PeftError, Result};

use super::config::{SchedulerConfig, TimestepSpacing};

/// Fails for no step, and for timesteps that the model does not know.
pub(super) fn check(timesteps: &[i64], steps: usize, count: usize) -> Result<()> {
    if steps == 0 || timesteps.is_empty() {
        return Err(PeftError::config("steps", "must be at least 1"));
    }
    if steps > count {
        return Err(PeftError::config("steps", format!("is {steps}, and the scheduler has {count} timesteps")));
    }
    match timesteps.iter().find(|it| !(0..count as i64).contains(*it)) {
        Some(odd) => {
            let reason = format!("leads to timestep {odd} in {steps} steps, and there are {count}");
            Err(PeftError::config("steps_offset", reason))
        }
        None => Ok(()),
    }
}

impl SchedulerConfig {
    /// Timesteps of a run, the noisiest first, in whole numbers.
    pub(super) fn whole_timesteps(&self, steps: usize) -> Vec<i64> {
        self.timesteps(steps).into_iter().map(|it| it.round_ties_even() as i64).collect()
    }

    /// Timesteps of a run, the noisiest first; with `linspace` they may lie between whole numbers.
    pub(super) fn timesteps(&self, steps: usize) -> Vec<f64> {
        let count = self.num_train_timesteps;
        match self.timestep_spacing {
            TimestepSpacing::Linspace => evenly(count as f64 - 1.0, steps).into_iter().rev().collect(),
            TimestepSpacing::Leading => {
                let ratio = count / steps.max(1);
                (0..steps).rev().map(|at| (at * ratio + self.steps_offset) as f64).collect()
            }
            TimestepSpacing::Trailing => trailing(count, count, steps),
        }
    }
}

/// So many numbers from 0 to `last`, as numpy's `linspace` has them.
pub(super) fn evenly(last: f64, count: usize) -> Vec<f64> {
    let step = last / count.saturating_sub(1).max(1) as f64;
    (0..count).map(|at| if at + 1 == count && at > 0 { last } else { at as f64 * step }).collect()
}

/// Whole numbers counted down from `last`, less 1, by a ratio that need not be whole: numpy's `arange`, which may find one
/// more than were asked for.
pub(super) fn trailing(last: usize, count: usize, steps: usize) -> Vec<f64> {
    let (last, ratio) = (last as f64, count as f64 / steps.max(1) as f64);
    let step = (last - ratio) - last;
    let found = (last / ratio).ceil().max(0.0) as usize;
    (0..found).map(|at| (last + at as f64 * step).round_ties_even() - 1.0).collect()
}
