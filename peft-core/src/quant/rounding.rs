//! What numbers that were widened from codes are rounded to.

use half::{bf16, f16};

/// What the reference rounds widened numbers to: the type that the matrix had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// Single precision.
    #[default]
    Single,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

impl Rounding {
    #[inline(always)]
    pub(super) fn of(self, x: f32) -> f32 {
        match self {
            Self::Single => x,
            Self::Bf16 => bf16::from_f32(x).to_f32(),
            Self::F16 => f16::from_f32(x).to_f32(),
        }
    }
}
