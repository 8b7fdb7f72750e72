//! The low-rank update of a linear layer.

#[cfg(feature = "cube")]
mod beside;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod update;

use burn::tensor::Tensor;

use super::dropout::dropout;
#[cfg(feature = "flex")]
use super::kernel;
use super::layout::Layout;
use super::plain;
pub use update::LowRank;

/// `x W + b + scale · (drop(x) Aᵀ) Bᵀ`: a linear layer with what LoRA adds to it.
///
/// Forms no `[out, in]` matrix and no second output: the terms of the update are more terms of the sum that the layer is.
///
/// # Shapes
/// - input: `[rows, in]`
/// - weight: as `layout` says; it may be in half precision, as frozen weights are stored
/// - output: `[rows, out]`
pub fn linear_low_rank(
    input: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    layout: Layout,
    update: LowRank,
) -> Tensor<2> {
    let weight = match layout {
        Layout::OutIn => weight.transpose(),
        Layout::InOut => weight,
    };
    #[cfg(feature = "flex")]
    if kernel::fits_weight(&weight)
        && [&input, &update.a, &update.b].into_iter().all(kernel::fits)
        && bias.as_ref().is_none_or(kernel::fits)
    {
        return flex::linear(input, weight, bias, update);
    }
    #[cfg(feature = "cube")]
    if beside::fits(&input, &weight, bias.as_ref(), &update) {
        return beside::linear(input, weight, bias, update);
    }
    low_rank_update(super::linear::product(input.clone(), weight, bias), input, update)
}

/// `output + scale · (drop(input) Aᵀ) Bᵀ`: what LoRA adds to a layer that is computed already.
///
/// # Shapes
/// - output: `[rows, out]`
/// - input: `[rows, in]`
pub fn low_rank_update(output: Tensor<2>, input: Tensor<2>, update: LowRank) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if [&output, &input, &update.a, &update.b].into_iter().all(kernel::fits) {
        return flex::update(output, input, update);
    }
    // Experts may see no rows, and Burn's kernels for cards do not scale a tensor without numbers (0.22.1, with checks of overflow).
    if output.shape().num_elements() == 0 {
        return output;
    }
    plain::low_rank_update(output, dropout(input, update.dropout), update.a, update.b, update.scale)
}
