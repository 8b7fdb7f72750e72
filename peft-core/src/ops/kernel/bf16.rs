//! Products of matrices that are rounded to bf16, summed in single precision.
//!
//! One instruction multiplies twice as many numbers as in single precision, where the processor has it: `VDPBF16PS` of
//! AVX512_BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later). It takes pairs of neighbouring terms, so both sides are
//! brought into pairs first, a pair in 32 bits with the first term below. It takes numbers that are too small to be normal
//! for zero. The scheme is that of [`super::product`]. Where there is AMX, its tiles multiply the same pairs: see [`super::amx`].

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use pulp::bytemuck;
use rayon::prelude::*;

use super::matrix::{Number, STEPS, visible};
use super::output::aligned;
use super::product::{DEPTH, PACKING, PANEL, PANELS, RUN, THIN, in_parts, turned};
use super::right::{Right, of_any};
use super::words::{LEFT, Rows, WIDTH};
use super::{Block, Kernel, Matrix, Onto, Start, amx, contiguous, int8, product, simd};
use crate::sharding;

/// Rows of a tile.
const ROWS: usize = 8;

/// Whether the processor has one of the two.
pub(crate) fn is_available() -> bool {
    amx::is_available() || has_vectors()
}

fn has_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The product of activations, or of a gradient, with a weight, and perhaps a product in single precision beside it.
///
/// A weight in pieces is whole for this product. In bf16 only if asked for, or in int8 if the weight asks for it. Few rows take as
/// long as reading the weight does, and stay in single precision.
pub(crate) fn with_weight(
    bf16: bool,
    [left, weight]: [FlexTensor; 2],
    beside: Option<[FlexTensor; 2]>,
    onto: Onto,
) -> FlexTensor {
    let weight = sharding::whole(weight);
    if let Some(threshold) = int8::threshold(&weight) {
        return int8::with_rounded(left, weight, threshold, onto_product(beside, onto));
    }
    let ([rows, inner], [_, columns]) = (left.shape().dims::<2>(), weight.shape().dims::<2>());
    if !bf16 || rows < ROWS || inner == 0 || columns < THIN {
        return match beside {
            Some(beside) => product([[left, weight], beside], onto),
            None => product([[left, weight]], onto),
        };
    }
    let onto = onto_product(beside, onto);
    let (left, weight) = (contiguous(left), visible(weight));
    let (left, weight) = (Matrix::of(&left), Right::of(&weight));
    #[allow(unsafe_code)]
    // SAFETY: a product writes all of its output.
    unsafe {
        onto.with([rows, columns], |output, start| multiply(output, left, weight, start))
    }
}

/// What is added to, with a product in single precision added already.
fn onto_product(beside: Option<[FlexTensor; 2]>, onto: Onto) -> Onto {
    match beside {
        Some(beside) => Onto::Tensor(product([beside], onto)),
        None => onto,
    }
}

#[inline(always)]
fn pair<T: Number>(a: T, b: T) -> u32 {
    a.bf16_bits() | b.bf16_bits() << 16
}

/// A row of numbers in pairs.
struct InPairs<'a> {
    pairs: &'a mut [u32],
    row: &'a [f32],
}

impl Kernel for InPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let (twos, odd) = self.row.as_chunks::<2>();
        for (to, [a, b]) in self.pairs.iter_mut().zip(twos) {
            *to = pair(*a, *b);
        }
        if let ([last], Some(to)) = (odd, self.pairs.last_mut()) {
            *to = pair(*last, 0.0);
        }
    }
}

/// Brings a matrix into panels `[depth, WIDTH]` of pairs, with zeros beside its columns and below its rows.
struct Pack<'a, T> {
    panels: &'a mut [u32],
    matrix: Matrix<'a, T>,
    depth: usize,
}

impl<T: Number + Default> Kernel for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { panels, matrix, depth } = self;
        for (at, panel) in panels.chunks_exact_mut(depth * WIDTH).enumerate() {
            let columns = (matrix.columns - at * WIDTH).min(WIDTH);
            let part = matrix.columns(at * WIDTH, columns);
            let (panel, below) = panel.split_at_mut(matrix.rows.div_ceil(2) * WIDTH);
            below.fill(0);
            if columns < WIDTH {
                panel.fill(0);
            }
            if part.strides[1] == 1 {
                pair_rows(panel, &part);
            } else {
                pair_columns(panel, &part);
            }
        }
    }
}

/// Rows that lie without gaps.
#[inline(always)]
fn pair_rows<T: Number + Default>(panel: &mut [u32], matrix: &Matrix<'_, T>) {
    let zeros = [T::default(); WIDTH];
    let row = |at: usize| &matrix.numbers[at * matrix.strides[0]..][..matrix.columns];
    for (at, to) in panel.chunks_exact_mut(WIDTH).enumerate() {
        let (a, b) = (row(2 * at), if 2 * at + 1 < matrix.rows { row(2 * at + 1) } else { &zeros });
        if matrix.columns == WIDTH {
            // A constant length makes this a few vector instructions.
            pair_all(&mut to[..WIDTH], &a[..WIDTH], &b[..WIDTH]);
        } else {
            pair_all(to, a, b);
        }
    }
}

