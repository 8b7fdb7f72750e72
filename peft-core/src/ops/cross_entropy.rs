//! Softmax cross-entropy.

use burn::tensor::{Int, Tensor, activation};

/// Labels of this value are left out of a loss: torch's default.
pub const IGNORE_INDEX: i64 = -100;

/// Mean of `−log softmax(logits)[label]` over all labels that are not [`IGNORE_INDEX`].
///
/// Without any label left the result is NaN, as torch's is: zero divided by zero.
///
/// # Shapes
/// - logits: `[rows, classes]`
/// - labels: `[rows]`
/// - output: `[1]`
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    let ignored = labels.clone().equal_elem(IGNORE_INDEX);
    let kept = ignored.clone().bool_not().float().sum();
    let index = labels.mask_fill(ignored.clone(), 0).unsqueeze_dim::<2>(1);
    let picked = activation::log_softmax(logits, 1).gather(1, index).squeeze_dim::<1>(1);
    picked.mask_fill(ignored, 0.0).sum().neg() / kept
}
