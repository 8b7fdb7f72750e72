//! Matrices in pieces as tensors.
//!
//! Such a tensor has the shape of its matrix and no numbers: its bytes say which matrix of which base it is, and keep the
//! base alive. Its element type is that of packed matrices, with which the CPU backend does not compute.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{AllocationProperty, Bytes, DType, Device, Int, Shape, Tensor, TensorData};
use pulp::bytemuck;

use super::base::ShardedBase;
use crate::error::{PeftError, Result};
use crate::quant::{self, Packed};

/// What the bytes of a tensor in pieces begin with, where those of a packed one have their format.
const SHARDED: u64 = u64::from_le_bytes(*b"sharded\0");

/// The bytes of such a tensor.
struct Carrier {
    /// [`SHARDED`], the number of the base, and that of the matrix.
    words: [u64; 3],
    _base: ShardedBase,
}

impl AsRef<[u8]> for Carrier {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

impl ShardedBase {
    /// A matrix that was added, as a tensor.
    ///
    /// # Errors
    /// If the device is not the CPU backend `flex`: no other computes with it.
    pub(crate) fn tensor(&self, matrix: usize, device: &Device) -> Result<Tensor<2>> {
        let plain = device.clone().without_autodiff();
        if !matches!(plain.as_dispatch(), DispatchDevice::Flex(_)) {
            let what = format!("a base in pieces on {device:?}");
            return Err(PeftError::unsupported(what, "only the CPU backend computes with it: take --device flex"));
        }
        let carrier = Carrier { words: [SHARDED, self.number(), matrix as u64], _base: self.clone() };
        let size = size_of_val(&carrier.words);
        let bytes = Bytes::from_shared(bytes::Bytes::from_owner(carrier), AllocationProperty::Other);
        let data = TensorData::from_bytes(bytes, [size], DType::U8);
        let carrier = Tensor::<1, Int>::from_data(data, (&plain, DType::U8));
        let shape = self.matrix(matrix).shape;
        Ok(Tensor::from_dispatch(Dispatch::in_pieces(carrier.into_dispatch(), shape)))
    }
}

impl ShardedBase {
    /// A packed matrix, of which this process keeps a part, as a tensor.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub(crate) fn packed(&self, key: &str, matrix: &Packed<'_>, device: &Device) -> Result<Tensor<2>> {
        let words = quant::packed_words(matrix);
        let number = self.add_packed(key, [matrix.lines, matrix.width], bytemuck::cast_slice(&words));
        self.tensor(number, device)
    }
}

/// The base and the number of a matrix in pieces.
fn sharded(tensor: &FlexTensor) -> Option<(ShardedBase, usize)> {
    if !quant::is_packed(tensor.dtype()) {
        return None;
    }
    let words: &[u64] = bytemuck::cast_slice(&tensor.bytes()[..3 * 8]);
    if words[0] != SHARDED {
        return None;
    }
    ShardedBase::of(words[1]).map(|it| (it, words[2] as usize))
}

/// The matrix itself, for one product at a time; what is not in pieces stays as it is. It lies as the tensor does.
///
/// Operations cannot fail. Where a part cannot be read, the reason is logged and every number is NaN, so that no result
/// looks like one.
pub(crate) fn whole(tensor: FlexTensor) -> FlexTensor {
    let Some((base, number)) = sharded(&tensor) else { return tensor };
    let turned = tensor.layout().strides()[1] != 1;
    let matrix = base.matrix(number);
    let whole = match base.whole(number) {
        Ok(bytes) => FlexTensor::from_arc(bytes.into(), Layout::contiguous(Shape::new(matrix.shape)), matrix.dtype),
        Err(error) => unread(&error.to_string(), matrix.shape),
    };
    if !turned {
        return whole;
    }
    let layout = whole.layout().permute(&[1, 0]);
    whole.with_layout(layout)
}

