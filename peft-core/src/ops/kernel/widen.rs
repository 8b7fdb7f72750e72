//! Halves in single precision.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element};
use half::f16;
use pulp::bytemuck::Pod;

use super::matrix::{Number, Widen};
use super::output::pieces;
use super::simd::simd;
use super::storage::{PIECE, contiguous, tensor, transposed};
use crate::{quant, sharding};

/// A weight in single precision: itself, or what halves and codes are exactly, for one product at a time. It lies as the
/// weight does.
pub(crate) fn to_f32(weight: FlexTensor) -> FlexTensor {
    let weight = sharding::whole(weight);
    let widen = match weight.dtype() {
        DType::BF16 => widened::<half::bf16>,
        DType::F16 => widened::<f16>,
        dtype if quant::is_packed(dtype) => return quant::widen(weight),
        _ => return weight,
    };
    let turned = weight.shape().num_dims() == 2 && !weight.is_contiguous();
    let lying = contiguous(if turned { transposed(weight) } else { weight });
    let output = tensor(widen(&lying), lying.shape());
    if turned { transposed(output) } else { output }
}

fn widened<T: Number + Element + Pod + Sync>(weight: &FlexTensor) -> Vec<f32> {
    let halves = weight.as_slice::<T>().expect("contiguous halves");
    pieces(halves.len(), PIECE, |at, out| simd(Widen(out, &halves[at * PIECE..][..out.len()])))
}
