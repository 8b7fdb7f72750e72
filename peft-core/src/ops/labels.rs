//! Labels of losses.

/// Labels of this value are left out of a loss: torch's default.
pub const IGNORE_INDEX: i64 = -100;
