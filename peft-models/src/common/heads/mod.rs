//! Heads that differ between architectures in names only.

pub(crate) mod masked_lm;
pub mod missing;
pub(crate) mod token_heads;
