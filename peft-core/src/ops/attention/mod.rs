//! Scaled dot-product attention.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod fused;
mod mask;
mod scaled;
#[cfg(feature = "flex")]
mod seen;
#[cfg(feature = "cube")]
mod tiled;
#[cfg(feature = "cube")]
mod vectors;
mod visibility;

pub use mask::AttentionMask;
#[doc(hidden)]
pub use scaled::attention_plain;
pub use scaled::{attention, attention_capped, soft_cap};
pub use visibility::Visibility;
