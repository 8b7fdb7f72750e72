//! Products of activations that are rounded to int8 with weights in int8, summed exactly: LLM.int8
//! ([arXiv 2208.07339](https://arxiv.org/abs/2208.07339)).
//!
//! A row of activations has 255 steps of its largest number, as a row of a weight has. Columns in which some activation reaches a
//! threshold stay out and are multiplied in single precision. Four neighbouring terms make a word; processors take them by
//! `TDPBSSD` of AMX or by `VPDPBUSD` of AVX512_VNNI, others one by one.
//!
//! Source: `MatMul8bitLt` and `int8_vectorwise_quant` of bitsandbytes 0.50.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use half::f16;
use pulp::bytemuck;
use rayon::prelude::*;

use super::output::aligned;
use super::product::{PANEL, in_parts};
use super::words::{LEFT, Rows, WIDTH, Write};
use super::{Block, Kernel, Onto, Start, amx, contiguous, numbers, product, simd, tensor};
use crate::quant::{self, ONE_STEP_OF_BOTH, Packed, QuantFormat, steps_per};

/// Terms of a word.
const FOUR: usize = 4;

/// From which size on activations in a product with `weight` are left out of rounding, where they are rounded at all: if it
/// has codes in int8 and says so, and is seen as `[in, out]`, as in a forward.
pub(super) fn threshold(weight: &FlexTensor) -> Option<f32> {
    if !quant::is_packed(weight.dtype()) || !quant::is_turned(weight) {
        return None;
    }
    let matrix = quant::view(weight);
    matrix.threshold.filter(|_| matrix.format == QuantFormat::Int8)
}

/// `left · weight`, added to `onto`.
pub(super) fn with_rounded(left: FlexTensor, weight: FlexTensor, threshold: f32, onto: Onto) -> FlexTensor {
    let ([rows, inner], matrix) = (left.shape().dims::<2>(), quant::view(&weight));
    if rows * inner * matrix.lines == 0 {
        return product([[left, weight]], onto);
    }
    let left = contiguous(left);
    let rounded = Rounded::new(numbers(&left), inner, threshold);
    #[allow(unsafe_code)]
    // SAFETY: every way writes all of the output.
    let output = unsafe {
        onto.with([rows, matrix.lines], |output, start| rounded.multiply(output, &matrix, start, Way::best()))
    };
    if rounded.outliers.is_empty() {
        return output;
    }
    let (beside, codes) = rounded.beside(numbers(&left), &matrix);
    product([[beside, codes]], Onto::Tensor(output))
}

/// How sums of codes are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tiles,
    Vectors,
    OneByOne,
}

impl Way {
    fn best() -> Self {
        match (amx::is_available(), has_vectors()) {
            (true, _) => Self::Tiles,
            (_, true) => Self::Vectors,
            _ => Self::OneByOne,
        }
    }

    /// Rows of a tile, and words that a row must be a multiple of.
    fn tile(self) -> [usize; 2] {
        match self {
            Self::Tiles => [amx::ROWS, amx::PAIRS],
            _ => [VECTOR_ROWS, 1],
        }
    }
}

/// Rows of a tile of vectors.
const VECTOR_ROWS: usize = 8;

fn has_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Activations in codes.
struct Rounded {
    /// `[rows, inner]`
    codes: Vec<i8>,
    inner: usize,
    /// The largest number of each row.
    largest: Vec<f32>,
    /// Columns that are not in the codes.
    outliers: Vec<usize>,
}

impl Rounded {
    fn new(numbers: &[f32], inner: usize, threshold: f32) -> Self {
        let half = |x: f32| f16::from_f32(x).to_f32();
        let mut outliers = Vec::new();
        if threshold > 0.0 {
            // A half's steps are large near the threshold: what is rounded up to it is one.
            let is_outlier = |x: &f32| half(*x).abs() >= threshold;
            let of_rows = numbers.par_chunks(inner).map(|row| {
                let found = row.iter().enumerate().filter(|(_, x)| x.abs() >= 0.99 * threshold && is_outlier(x));
                found.map(|(at, _)| at).collect::<Vec<_>>()
            });
            outliers = of_rows.reduce(Vec::new, |all, more| [all, more].concat());
            outliers.sort_unstable();
            outliers.dedup();
        }
        let mut codes = vec![0; numbers.len()];
        let mut largest = vec![0.0; numbers.len() / inner];
        let rows = codes.par_chunks_mut(inner).zip(largest.par_iter_mut()).zip(numbers.par_chunks(inner));
        rows.for_each(|((codes, largest), row)| {
            *largest = simd(RoundRow { codes, row, threshold });
            for at in &outliers {
                codes[*at] = 0;
            }
        });
        Self { codes, inner, largest, outliers }
    }

