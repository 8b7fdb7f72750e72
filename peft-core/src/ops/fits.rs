//! Which tensors have kernels of ours.

use burn::tensor::Tensor;

/// Whether the operations that have a form of their own for the CPU and for cards have one for this tensor.
pub(super) fn fits<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    if super::kernel::fits(tensor) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::fits(tensor) {
        return true;
    }
    false
}

/// The operation that computes a gradient, asked for by a backend that differentiates: it runs on the one below.
pub(super) fn no_second_gradient() -> ! {
    unreachable!("a backward pass runs on the backend below the one that differentiates")
}
