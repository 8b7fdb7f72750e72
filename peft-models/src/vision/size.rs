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
    pub(super) fn patches(self, patch: Self) -> [usize; 2] {
        let ([height, width], [rows, columns]) = (self.dims(), patch.dims());
        [height / rows, width / columns]
    }

    /// Refuses a picture that no patch of this size fits into, and patches of no size.
    pub(super) fn check(self, patch: Self) -> Result<()> {
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