    /// The activations and the weights of the columns that are outliers, in single precision.
    fn beside(&self, numbers: &[f32], matrix: &Packed<'_>) -> (FlexTensor, FlexTensor) {
        let (count, rows) = (self.outliers.len(), self.largest.len());
        let pick = |row: &[f32]| self.outliers.iter().map(|at| row[*at]).collect::<Vec<_>>();
        let left: Vec<f32> = numbers.chunks(self.inner).flat_map(pick).collect();
        let mut right = vec![0.0; count * matrix.lines];
        let mut number = [0.0];
        for line in 0..matrix.lines {
            for (at, column) in self.outliers.iter().enumerate() {
                matrix.widen(line, *column, &mut number);
                right[at * matrix.lines + line] = number[0];
            }
        }
        (tensor(left, Shape::new([rows, count])), tensor(right, Shape::new([count, matrix.lines])))
    }

    /// Adds the product with a weight to what `start` says.
    fn multiply(&self, output: Block<'_>, matrix: &Packed<'_>, start: Start<'_>, way: Way) {
        // Packing pays if enough rows use what is packed.
        let way = if self.largest.len() < VECTOR_ROWS { Way::OneByOne } else { way };
        if way == Way::OneByOne {
            return self.one_by_one(output, matrix, start);
        }
        let [tile_rows, tile_words] = way.tile();
        let words = self.inner.div_ceil(FOUR).next_multiple_of(tile_words);
        let rows = self.largest.len();
        let mut memory = LEFT.take();
        let left = aligned(&mut memory, rows.next_multiple_of(tile_rows) * words);
        let left: &mut [u32] = bytemuck::cast_slice_mut(left);
        let lines = left.par_chunks_mut(words).zip(self.codes.par_chunks(self.inner));
        lines.for_each(|(to, from)| {
            let to = bytemuck::cast_slice_mut::<_, i8>(to);
            to[..self.inner].copy_from_slice(from);
            to[self.inner..].fill(0);
        });
        let left = &*left;
        /// Packing a panel takes as long as so many rows of its products.
        const PACKING: usize = 160;
        in_parts(output, [tile_rows, WIDTH], PACKING, |mut output, row, column| {
            let columns = output.columns();
            let mut memory = PANEL.take();
            let panels = aligned(&mut memory, columns.div_ceil(WIDTH) * WIDTH * words);
            let panels: &mut [u32] = bytemuck::cast_slice_mut(panels);
            for (at, panel) in panels.chunks_exact_mut(words * WIDTH).enumerate() {
                let first = column + at * WIDTH;
                pack(panel, matrix, first..(first + WIDTH).min(column + columns));
            }
            let height = output.rows();
            let rows = Rows { pairs: &left[row * words..], stride: words, depth: words };
            let mut write = |first: usize, panel: usize, sums: &[[i32; WIDTH]]| {
                let from = panel * WIDTH;
                let width = WIDTH.min(columns - from);
                for (at, sums) in sums.iter().enumerate() {
                    let at = first + at;
                    let step = self.largest[row + at] * ONE_STEP_OF_BOTH;
                    let scales = |it: usize| matrix.scales.of(column + from + it) * step;
                    let mut numbers = [0.0; WIDTH];
                    for (it, to) in numbers[..width].iter_mut().enumerate() {
                        *to = sums[it] as f32 * scales(it);
                    }
                    super::product::write_row(&mut numbers, &mut output, at, from..from + width, start.from(column));
                }
            };
            match way {
                Way::Tiles => amx::tiles_of_int8(height, rows, panels, &mut write),
                _ => vectors(height, rows, panels, &mut write),
            }
            PANEL.set(memory);
        });
        LEFT.set(memory);
    }