#[inline(always)]
fn pair_all<T: Number>(to: &mut [u32], a: &[T], b: &[T]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = pair(*a, *b);
    }
}

/// Columns that lie without gaps.
#[inline(always)]
fn pair_columns<T: Number + Default>(panel: &mut [u32], matrix: &Matrix<'_, T>) {
    const PAIRS: usize = STEPS / 2;
    let line = matrix.strides[1];
    let (whole, fours) = (matrix.rows / STEPS * STEPS, matrix.columns / 4 * 4);
    for run in (0..whole).step_by(RUN) {
        for first in (0..fours).step_by(4) {
            for from in (run..(run + RUN).min(whole)).step_by(STEPS) {
                let mut pairs = [[0; PAIRS]; 4];
                for (at, pairs) in pairs.iter_mut().enumerate() {
                    let steps = matrix.numbers[(first + at) * line + from..].first_chunk::<STEPS>();
                    let steps = steps.expect("steps of the column");
                    for (at, to) in pairs.iter_mut().enumerate() {
                        *to = pair(steps[2 * at], steps[2 * at + 1]);
                    }
                }
                let [a, b, c, d] = &pairs;
                let rows = panel[from / 2 * WIDTH..].chunks_exact_mut(WIDTH);
                for (four, row) in turned([a, b, c, d]).iter().zip(rows) {
                    row[first..first + 4].copy_from_slice(four);
                }
            }
        }
    }
    for at in 0..matrix.columns {
        let column = &matrix.numbers[at * line..][..matrix.rows];
        let from = if at < fours { whole } else { 0 };
        let rows = panel[from / 2 * WIDTH..].chunks_exact_mut(WIDTH);
        for (terms, row) in column[from..].chunks(2).zip(rows) {
            row[at] = pair(terms[0], terms.get(1).copied().unwrap_or_default());
        }
    }
}

/// How a processor takes pairs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    /// Rows of a tile.
    rows: usize,
    /// Pairs of a run come in multiples of this.
    pairs: usize,
    /// Packing a panel takes as long as so many rows of its products.
    packing: usize,
    tiles: fn(&mut Block<'_>, Rows<'_>, &[u32], Start<'_>),
}

/// One vector instruction after another.
const VECTOR: Unit = Unit { rows: ROWS, pairs: 1, packing: PACKING, tiles };
/// By AMX.
const AMX: Unit = Unit { rows: amx::ROWS, pairs: amx::PAIRS, packing: 8 * PACKING, tiles: amx::tiles };

/// Adds `left · right` to what `start` says. The left side lies without gaps; no side is empty.
///
/// # Panics
/// If the processor cannot: who asks for bf16 has looked.
fn multiply(output: Block<'_>, left: Matrix<'_>, right: Right<'_>, start: Start<'_>) {
    assert!(is_available(), "the processor multiplies in bf16");
    multiply_by(if amx::is_available() { AMX } else { VECTOR }, output, left, right, start);
}

fn multiply_by(unit: Unit, output: Block<'_>, left: Matrix<'_>, right: Right<'_>, start: Start<'_>) {
    let [inner, _] = right.dims();
    // Zeros fill up runs and tiles.
    let pairs = inner.div_ceil(2).next_multiple_of(unit.pairs);
    let mut memory = LEFT.take();
    let rows = aligned(&mut memory, left.rows.next_multiple_of(unit.rows) * pairs);
    let rows: &mut [u32] = bytemuck::cast_slice_mut(rows);
    rows.par_chunks_mut(pairs).zip(left.numbers.par_chunks(inner)).with_min_len(ROWS).for_each(|(pairs, row)| {
        let (pairs, beyond) = pairs.split_at_mut(inner.div_ceil(2));
        simd(InPairs { pairs, row });
        beyond.fill(0);
    });
    let rows = &*rows;
    // Runs of equal length, so that the last one is not a sliver.
    let depth = pairs.div_ceil(pairs.div_ceil(DEPTH)).next_multiple_of(unit.pairs);
    in_parts(output, [unit.rows, WIDTH], unit.packing, |mut output, row, column| {
        let mut buffer = PANEL.take();
        let (height, width) = (output.rows(), output.columns());
        for at in (0..width).step_by(PANELS * WIDTH) {
            let columns = (PANELS * WIDTH).min(width - at);
            let mut output = output.part(0..height, at..at + columns);
            for from in (0..pairs).step_by(depth) {
                let depth = depth.min(pairs - from);
                let packed = aligned(&mut buffer, columns.div_ceil(WIDTH) * WIDTH * depth);
                let packed: &mut [u32] = bytemuck::cast_slice_mut(packed);
                let terms = (2 * depth).min(inner - 2 * from);
                let part = right.rows(2 * from, terms).columns(column + at, columns);
                of_any!(part, matrix => simd(Pack { panels: &mut *packed, matrix, depth }));
                let start = if from == 0 { start.from(column + at) } else { Start::Output };
                let rows = Rows { pairs: &rows[row * pairs + from..], stride: pairs, depth };
                (unit.tiles)(&mut output, rows, packed, start);
                #[allow(unsafe_code)]
                // SAFETY: the tiles of these panels are all columns of this part, over all its rows.
                unsafe {
                    output.set_written();
                }
            }
        }
        PANEL.set(buffer);
    });
    LEFT.set(memory);
}

