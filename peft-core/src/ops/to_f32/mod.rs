//! Frozen weights that are stored in half precision.
//!
//! A number of bf16 or f16 is a number of f32 too, so a weight that a checkpoint stores as halves may stay as it is: what
//! is computed with it is, bit for bit, what the same numbers in f32 would give. Products take such a weight as it is.
//! Everything else takes it through [`to_f32`].

#[cfg(feature = "cube")]
pub(super) mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(any(feature = "flex", feature = "cube"))]
mod widen;

use burn::tensor::{DType, Int, Tensor};

#[cfg(any(feature = "flex", feature = "cube"))]
use crate::quant;
#[cfg(feature = "flex")]
use crate::sharding;

/// The tensor in single precision: itself, or what its halves are exactly.
pub fn to_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::BF16 | DType::F16 => tensor.cast(DType::F32),
        #[cfg(any(feature = "flex", feature = "cube"))]
        dtype if quant::is_packed(dtype) => widen::widened(tensor),
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