    fn one_by_one(&self, output: Block<'_>, matrix: &Packed<'_>, start: Start<'_>) {
        let codes: &[i8] = bytemuck::cast_slice(matrix.codes);
        let parts: Vec<_> = output.columns_of(WIDTH).enumerate().collect();
        parts.into_par_iter().for_each(|(part, mut output)| {
            let (column, columns) = (part * WIDTH, output.columns());
            for (row, (left, largest)) in self.codes.chunks_exact(self.inner).zip(&self.largest).enumerate() {
                let mut numbers = [0.0; WIDTH];
                for (at, to) in numbers[..columns].iter_mut().enumerate() {
                    let right = &codes[(column + at) * self.inner..][..self.inner];
                    *to =
                        simd(Dot(left, right)) as f32 * (matrix.scales.of(column + at) * (largest * ONE_STEP_OF_BOTH));
                }
                super::product::write_row(&mut numbers, &mut output, row, 0..columns, start.from(column));
            }
        });
    }
}

/// A row in codes, but for outliers; its largest number.
struct RoundRow<'a> {
    codes: &'a mut [i8],
    row: &'a [f32],
    threshold: f32,
}

impl Kernel for RoundRow<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        let half = |x: &f32| {
            let x = f16::from_f32(*x).to_f32();
            if self.threshold > 0.0 && x.abs() >= self.threshold { 0.0 } else { x }
        };
        let largest = self.row.iter().map(half).fold(0.0_f32, |most, x| most.max(x.abs()));
        let scale = if largest > 0.0 { steps_per(largest) } else { 0.0 };
        for (code, x) in self.codes.iter_mut().zip(self.row) {
            *code = (half(x) * scale).round_ties_even() as i8;
        }
        largest
    }
}

/// The sum of products of codes.
struct Dot<'a>(&'a [i8], &'a [i8]);

impl Kernel for Dot<'_> {
    type Output = i32;
    #[inline(always)]
    fn run(self) -> i32 {
        self.0.iter().zip(self.1).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
    }
}

/// Brings rows of a weight into a panel `[words, WIDTH]`, with zeros beside them and below their last word.
fn pack(panel: &mut [u32], matrix: &Packed<'_>, lines: std::ops::Range<usize>) {
    let width = matrix.width;
    if lines.len() < WIDTH {
        panel.fill(0);
    }
    for (at, line) in lines.enumerate() {
        let codes = &matrix.codes[line * width..][..width];
        let (fours, rest) = codes.as_chunks::<FOUR>();
        let mut column = panel.iter_mut().skip(at).step_by(WIDTH);
        for (to, four) in column.by_ref().zip(fours) {
            *to = u32::from_le_bytes(*four);
        }
        // What the words hold beyond the row belongs to the panel before.
        let mut last = [0; FOUR];
        last[..rest.len()].copy_from_slice(rest);
        let mut last = (!rest.is_empty()).then(|| u32::from_le_bytes(last));
        for to in panel.iter_mut().skip(fours.len() * WIDTH + at).step_by(WIDTH) {
            *to = last.take().unwrap_or_default();
        }
    }
}