/// The tiles of packed panels, over all rows of the output, which has the columns of these panels only.
fn tiles(output: &mut Block<'_>, left: Rows<'_>, right: &[u32], start: Start<'_>) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: `multiply`, the only caller, asks whether the processor has the instructions.
    unsafe {
        x86::tiles(output, left, right, start)
    };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no processor but x86-64 says that it has bf16 products: {}", left.depth + right.len());
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m512bh, __m512i, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_setzero_ps};

    use pulp::bytemuck;

    use super::{Block, ROWS, Rows, Start, WIDTH};
    use crate::ops::kernel::product::write_row;
    use crate::ops::kernel::words::{LANES, VECTORS};

    /// The same bits; the standard library has no safe conversion to this type.
    #[allow(unsafe_code)]
    #[inline(always)]
    fn bf16(pairs: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits without any meaning of their own.
        unsafe { std::mem::transmute(pairs) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn tiles(output: &mut Block<'_>, left: Rows<'_>, right: &[u32], start: Start<'_>) {
        let last = output.rows() - 1;
        for at in (0..=last).step_by(ROWS) {
            for (panel, right) in right.chunks_exact(left.depth * WIDTH).enumerate() {
                let columns = panel * WIDTH..((panel + 1) * WIDTH).min(output.columns());
                output.fetch(at..(at + ROWS).min(last + 1), columns.clone());
                let right = right.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
                let terms = right.len();
                // Where fewer rows are left, the last of them stands in for the others. An array of slices whose length
                // the compiler sees: a check in the loop would push sums out of their registers.
                let row = |row: usize| &left.row((at + row).min(last))[..terms];
                let rows: [&[u32]; ROWS] = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
                let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
                for (term, right) in right.iter().enumerate() {
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let x = bf16(_mm512_set1_epi32(row[term] as i32));
                        for (sum, y) in sums.iter_mut().zip(right) {
                            *sum = _mm512_dpbf16_ps(*sum, x, bf16(bytemuck::cast(*y)));
                        }
                    }
                }
                for (row, sums) in (at..=last).zip(sums) {
                    let mut sums: [f32; WIDTH] = bytemuck::cast(sums);
                    write_row(&mut sums, output, row, columns.clone(), start);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::flex::FlexTensor;
    use burn::tensor::TensorData;

    use super::*;
    use crate::ops::kernel::{Memory, numbers, transposed};

    /// Numbers that bf16 holds exactly, so that sums of few terms are exact, too.
    fn whole(dims: [usize; 2], salt: usize) -> FlexTensor {
        let values: Vec<f32> = (0..dims[0] * dims[1]).map(|at| ((at * 7919 + salt * 31) % 17) as f32 - 8.0).collect();
        FlexTensor::from_data(TensorData::new(values, dims))
    }

    /// Every unit of this processor, at sizes below, on and beyond its tiles, with runs that do not fit.
    #[test]
    fn all_units_give_the_products_of_their_numbers() {
        let units = [(VECTOR, has_vectors()), (AMX, amx::is_available())];
        for (unit, _) in units.into_iter().filter(|it| it.1) {
            for [rows, inner, columns] in [
                [8, 2, 32],
                [9, 31, 48],
                [16, 32, 49],
                [33, 33, 96],
                [31, 64, 100],
                [64, 1000, 33],
                [40, 3301, 130],
                [5, 70, 200],
            ] {
                let (left, right) = (whole([rows, inner], 1), whole([columns, inner], 2));
                let exact = |row: usize, column: usize| -> f32 {
                    (0..inner).map(|at| numbers(&left)[row * inner + at] * numbers(&right)[column * inner + at]).sum()
                };
                let turned = transposed(right.clone());
                let straight = turned.to_contiguous();
                for side in [&turned, &straight] {
                    let bias: Vec<f32> = (0..columns).map(|it| it as f32).collect();
                    let mut memory = Memory::new([rows, columns]);
                    multiply_by(unit, memory.block(), Matrix::of(&left), Right::of(side), Start::Row(&bias));
                    #[allow(unsafe_code)]
                    // SAFETY: a product writes all of its output.
                    let output = unsafe { memory.written() };
                    for (at, found) in output.iter().enumerate() {
                        let wanted = exact(at / columns, at % columns) + bias[at % columns];
                        assert_eq!(*found, wanted, "{rows}x{inner}x{columns} at {at}, {} rows a tile", unit.rows);
                    }
                }
            }
        }
    }
}
