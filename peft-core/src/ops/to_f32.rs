//! Frozen weights that are stored in half precision.
//!
//! A number of bf16 or f16 is a number of f32 too, so a weight that a checkpoint stores as halves may stay as it is: what
//! is computed with it is, bit for bit, what the same numbers in f32 would give. Products take such a weight as it is.
//! Everything else takes it through [`to_f32`].

use burn::tensor::{DType, Int, Tensor};

#[cfg(feature = "flex")]
use crate::{quant, sharding};

/// The tensor in single precision: itself, or what its halves are exactly.
pub fn to_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::BF16 | DType::F16 => tensor.cast(DType::F32),
        #[cfg(feature = "flex")]
        dtype if quant::is_packed(dtype) => fused::widened(tensor),
        _ => tensor,
    }
}

/// Rows of a table, in single precision.
///
/// # Shapes
/// - ids: `[batch, seq]`
/// - table: `[rows, d_model]`; it may be in half precision, or in pieces
/// - output: `[batch, seq, d_model]`
pub fn embedding(ids: Tensor<2, Int>, table: Tensor<2>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if quant::is_packed(table.dtype()) {
        return to_f32(sharding::look_up(ids, table));
    }
    to_f32(burn::tensor::module::embedding(table, ids))
}

#[cfg(feature = "flex")]
mod fused {
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::flex::FlexTensor;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::Tensor;

    use crate::ops::kernel;

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait WidenOps: Backend {
        fn widen(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    impl WidenOps for Flex {
        fn widen(tensor: FlexTensor) -> FlexTensor {
            kernel::to_f32(tensor)
        }
    }

    /// What is packed or in pieces is frozen: no gradient leads to it.
    impl<C: CheckpointStrategy> WidenOps for Autodiff<Flex, C> {
        fn widen(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
            Self::from_inner(Flex::widen(Self::inner(tensor)))
        }
    }

    pub(super) fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
        Tensor::from_dispatch(Dispatch::widen(tensor.into_dispatch()))
    }
}