/// The sums of fours by vector instructions, as [`amx::tiles_of_int8`] has them.
fn vectors(rows: usize, left: Rows<'_>, right: &[u32], write: Write<'_>) {
    assert!(has_vectors(), "the processor has int8 products");
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: the processor has the instructions.
    unsafe {
        x86::vectors(rows, left, right, write)
    };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no vectors here: {}", rows + left.depth + right.len() + std::mem::size_of_val(write));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_sub_epi32};

    use pulp::bytemuck;

    use super::{Rows, VECTOR_ROWS, WIDTH, Write};
    use crate::ops::kernel::words::{LANES, VECTORS};

    /// 128 four times: what makes a number with a sign one without.
    const SHIFT: i32 = 0x8080_8080_u32 as i32;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vectors(height: usize, left: Rows<'_>, right: &[u32], write: Write<'_>) {
        for at in (0..height).step_by(VECTOR_ROWS) {
            for (panel, right) in right.chunks_exact(left.depth * WIDTH).enumerate() {
                let right = right.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
                let terms = right.len();
                let row = |row: usize| &left.row((at + row).min(height - 1))[..terms];
                let rows: [&[u32]; VECTOR_ROWS] = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
                let mut sums = [[_mm512_setzero_si512(); VECTORS]; VECTOR_ROWS];
                // The instruction wants numbers without a sign on the left: 128 more, and 128 times the right side less.
                let mut more = [_mm512_setzero_si512(); VECTORS];
                for (term, right) in right.iter().enumerate() {
                    let right: [__m512i; VECTORS] = right.map(bytemuck::cast);
                    for (more, y) in more.iter_mut().zip(right) {
                        *more = _mm512_dpbusd_epi32(*more, _mm512_set1_epi32(SHIFT), y);
                    }
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let x = _mm512_set1_epi32(row[term] as i32 ^ SHIFT);
                        for (sum, y) in sums.iter_mut().zip(right) {
                            *sum = _mm512_dpbusd_epi32(*sum, x, y);
                        }
                    }
                }
                let mut found = [[0; WIDTH]; VECTOR_ROWS];
                for (to, sums) in found.iter_mut().zip(sums) {
                    let mut all = [_mm512_setzero_si512(); VECTORS];
                    for ((to, sum), more) in all.iter_mut().zip(sums).zip(more) {
                        *to = _mm512_sub_epi32(sum, more);
                    }
                    *to = bytemuck::cast(all);
                }
                write(at, panel, &found[..VECTOR_ROWS.min(height - at)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::kernel::Memory;
    use crate::quant::{Quantized, Rounding};

    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + salt * 104_729) % 2003) as f32 / 400.0 - 2.5).collect()
    }

    fn quantized(numbers: &[f32], shape: [usize; 2]) -> Quantized {
        Quantized::new(numbers, shape, QuantFormat::Int8, false, Rounding::Single).expect("finite numbers")
    }

    /// What the definition says, number by number and in double precision: codes of both sides, outliers apart.
    fn defined(left: &[f32], inner: usize, matrix: &Packed<'_>, threshold: f32) -> Vec<f64> {
        let half = |x: f32| f16::from_f32(x).to_f32();
        let outliers: Vec<bool> =
            (0..inner).map(|at| left.chunks(inner).any(|row| half(row[at]).abs() >= threshold)).collect();
        let mut output = Vec::new();
        for row in left.chunks(inner) {
            let within = row.iter().map(|x| half(*x)).filter(|x| x.abs() < threshold);
            let largest = within.fold(0.0_f32, |most, x| most.max(x.abs()));
            for line in 0..matrix.lines {
                let scale = matrix.scales.of(line);
                let mut sum = 0.0;
                for (at, x) in row.iter().enumerate() {
                    let weight = f64::from(matrix.codes[line * inner + at] as i8);
                    sum += match outliers[at] {
                        true => f64::from(*x) * weight * f64::from(scale) / 127.0,
                        false => {
                            let code = (half(*x) * steps_per(largest)).round_ties_even();
                            f64::from(code)
                                * weight
                                * f64::from(largest)
                                * f64::from(scale)
                                * f64::from(ONE_STEP_OF_BOTH)
                        }
                    };
                }
                output.push(sum);
            }
        }
        output
    }

    /// Every way of this processor, at sizes below, on and beyond its tiles, with outliers and without.
    #[test]
    fn all_ways_give_what_the_definition_says() {
        let ways = [(Way::Tiles, amx::is_available()), (Way::Vectors, has_vectors()), (Way::OneByOne, true)];
        for [rows, inner, lines] in
            [[1, 5, 3], [7, 64, 48], [8, 61, 49], [33, 128, 100], [40, 259, 200], [70, 1030, 33]]
        {
            for outlier in [None, Some(3)] {
                let mut left = values(rows * inner, 1);
                if let Some(at) = outlier {
                    left[at] = -7.25;
                }
                let own = quantized(&values(lines * inner, 2), [lines, inner]);
                let matrix = own.view();
                let wanted = defined(&left, inner, &matrix, 6.0);
                let largest = wanted.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                for (way, _) in ways.into_iter().filter(|it| it.1) {
                    let rounded = Rounded::new(&left, inner, 6.0);
                    assert_eq!(rounded.outliers, outlier.into_iter().collect::<Vec<_>>());
                    let mut memory = Memory::new([rows, lines]);
                    rounded.multiply(memory.block(), &matrix, Start::Zero, way);
                    #[allow(unsafe_code)]
                    // SAFETY: every way writes all of the output.
                    let output = tensor(unsafe { memory.written() }, Shape::new([rows, lines]));
                    let output = match rounded.outliers.is_empty() {
                        true => output,
                        false => {
                            let (beside, codes) = rounded.beside(&left, &matrix);
                            product([[beside, codes]], Onto::Tensor(output))
                        }
                    };
                    for (found, wanted) in numbers(&output).iter().zip(&wanted) {
                        assert!(
                            (f64::from(*found) - wanted).abs() <= 1e-5 * largest,
                            "{way:?} at {rows}x{inner}x{lines}: {found} is not {wanted}"
                        );
                    }
                }
            }
        }
    }
}
