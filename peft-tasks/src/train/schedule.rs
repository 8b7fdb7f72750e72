//! Learning rates over the steps of a run: the schedules of transformers' `optimization.py`, as pure functions.

use std::f64::consts::PI;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

/// `lr_scheduler_type` of transformers' training arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The same all along; no warm-up.
    Constant,
    /// The same after the warm-up.
    ConstantWithWarmup,
    /// Down to 0 in a line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// Down to 0 along half a cosine, several times over.
    CosineWithRestarts,
    /// Down to `lr_end` along a power.
    Polynomial,
    /// With one over the square root of the step.
    InverseSqrt,
    /// Down to a lowest rate along half a cosine.
    CosineWithMinLr,
}

impl ScheduleKind {
    /// All of them, for lists and command lines.
    pub const ALL: [Self; 8] = [
        Self::Constant,
        Self::ConstantWithWarmup,
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts,
        Self::Polynomial,
        Self::InverseSqrt,
        Self::CosineWithMinLr,
    ];

    /// The name as transformers spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineWithRestarts => "cosine_with_restarts",
            Self::Polynomial => "polynomial",
            Self::InverseSqrt => "inverse_sqrt",
            Self::CosineWithMinLr => "cosine_with_min_lr",
        }
    }
}

impl std::str::FromStr for ScheduleKind {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            PeftError::config("lr_scheduler_type", format!("is `{name}`, expected one of {known}"))
        })
    }
}

/// How the learning rate changes, in the words of transformers' training arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The shape.
    pub lr_scheduler_type: ScheduleKind,
    /// Steps over which the rate rises from 0; below 1 a share of all steps.
    pub warmup_steps: f64,
    /// A share of all steps, read where `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// What only some shapes know.
    pub lr_scheduler_kwargs: ScheduleArguments,
}

/// `lr_scheduler_kwargs`. Setting one that the shape does not know is an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleArguments {
    /// Waves of a cosine (default 0.5: from the top to the bottom), or number of restarts (default 1).
    pub num_cycles: Option<f64>,
    /// Last rate of `polynomial`. Default: 1e-7.
    pub lr_end: Option<f64>,
    /// Power of `polynomial`. Default: 1.
    pub power: Option<f64>,
    /// Steps after which `inverse_sqrt` has fallen to about 0.7. Default: the warm-up's steps, or 10000 without one.
    pub timescale: Option<f64>,
    /// Lowest rate of `cosine_with_min_lr`.
    pub min_lr: Option<f64>,
    /// Lowest rate of `cosine_with_min_lr`, as a share of the highest.
    pub min_lr_rate: Option<f64>,
}

/// A schedule for a run of known length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    shape: Shape,
    warmup: usize,
    total: usize,
    peak: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Constant,
    Linear,
    Cosine { cycles: f64, lowest: f64 },
    Restarts { cycles: f64 },
    Polynomial { end: f64, power: f64 },
    InverseSqrt { timescale: f64 },
}

