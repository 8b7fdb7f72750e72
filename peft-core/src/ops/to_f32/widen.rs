//! The numbers that codes mean.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(super) trait WidenOps: Backend {
    /// A matrix in codes, or one in pieces, in single precision, as it is seen.
    #[fusion(dtype = burn::tensor::DType::F32, shape = tensor)]
    fn widen(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// What is packed or in pieces is frozen: no gradient leads to it.
impl<B: WidenOps, C: CheckpointStrategy> WidenOps for Autodiff<B, C> {
    fn widen(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::widen(Self::inner(tensor)))
    }
}

pub(super) fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::widen(tensor.into_dispatch()))
}