fn unread(reason: &str, shape: [usize; 2]) -> FlexTensor {
    tracing::error!("a part of the base cannot be read from another process: {reason}");
    FlexTensor::from_data(TensorData::new(vec![f32::NAN; shape[0] * shape[1]], shape))
}

/// Rows of a table in pieces, `[rows, d_model]`, as they are stored; nothing for one that is not.
fn rows(table: &FlexTensor, rows: &[usize]) -> Option<FlexTensor> {
    let (base, number) = sharded(table)?;
    let matrix = base.matrix(number);
    let [count, width] = matrix.shape;
    if let Some(row) = rows.iter().find(|it| **it >= count) {
        panic!("row {row} is not one of {count}");
    }
    let shape = [rows.len(), width];
    Some(match base.rows_of(number, rows) {
        Ok(bytes) => FlexTensor::from_arc(bytes.into(), Layout::contiguous(Shape::new(shape)), matrix.dtype),
        Err(error) => unread(&error.to_string(), shape),
    })
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait ShardedOps: Backend {
    /// Bytes with the shape of the matrix that they stand for.
    fn in_pieces(carrier: IntTensor<Self>, shape: [usize; 2]) -> FloatTensor<Self>;
    fn sharded_rows(table: FloatTensor<Self>, rows: Vec<usize>) -> FloatTensor<Self>;
    /// One number: 1 if the tensor is in codes, whole or in pieces.
    fn in_codes(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl ShardedOps for Flex {
    fn in_pieces(carrier: FlexTensor, shape: [usize; 2]) -> FlexTensor {
        FlexTensor::from_arc(carrier.data_arc(), Layout::contiguous(Shape::new(shape)), DType::Flex32)
    }

    fn sharded_rows(table: FlexTensor, rows: Vec<usize>) -> FlexTensor {
        self::rows(&table, &rows).unwrap_or(table)
    }

    fn in_codes(tensor: FlexTensor) -> FlexTensor {
        let dtype = sharded(&tensor).map_or(tensor.dtype(), |(base, number)| base.matrix(number).dtype);
        FlexTensor::from_data(TensorData::from([if quant::is_packed(dtype) { 1.0_f32 } else { 0.0 }]))
    }
}

/// What is in pieces is frozen: no gradient leads to it.
impl<C: CheckpointStrategy> ShardedOps for Autodiff<Flex, C> {
    fn in_pieces(carrier: IntTensor<Self>, shape: [usize; 2]) -> FloatTensor<Self> {
        Self::from_inner(Flex::in_pieces(carrier, shape))
    }

    fn sharded_rows(table: FloatTensor<Self>, rows: Vec<usize>) -> FloatTensor<Self> {
        Self::from_inner(Flex::sharded_rows(Self::inner(table), rows))
    }

    fn in_codes(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(Flex::in_codes(Self::inner(tensor)))
    }
}

/// Whether a tensor is in codes, whole or in pieces.
pub(crate) fn is_packed<const D: usize>(tensor: Tensor<D>) -> bool {
    if !quant::is_packed(tensor.dtype()) {
        return false;
    }
    // Elsewhere nothing is in pieces.
    let device = tensor.device().without_autodiff();
    !matches!(device.as_dispatch(), DispatchDevice::Flex(_))
        || Tensor::<1>::from_dispatch(Dispatch::in_codes(tensor.into_dispatch())).into_data().iter::<f32>().eq([1.0])
}

/// Rows of a table in pieces, as they are stored.
///
/// # Shapes
/// - ids: `[batch, seq]`
/// - output: `[batch, seq, d_model]`
pub(crate) fn look_up(ids: Tensor<2, Int>, table: Tensor<2>) -> Tensor<3> {
    let ([batch, seq], [_, width]) = (ids.dims(), table.dims());
    let rows = ids.into_data().iter::<i64>().map(|it| usize::try_from(it).unwrap_or(usize::MAX)).collect();
    let found = Tensor::<2>::from_dispatch(Dispatch::sharded_rows(table.into_dispatch(), rows));
    found.reshape([batch, seq, width])
}
