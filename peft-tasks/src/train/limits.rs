//! What numbers of a configuration may be.

use peft_core::{PeftError, Result};

/// More rows in a batch, or batches in a step, are a mistake of the keyboard, and would overflow what is computed from them.
pub const MOST_ROWS: usize = 1 << 20;
/// More tokens in a row are a mistake of the keyboard.
pub const MOST_TOKENS: usize = 1 << 30;
/// More steps are a mistake of the keyboard.
pub const MOST_STEPS: usize = 1_000_000_000;

/// The limits of one field of a configuration `C`. A field that is not set has none.
#[derive(Debug)]
pub struct Limit<C> {
    pub(crate) field: &'static str,
    value: Value<C>,
}

#[derive(Debug)]
enum Value<C> {
    Number(fn(&C) -> Option<f64>, Range),
    Whole(fn(&C) -> Option<usize>, usize, usize),
}

/// What a finite number may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Range {
    /// More than this.
    Above(f64),
    /// This or more.
    AtLeast(f64),
    /// More than the first, and at most the second.
    Within(f64, f64),
    /// From 0 to 1.
    Share,
    /// From 0, and below 1.
    BelowOne,
}

impl<C> Limit<C> {
    /// Of a number.
    pub const fn number(field: &'static str, value: fn(&C) -> Option<f64>, range: Range) -> Self {
        Self { field, value: Value::Number(value, range) }
    }

    /// Of a whole number, from `least` to `most`.
    pub const fn whole(field: &'static str, value: fn(&C) -> Option<usize>, least: usize, most: usize) -> Self {
        Self { field, value: Value::Whole(value, least, most) }
    }
}

/// Refuses the first number that is not within its limits.
///
/// # Errors
/// A [`PeftError::Config`] with its field, its value and what it may be.
pub fn check<C>(config: &C, limits: &[Limit<C>]) -> Result<()> {
    for Limit { field, value } in limits {
        match value {
            Value::Number(value, range) => {
                if let Some(value) = value(config).filter(|it| !range.holds(*it)) {
                    // As it was typed: not 300 digits.
                    let shown = if value.abs() < 1e15 { value.to_string() } else { format!("{value:e}") };
                    return Err(PeftError::config(*field, format!("is {shown}, expected {}", range.words())));
                }
            }
            Value::Whole(value, least, most) => {
                if let Some(value) = value(config).filter(|it| !(*least..=*most).contains(it)) {
                    let reason = format!("is {value}, expected a whole number from {least} to {most}");
                    return Err(PeftError::config(*field, reason));
                }
            }
        }
    }
    Ok(())
}

impl Range {
    fn holds(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Above(low) => value > low,
                Self::AtLeast(low) => value >= low,
                Self::Within(low, high) => value > low && value <= high,
                Self::Share => (0.0..=1.0).contains(&value),
                Self::BelowOne => (0.0..1.0).contains(&value),
            }
    }

    fn words(self) -> String {
        match self {
            Self::Above(low) => format!("a number above {low}"),
            Self::AtLeast(low) => format!("a number from {low}"),
            Self::Within(low, high) => format!("a number above {low}, at most {high}"),
            Self::Share => "a share from 0 to 1".to_owned(),
            Self::BelowOne => "a number from 0, below 1".to_owned(),
        }
    }
}
