//! The operations that models call, each under one name.
//!
//! Models use these and nothing else for what costs time: a faster form of an operation replaces the body here and
//! reaches every model at once.

mod activation;
mod attention;
mod cross_entropy;
mod dropout;
#[cfg(feature = "flex")]
mod kernel;
mod low_rank;
mod norm;
#[doc(hidden)]
pub mod plain;
mod rotary;
#[cfg(all(test, feature = "flex"))]
mod tests;

pub use activation::{gelu, gelu_tanh, quick_gelu, silu, silu_mul};
#[doc(hidden)]
pub use attention::attention_plain;
pub use attention::{AttentionMask, attention, attention_capped, bend};
pub use cross_entropy::{IGNORE_INDEX, cross_entropy, linear_cross_entropy};
pub use dropout::dropout;
pub use low_rank::low_rank_update;
pub use norm::{layer_norm, rms_norm};
pub use rotary::{Pairing, RotaryTable};

use burn::tensor::Tensor;

use crate::site::Layout;

/// `x W + b` with leading axes folded into one, so that it is a single matrix product.
///
/// # Shapes
/// - input: `[.., in]`
/// - weight: as `layout` says
/// - output: `[.., out]`
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    layout: Layout,
) -> Tensor<D> {
    let weight = match layout {
        Layout::OutIn => weight.transpose(),
        Layout::InOut => weight,
    };
    let mut dims = input.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let output = burn::tensor::module::linear(input.reshape([rows, dims[D - 1]]), weight, bias);
    dims[D - 1] = output.dims()[1];
    output.reshape(dims)
}
