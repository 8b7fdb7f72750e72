//! Softmax cross-entropy.

#[cfg(feature = "cube")]
mod chunked;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;

use burn::tensor::{Int, Tensor};

#[cfg(feature = "flex")]
use super::kernel;
use super::layout::Layout;
use super::linear::linear;
use super::plain;

/// Mean of `−log softmax(logits)[label]` over all labels that are not [`IGNORE_INDEX`](crate::ops::IGNORE_INDEX).
///
/// Without any label left the result is NaN, as torch's is: zero divided by zero.
///
/// # Shapes
/// - logits: `[rows, classes]`
/// - labels: `[rows]`
/// - output: `[1]`
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    plain::cross_entropy(logits, labels, 0.0)
}

/// [`cross_entropy`] of `hidden · weightᵀ`, with torch's `label_smoothing`.
///
/// On the CPU and on cards the logits exist for some rows at a time only: the gradients are computed in the forward pass,
/// while a chunk of logits is at hand (as in Liger's fused linear cross-entropy, arXiv 2410.10989).
///
/// A label that is no class ends the program on the CPU. A card does not wait for its labels to be looked at: the loss is
/// NaN there.
///
/// # Shapes
/// - hidden: `[rows, d_model]`
/// - weight: `[classes, d_model]`; it may be in half precision, as frozen weights are stored
/// - labels: `[rows]`
/// - output: `[1]`
pub fn linear_cross_entropy(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, smoothing: f64) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if kernel::fits(&hidden) && kernel::fits_weight(&weight) {
        return flex::head_loss(hidden, weight, labels, smoothing);
    }
    #[cfg(feature = "cube")]
    if chunked::fits(&hidden, &weight) {
        return chunked::head_loss(hidden, weight, labels, smoothing);
    }
    plain::cross_entropy(linear(hidden, weight, None, Layout::OutIn), labels, smoothing)
}
