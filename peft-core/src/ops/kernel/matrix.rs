//! What products read: matrices in slices, in single or half precision.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Element;
use half::{bf16, f16};
use pulp::Simd;
use pulp::bytemuck::{self, Pod};

use super::simd::Kernel;

/// Steps that are turned at once: so many that the result is an array in memory, or its numbers are stored one by one.
pub(super) const STEPS: usize = 64;

/// What a right side is made of.
pub(super) trait Number: Copy {
    /// The same numbers in single precision, in the buffer if they are not yet.
    #[inline(always)]
    fn widened<'a>(numbers: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..numbers.len()];
        for (to, x) in buffer.iter_mut().zip(numbers) {
            *to = x.widen();
        }
        buffer
    }
    #[inline(always)]
    fn widened_steps<'a>(numbers: &'a [Self; STEPS], buffer: &'a mut [f32; STEPS]) -> &'a [f32; STEPS] {
        for (to, x) in buffer.iter_mut().zip(numbers) {
            *to = x.widen();
        }
        buffer
    }
    fn widen(self) -> f32;
    /// A vector's worth of numbers.
    #[inline(always)]
    fn vector<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s {
        widened_one_by_one(simd, numbers)
    }
    /// Bits of the nearest bf16.
    fn bf16_bits(self) -> u32;
}

impl Number for f32 {
    #[inline(always)]
    fn widened<'a>(numbers: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        numbers
    }
    #[inline(always)]
    fn widened_steps<'a>(numbers: &'a [Self; STEPS], _: &'a mut [f32; STEPS]) -> &'a [f32; STEPS] {
        numbers
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    /// To even between two; what is not a number stays so.
    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        let bits = self.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        if self.is_nan() { 0x7fc0 } else { rounded }
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(self.bf16_bits() << 16)
    }
    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        u32::from(self.to_bits())
    }
}

impl Number for f16 {
    /// Exact for every number, and without branches, so that loops become vector instructions.
    #[inline(always)]
    fn widen(self) -> f32 {
        /// 2¹¹²: the exponents of the two types differ by so much.
        const SHIFT: f32 = f32::from_bits((127 + 112) << 23);
        /// Beyond all numbers: infinity and what is not a number.
        const BEYOND: u32 = 0x7c00 << 13;
        let bits = u32::from(self.to_bits());
        let (sign, size) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
        let number = (f32::from_bits(size) * SHIFT).to_bits();
        f32::from_bits(sign | number | if size >= BEYOND { f32::INFINITY.to_bits() } else { 0 })
    }
    /// One instruction has AVX-512 for it, which is the only one with so many lanes.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn vector<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s {
        use std::arch::x86_64::{__m256i, __m512, _mm512_cvtph_ps};
        let _ = simd;
        match numbers.first_chunk::<16>() {
            Some(numbers) if S::F32_LANES == 16 => {
                let halves: __m256i = bytemuck::cast(*numbers);
                #[allow(unsafe_code)]
                // SAFETY: these vectors are those of AVX-512.
                let wide: __m512 = unsafe { _mm512_cvtph_ps(halves) };
                bytemuck::cast(wide)
            }
            _ => widened_one_by_one(simd, numbers),
        }
    }
    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        self.widen().bf16_bits()
    }
}

#[inline(always)]
fn widened_one_by_one<S: Simd, T: Number>(simd: S, numbers: &[T]) -> S::f32s {
    let mut vector = simd.splat_f32s(0.0);
    let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut vector));
    for (to, x) in lanes.iter_mut().zip(numbers) {
        *to = x.widen();
    }
    vector
}

/// Numbers in single precision.
pub(super) struct Widen<'a, T>(pub(super) &'a mut [f32], pub(super) &'a [T]);

impl<T: Number> Kernel for Widen<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        T::widened(self.1, self.0);
    }
}

/// A matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, T = f32> {
    pub(super) numbers: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// From row to row, and from column to column; one of them is 1.
    pub(super) strides: [usize; 2],
}

impl<'a, T> Matrix<'a, T> {
    /// Numbers seen as `[rows, columns]`. There must be no gaps along one of the two.
    pub(crate) fn new(numbers: &'a [T], [rows, columns]: [usize; 2], strides: [usize; 2]) -> Self {
        debug_assert!(strides.contains(&1), "a matrix without gaps along an axis");
        Self { numbers, rows, columns, strides }
    }

    pub(crate) fn transposed(self) -> Self {
        let Self { numbers, rows, columns, strides: [down, along] } = self;
        Self::new(numbers, [columns, rows], [along, down])
    }

    /// Some of the rows, at least one.
    pub(crate) fn rows(self, first: usize, count: usize) -> Self {
        Self::new(&self.numbers[first * self.strides[0]..], [count, self.columns], self.strides)
    }

    /// Some of the columns, at least one.
    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        self.transposed().rows(first, count).transposed()
    }
}

impl<'a, T: Element + Pod> Matrix<'a, T> {
    /// A tensor that is [`visible`].
    pub(super) fn of(tensor: &'a FlexTensor) -> Self {
        let strides = [0, 1].map(|axis| tensor.layout().strides()[axis].unsigned_abs());
        Self::new(&tensor.storage::<T>()[tensor.layout().start_offset()..], tensor.shape().dims::<2>(), strides)
    }
}

/// A tensor of rank 2, as it lies if one of its axes has no gaps.
pub(super) fn visible(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    if strides.contains(&1) && strides.iter().all(|it| *it > 0) { tensor } else { tensor.to_contiguous() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (x, y) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(x.widen().to_bits() == x.to_f32().to_bits() || (x.is_nan() && x.widen().is_nan()), "{bits:x}");
            assert!(y.widen().to_bits() == y.to_f32().to_bits() || (y.is_nan() && y.widen().is_nan()), "{bits:x}");
            let rounded = bf16::from_f32(x.to_f32()).to_bits();
            assert!(x.bf16_bits() == u32::from(rounded) || x.is_nan(), "{bits:x}");
        }
    }
}
