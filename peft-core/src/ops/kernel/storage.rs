//! Tensors as slices of numbers.

use burn::backend::DispatchDevice;
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use rayon::prelude::*;

use super::output::pieces;
use super::simd::{Kernel, simd};
use crate::quant;

/// Numbers that one task works on: large enough to be worth a task, small enough for the cache of a core.
pub(crate) const PIECE: usize = 16 * 1024;

/// Whether the operations of this module can take the tensor: on the CPU backend, in single precision.
pub(crate) fn fits<const D: usize>(tensor: &Tensor<D>) -> bool {
    let device = tensor.device().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Flex(_)) && tensor.dtype() == DType::F32
}

/// Whether the operations of this module can take the tensor as the weight of a product: as [`fits`] says, or frozen in
/// half precision or in fewer bits.
pub(crate) fn fits_weight(tensor: &Tensor<2>) -> bool {
    let device = tensor.device().without_autodiff();
    let is_narrow = matches!(tensor.dtype(), DType::BF16 | DType::F16) || quant::is_packed(tensor.dtype());
    let is_frozen = !tensor.is_require_grad();
    fits(tensor) || matches!(device.as_dispatch(), DispatchDevice::Flex(_)) && is_narrow && is_frozen
}

/// The tensor in row-major order without gaps, copied only if it is not.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// Numbers of a contiguous tensor.
pub(crate) fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor")
}

/// A tensor of numbers.
pub(crate) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// So many zeros, written by all threads: the memory of a large buffer is not at hand for a single one of them.
pub(crate) fn zeros(count: usize) -> Vec<f32> {
    pieces(count, PIECE, |_, _| {})
}

/// Calls `write` with the numbers of a tensor of the same shape as `tensor`, filled with its values: in its own memory
/// where nobody else holds it.
pub(crate) fn overwrite(tensor: FlexTensor, write: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut tensor = contiguous(tensor);
    let whole = tensor.layout().start_offset() == 0 && tensor.bytes().len() == tensor.layout().num_elements() * 4;
    if whole && let Some(numbers) = tensor.try_storage_mut::<f32>() {
        write(numbers);
        return tensor;
    }
    let mut values = numbers(&tensor).to_vec();
    write(&mut values);
    self::tensor(values, tensor.shape())
}

/// The same storage seen with its axes in another order.
pub(crate) fn permuted(tensor: FlexTensor, axes: &[usize]) -> FlexTensor {
    let layout = tensor.layout().permute(axes);
    tensor.with_layout(layout)
}

/// A matrix seen with its axes exchanged.
pub(crate) fn transposed(matrix: FlexTensor) -> FlexTensor {
    permuted(matrix, &[1, 0])
}

/// `f(x)` for every number.
pub(crate) fn map<F: Fn(f32) -> f32 + Copy + Sync>(input: FlexTensor, f: F) -> FlexTensor {
    struct Map<'a, F>(&'a mut [f32], &'a [f32], F);
    impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for (out, x) in self.0.iter_mut().zip(self.1) {
                *out = (self.2)(*x);
            }
        }
    }
    let input = contiguous(input);
    let numbers = numbers(&input);
    let output = pieces(numbers.len(), PIECE, |at, out| simd(Map(out, &numbers[at * PIECE..][..out.len()], f)));
    tensor(output, input.shape())
}

/// `f(x, y)` for every pair of numbers, in the memory of `x` if it is free.
pub(crate) fn zip<F: Fn(f32, f32) -> f32 + Copy + Sync>(x: FlexTensor, y: &FlexTensor, f: F) -> FlexTensor {
    struct Zip<'a, F>(&'a mut [f32], &'a [f32], F);
    impl<F: Fn(f32, f32) -> f32> Kernel for Zip<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for (x, y) in self.0.iter_mut().zip(self.1) {
                *x = (self.2)(*x, *y);
            }
        }
    }
    let y = contiguous(y.clone());
    let y = numbers(&y);
    overwrite(x, |x| x.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(x, y)| simd(Zip(x, y, f))))
}

/// How many rows of `width` numbers make a piece.
pub(crate) fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Where the rows of a rank-4 tensor begin.
pub(crate) struct Rows<'a> {
    numbers: &'a [f32],
    strides: [usize; 3],
    offset: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    /// Whether the last axis lies without gaps and no axis runs backwards.
    pub(crate) fn can_see(layout: &Layout) -> bool {
        layout.strides().iter().all(|it| *it >= 0) && (layout.strides()[3] == 1 || layout.shape()[3] <= 1)
    }

    /// A view of a tensor that [`Rows::can_see`].
    pub(crate) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
        Self {
            numbers: tensor.storage::<f32>(),
            strides: [stride(0), stride(1), stride(2)],
            offset: layout.start_offset(),
            width: layout.shape()[3],
        }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, index: [usize; 3]) -> &'a [f32] {
        let at = self.offset + (0..3).map(|axis| index[axis] * self.strides[axis]).sum::<usize>();
        &self.numbers[at..at + self.width]
    }
}

/// The tensor as it is if [`Rows`] can see it, else a copy.
pub(crate) fn visible(tensor: FlexTensor) -> FlexTensor {
    if Rows::can_see(tensor.layout()) { tensor } else { tensor.to_contiguous() }
}
