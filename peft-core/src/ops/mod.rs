//! The operations that models call, each under one name.
//!
//! Models use these and nothing else for what costs time: a faster form of an operation replaces the body here and
//! reaches every model at once.

mod activation;
mod adamw;
mod attention;
pub(crate) mod bf16;
mod conv;
mod convolution;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
mod dropout;
#[cfg(any(feature = "flex", feature = "cube"))]
mod fits;
mod group_norm;
mod interpolate;
#[cfg(feature = "flex")]
mod kernel;
mod labels;
mod layout;
mod linear;
mod low_rank;
mod norm;
#[doc(hidden)]
pub mod plain;
#[cfg(feature = "cube")]
mod queue;
mod random;
mod rotary;
mod scaled;
mod split;
mod squares;
#[cfg(all(test, feature = "flex"))]
mod tests;
mod to_f32;
mod together;
mod upsample;

pub use activation::{gelu, gelu_tanh, quick_gelu, silu, silu_mul};
pub use adamw::{AdamWStep, adamw_step, has_adamw_step};
#[doc(hidden)]
pub use attention::attention_plain;
pub use attention::{AttentionMask, Visibility, attention, attention_capped, soft_cap};
pub use bf16::{check_bf16, within_bf16};
pub use conv::conv2d;
pub use convolution::Convolution;
pub use cross_entropy::{cross_entropy, linear_cross_entropy};
pub use dropout::dropout;
pub use group_norm::group_norm;
pub use interpolate::{Interpolation, interpolate};
pub use labels::IGNORE_INDEX;
pub use layout::Layout;
pub use linear::linear;
pub use low_rank::{LowRank, linear_low_rank, low_rank_update};
pub use norm::{layer_norm, rms_norm};
pub use random::{Seeded, drawn, random, seeded};
pub use rotary::{Pairing, RotaryTable};
pub use scaled::scaled;
pub use split::split;
pub use squares::squares_onto;
pub use to_f32::{embedding, to_f32};
pub use together::together;
pub use upsample::upsample_nearest;
