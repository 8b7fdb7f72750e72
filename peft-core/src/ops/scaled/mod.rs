//! Tensors by a number that is on their device.

#[cfg(feature = "cube")]
mod cube;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
pub(super) use cube::together;

/// `tensor · factor`, where `factor` is a single number, which is not read; on cards many at once within
/// [`together`](super::together).
pub fn scaled<const D: usize>(tensor: Tensor<D>, factor: &Tensor<1>) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if cube::fits(&tensor) {
        return cube::scaled(tensor, factor.clone());
    }
    tensor * factor.clone().reshape([1; D])
}
