//! Tensors by a number.

#[cfg(feature = "cube")]
mod cube;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
pub(super) use cube::together;

/// `tensor · factor`; on cards many at once within [`together`](super::together).
pub fn scaled<const D: usize>(tensor: Tensor<D>, factor: f64) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if cube::fits(&tensor) {
        return cube::scaled(tensor, factor);
    }
    tensor.mul_scalar(factor)
}
