//! A linear layer.

#[cfg(feature = "cube")]
pub(super) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
#[cfg(feature = "cube")]
mod frozen;
#[cfg(feature = "cube")]
mod rounded;

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::kernel;
use super::{bf16, plain};
use crate::ops::Layout;

/// `x W + b` with leading axes folded into one, so that it is a single matrix product.
///
/// # Shapes
/// - input: `[.., in]`
/// - weight: as `layout` says; it may be in half precision, as frozen weights are stored
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
    let output = product(input.reshape([rows, dims[D - 1]]), weight, bias);
    dims[D - 1] = output.dims()[1];
    output.reshape(dims)
}

/// The weight is `[in, out]`.
pub(super) fn product(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) && kernel::fits_weight(&weight) && bias.as_ref().is_none_or(kernel::fits) {
        return flex::product(input, weight, bias);
    }
    let biased = |output: Tensor<2>| match bias.clone() {
        Some(bias) => output + bias.unsqueeze(),
        None => output,
    };
    // With `autotune`, Burn's product of nothing is whatever lay in memory there.
    if input.dims()[1] == 0 {
        return biased(Tensor::zeros([input.dims()[0], weight.dims()[1]], (&input.device(), input.dtype())));
    }
    #[cfg(feature = "cube")]
    if frozen::fits(&input, &weight) {
        return biased(frozen::product(input, weight));
    }
    if bf16::is_on() {
        return biased(bf16::product(input, weight));
    }
    plain::linear(input, super::to_f32(weight), bias)
}
