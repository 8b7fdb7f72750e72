//! Sizes of pictures and patches.

use peft_core::{PeftError, Result};
use serde::Deserialize;

/// A height and a width, which `config.json` gives as a pair or, if they are the same, as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// As high as wide.
    Square(usize),
    /// Height and width.
    Rectangle([usize; 2]),
}

impl Size {
    /// Height and width.
    pub fn dims(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Rectangle(dims) => dims,
        }
    }

    /// Rows and columns of whole patches.
    pub(crate) fn patches(self, patch: Self) -> [usize; 2] {
        let ([height, width], [rows, columns]) = (self.dims(), patch.dims());
        [height / rows, width / columns]
    }

    /// Refuses a picture that no patch of this size fits into, and patches of no size.
    pub(crate) fn check(self, patch: Self) -> Result<()> {
        if patch.dims().contains(&0) {
            return Err(PeftError::config("patch_size", "must be at least 1"));
        }
        if self.patches(patch).contains(&0) {
            let reason = format!("is {:?}, less than `patch_size` = {:?}", self.dims(), patch.dims());
            return Err(PeftError::config("image_size", reason));
        }
        Ok(())
    }
}

/// A width times a ratio of `config.json`, as a layer between has it.
///
/// # Errors
/// Names the field if no model is so wide.
pub(super) fn inner_width(field: &str, ratio: f64, width: usize) -> Result<usize> {
    let inner = ratio * width as f64;
    match (0.0..=(1u64 << 28) as f64).contains(&inner) {
        true => Ok(inner as usize),
        false => Err(PeftError::config(field, format!("is {ratio} for a width of {width}: no model is so wide"))),
    }
}