impl Schedule {
    /// The schedule of a run of `total_steps` optimiser steps whose highest rate is `learning_rate`.
    ///
    /// # Errors
    /// A value out of range, or an argument that the shape does not know.
    pub fn new(config: &ScheduleConfig, total_steps: usize, learning_rate: f64) -> Result<Self> {
        let kind = config.lr_scheduler_type;
        let given = &config.lr_scheduler_kwargs;
        check_known(kind, given)?;
        let number = |field: &str, value: f64, ok: bool, expected: &str| match ok && value.is_finite() {
            true => Ok(value),
            false => Err(PeftError::config(field, format!("is {value}, expected {expected}"))),
        };
        number("learning_rate", learning_rate, learning_rate > 0.0, "a number above 0")?;
        let (steps, ratio) = (config.warmup_steps, config.warmup_ratio);
        number("warmup_steps", steps, steps >= 0.0, "a number of steps, or a share below 1")?;
        number("warmup_ratio", ratio, (0.0..=1.0).contains(&ratio), "a share from 0 to 1")?;
        let share = if steps > 0.0 { steps } else { ratio };
        let warmup = if steps >= 1.0 { steps as usize } else { (total_steps as f64 * share).ceil() as usize };

        let cycles = |fallback: f64| {
            let cycles = given.num_cycles.unwrap_or(fallback);
            number("num_cycles", cycles, cycles > 0.0, "a number above 0")
        };
        let shape = match kind {
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => Shape::Constant,
            ScheduleKind::Linear => Shape::Linear,
            ScheduleKind::Cosine => Shape::Cosine { cycles: cycles(0.5)?, lowest: 0.0 },
            ScheduleKind::CosineWithRestarts => Shape::Restarts { cycles: cycles(1.0)? },
            ScheduleKind::Polynomial => {
                let (end, power) = (given.lr_end.unwrap_or(1e-7), given.power.unwrap_or(1.0));
                number("lr_end", end, (0.0..learning_rate).contains(&end), "less than the learning rate")?;
                Shape::Polynomial {
                    end: end / learning_rate,
                    power: number("power", power, power > 0.0, "a number above 0")?,
                }
            }
            ScheduleKind::InverseSqrt => {
                let timescale = given.timescale.unwrap_or(if warmup > 0 { warmup as f64 } else { 10_000.0 });
                Shape::InverseSqrt { timescale: number("timescale", timescale, timescale > 0.0, "a number above 0")? }
            }
            ScheduleKind::CosineWithMinLr => {
                let lowest = match (given.min_lr, given.min_lr_rate) {
                    (Some(rate), None) => rate / learning_rate,
                    (None, Some(share)) => share,
                    _ => {
                        let reason = "needs one of `min_lr` and `min_lr_rate` for cosine_with_min_lr";
                        return Err(PeftError::config("lr_scheduler_kwargs", reason));
                    }
                };
                let within = (0.0..=1.0).contains(&lowest);
                Shape::Cosine {
                    cycles: cycles(0.5)?,
                    lowest: number("min_lr", lowest, within, "at most the learning rate")?,
                }
            }
        };
        let warmup = if kind == ScheduleKind::Constant { 0 } else { warmup };
        Ok(Self { shape, warmup, total: total_steps, peak: learning_rate })
    }

    /// What the highest rate is multiplied with at `step`, counted from 0: the value before the step is taken.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup.max(1) as f64;
        }
        let (step, warmup, total) = (step as f64, self.warmup as f64, self.total as f64);
        let progress = (step - warmup) / (total - warmup).max(1.0);
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
            Shape::Cosine { cycles, lowest } => {
                let wave = 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
                (wave * (1.0 - lowest) + lowest).max(0.0)
            }
            Shape::Restarts { .. } if progress >= 1.0 => 0.0,
            Shape::Restarts { cycles } => (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0),
            // transformers divides by `total - warmup` here, which may be 0 at the last step.
            Shape::Polynomial { end, .. } if step >= total => end,
            Shape::Polynomial { end, power } => (1.0 - end) * (1.0 - progress).powf(power) + end,
            Shape::InverseSqrt { timescale } => 1.0 / ((step + timescale - warmup) / timescale).sqrt(),
        }
    }

    /// The learning rate at `step`, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        self.peak * self.factor(step)
    }
}

fn check_known(kind: ScheduleKind, given: &ScheduleArguments) -> Result<()> {
    let known: &[&str] = match kind {
        ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup | ScheduleKind::Linear => &[],
        ScheduleKind::Cosine | ScheduleKind::CosineWithRestarts => &["num_cycles"],
        ScheduleKind::Polynomial => &["lr_end", "power"],
        ScheduleKind::InverseSqrt => &["timescale"],
        ScheduleKind::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
    };
    let set = [
        ("num_cycles", given.num_cycles),
        ("lr_end", given.lr_end),
        ("power", given.power),
        ("timescale", given.timescale),
        ("min_lr", given.min_lr),
        ("min_lr_rate", given.min_lr_rate),
    ];
    match set.iter().find(|(name, value)| value.is_some() && !known.contains(name)) {
        Some((name, _)) => {
            Err(PeftError::config("lr_scheduler_kwargs", format!("sets `{name}`, which {} does not know", kind.name())))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
