//! Matrix products, such as of activations with weights.
//!
//! The usual scheme of blocks (Goto and van de Geijn, ACM TOMS 34(3), 2008), with one side packed: of a run of the inner
//! dimension the right side is packed into panels as wide as a tile of the output, the left side is read where it lies,
//! and the sums of a tile stay in registers while the run lasts. A few panels make a task, which packs them itself, so
//! that they go from memory to the cache of the core that reads them. Which numbers are added in which order depends on
//! the shape alone, not on the number of threads.
//!
//! Beside Burn's own product (the crate gemm) this one starts from a row of biases or from what is there, and adds
//! several products up, which needs no passes of their own then: a low-rank update costs what a few more terms of the
//! sum cost.

use std::cell::RefCell;
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::matrix::{Matrix, Number, STEPS, Widen, visible};
use super::output::{aligned, offset};
use super::part::{Lines, Part};
use super::right::{Right, of_any};
use super::{
    Block, Memory, contiguous, first, math, numbers, overwrite, pieces, rows_per_piece, simd, tensor, to_f32,
    transposed,
};

/// Terms of the sum that are packed at once: a panel of the right side is 300 kB then.
pub(super) const DEPTH: usize = 1600;
/// Panels of the right side that are packed at once: they stay in the second cache together.
pub(super) const PANELS: usize = 2;

/// Left and right side of a product.
pub(crate) type Pair<'a> = (Matrix<'a>, Right<'a>);

/// What the output holds before the products are added.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same row everywhere.
    Row(&'a [f32]),
    /// What is there.
    Output,
}

impl<'a> Start<'a> {
    /// For the columns from `first` on.
    #[inline(always)]
    pub(super) fn from(self, first: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[first..]),
            start => start,
        }
    }
}

/// The shape of a tile: of the two, the one that fits a width better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    Tall,
    Wide,
}

impl Tile {
    /// Rows, and vectors in a row. As many accumulators as leave registers for the operands.
    const fn shape<S: Simd>(self) -> [usize; 2] {
        match (self, S::REGISTER_COUNT >= 32) {
            (Self::Tall, true) => [8, 3],
            (Self::Wide, true) => [6, 4],
            (Self::Tall, false) => [4, 3],
            (Self::Wide, false) => [6, 2],
        }
    }

    /// The tile for a product of so many columns, its rows and its columns.
    fn of(width: usize) -> (Self, [usize; 2]) {
        struct Sizes;
        impl WithSimd for Sizes {
            type Output = [(Tile, [usize; 2]); 2];
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Self::Output {
                [Tile::Tall, Tile::Wide].map(|tile| {
                    let [rows, vectors] = tile.shape::<S>();
                    (tile, [rows, vectors * S::F32_LANES])
                })
            }
        }
        let [tall, wide] = Arch::new().dispatch(Sizes);
        let padded = |(_, [_, columns]): (Self, [usize; 2])| width.next_multiple_of(columns);
        if padded(wide) < padded(tall) { wide } else { tall }
    }
}

thread_local! {
    /// Packed panels: kept, so that no product has to touch new pages.
    pub(super) static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Brings a matrix into panels of `width` columns, `[rows, width]` each, with zeros beside the columns of the last one.
///
/// The panels lie `stride` numbers apart.
struct Pack<'a, T> {
    panels: &'a mut [f32],
    stride: usize,
    matrix: Matrix<'a, T>,
    width: usize,
}

/// Steps along a column that are turned at once: a run of it is long enough to be fetched ahead.
pub(super) const RUN: usize = 256;

impl<T: Number> WithSimd for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { panels, stride, matrix, width } = self;
        let Matrix { numbers, rows, columns, strides: [step, line] } = matrix;
        let whole = columns / width;
        if line == 1 {
            // All panels in turn, so that a row of the matrix is read once. The length of a copy is constant: a call for
            // every row would take longer than the row.
            match width / S::F32_LANES {
                4 => copy_rows::<S, T, 4>(panels, stride, whole, &matrix),
                3 => copy_rows::<S, T, 3>(panels, stride, whole, &matrix),
                _ => copy_rows::<S, T, 2>(panels, stride, whole, &matrix),
            }
        } else {
            for (at, panel) in panels.chunks_mut(stride).take(whole).enumerate() {
                let numbers = &numbers[at * width * line..];
                interleave(&mut panel[..rows * width], numbers, line, width, width);
            }
        }
        if columns > whole * width {
            let panel = &mut panels[whole * stride..][..rows * width];
            let (numbers, columns) = (&numbers[whole * width * line..], columns - whole * width);
            panel.fill(0.0);
            if line == 1 {
                for (at, row) in panel.chunks_exact_mut(width).enumerate() {
                    for (to, x) in row.iter_mut().zip(&numbers[at * step..at * step + columns]) {
                        *to = x.widen();
                    }
                }
            } else {
                interleave(panel, numbers, line, columns, width);
            }
        }
    }
}

/// Rows of `count` panels, of so many vectors each.
#[inline(always)]
fn copy_rows<S: Simd, T: Number, const VECTORS: usize>(
    panels: &mut [f32],
    stride: usize,
    count: usize,
    matrix: &Matrix<'_, T>,
) {
    let width = VECTORS * S::F32_LANES;
    let mut buffer = [0.0; 64];
    for at in 0..matrix.rows {
        let row = &matrix.numbers[at * matrix.strides[0]..];
        for (panel, row) in row.chunks_exact(width).take(count).enumerate() {
            let row = T::widened(row, &mut buffer[..width]);
            let (to, _) = S::as_mut_simd_f32s(&mut panels[panel * stride + at * width..][..width]).0.as_chunks_mut();
            let (from, _) = S::as_simd_f32s(row).0.as_chunks::<VECTORS>();
            to[0] = from[0];
        }
    }
}

/// Columns of a matrix that lie without gaps, `line` numbers apart, to the rows of a panel.
#[inline(always)]
fn interleave<T: Number>(panel: &mut [f32], numbers: &[T], line: usize, columns: usize, width: usize) {
    let mut buffers = [[0.0; STEPS]; 4];
    let rows = panel.len() / width;
    let even = [columns / 4 * 4, rows / STEPS * STEPS];
    for from in (0..even[1]).step_by(RUN) {
        let to = (from + RUN).min(even[1]);
        for first in (0..even[0]).step_by(4) {
            for from in (from..to).step_by(STEPS) {
                let steps = |at: usize| {
                    let start = (first + at) * line + from;
                    numbers[start..].first_chunk::<STEPS>().expect("steps of the column")
                };
                let [a, b, c, d] = &mut buffers;
                let wide = |at: usize, buffer| T::widened_steps(steps(at), buffer);
                let turned = turned([wide(0, a), wide(1, b), wide(2, c), wide(3, d)]);
                for (four, row) in turned.iter().zip(panel[from * width..].chunks_exact_mut(width)) {
                    row[first..first + 4].copy_from_slice(four);
                }
            }
        }
    }
    for at in 0..columns {
        let from = if at < even[0] { even[1] } else { 0 };
        let column = panel[from * width..].chunks_exact_mut(width);
        for (row, x) in column.zip(&numbers[at * line..][from..rows]) {
            row[at] = x.widen();
        }
    }
}

/// Column `i` of the four rows is row `i` of the result.
#[inline(always)]
pub(super) fn turned<T: Copy + Default, const N: usize>([a, b, c, d]: [&[T; N]; 4]) -> [[T; 4]; N] {
    let mut rows = [[T::default(); 4]; N];
    for ((((row, a), b), c), d) in rows.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *row = [*a, *b, *c, *d];
    }
    rows
}

/// The tiles of some panels, over all rows of the output, which has the columns of these panels only.
struct Tiles<'a, 'b> {
    tile: Tile,
    output: &'a mut Block<'b>,
    /// The left sides of the products that are added up.
    left: &'a [Matrix<'a>],
    /// Their right sides, packed: of every panel all terms, one product after the other.
    right: &'a [f32],
    /// From panel to panel.
    stride: usize,
    start: Start<'a>,
}

impl WithSimd for Tiles<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.tile.shape::<S>() {
            [8, 3] => self.run::<S, 8, 3>(simd),
            [6, 4] => self.run::<S, 6, 4>(simd),
            [4, 3] => self.run::<S, 4, 3>(simd),
            _ => self.run::<S, 6, 2>(simd),
        }
    }
}

impl Tiles<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let lanes = VECTORS * S::F32_LANES;
        let Self { output, left, right, stride, start, .. } = self;
        let depth: usize = left.iter().map(|it| it.columns).sum();
        for row in (0..output.rows()).step_by(ROWS) {
            for (panel, right) in right.chunks(stride).enumerate() {
                let (mut right, _) = S::as_simd_f32s(&right[..depth * lanes]).0.as_chunks::<VECTORS>();
                let columns = panel * lanes..((panel + 1) * lanes).min(output.columns());
                output.fetch(row..(row + ROWS).min(output.rows()), columns.clone());
                let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
                for left in left {
                    let (terms, rest) = right.split_at(left.columns);
                    add_terms(simd, &mut sums, left, row, terms);
                    right = rest;
                }
                for (row, sums) in (row..output.rows()).zip(&mut sums) {
                    write_row(bytemuck::cast_slice_mut(sums), output, row, columns.clone(), start);
                }
            }
        }
    }
}

/// Adds the product of rows of the left side from `first` on with a panel `[terms, VECTORS · lanes]`.
///
/// Where the left side has fewer rows than a tile, the last of them stands in for the others.
#[inline(always)]
fn add_terms<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    sums: &mut [[S::f32s; VECTORS]; ROWS],
    left: &Matrix<'_>,
    first: usize,
    right: &[[S::f32s; VECTORS]],
) {
    let terms = right.len();
    let row = |at: usize| (first + at).min(left.rows - 1);
    // The sums are a variable of this function, or they would be written to memory after every term.
    let mut own = *sums;
    if left.strides[1] == 1 {
        let rows: [&[f32]; ROWS] = std::array::from_fn(|at| &left.numbers[row(at) * left.strides[0]..][..terms]);
        for (term, right) in right.iter().enumerate() {
            for (sums, x) in own.iter_mut().zip(&rows) {
                let x = simd.splat_f32s(x[term]);
                for (sum, y) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(x, *y, *sum);
                }
            }
        }
    } else {
        let places: [usize; ROWS] = std::array::from_fn(row);
        let columns = left.numbers.chunks(left.strides[1]);
        for (left, right) in columns.zip(right) {
            for (sums, place) in own.iter_mut().zip(&places) {
                let x = simd.splat_f32s(left[*place]);
                for (sum, y) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(x, *y, *sum);
                }
            }
        }
    }
    *sums = own;
}

/// Writes a row of the sums of a tile, which may reach beyond the columns of the output, with what `start` adds to it.
#[inline(always)]
pub(super) fn write_row(sums: &mut [f32], output: &mut Block<'_>, row: usize, columns: Range<usize>, start: Start<'_>) {
    let sums = &mut sums[..columns.len()];
    match start {
        Start::Zero => {}
        Start::Row(bias) => math::axpy(1.0, &bias[columns.clone()], sums),
        Start::Output => math::axpy(1.0, output.row(row, columns.clone()), sums),
    }
    output.put(row, columns.start, sums);
}

/// Adds the products `left · right` of all pairs to what `start` says, on this thread alone. All of the output is written.
/// No side is empty.
pub(crate) fn multiply_alone(output: &mut Block<'_>, pairs: &[Pair<'_>], start: Start<'_>) {
    if let [(left, right)] = pairs
        && left.strides[1] == 1
        && left.rows < if right.lies_along() { FEW } else { FEW_ALONG }
    {
        match *right {
            Right::Single(right) => Arch::new().dispatch(Thin { output, left: *left, right, start }),
            Right::Bf16(right) => thin_half(output, *left, right, start),
            Right::F16(right) => thin_half(output, *left, right, start),
            Right::Packed(right) => thin_part(output, *left, right, start),
            Right::Patches(right) => thin_part(output, *left, right, start),
        }
        return;
    }
    let [_, width] = pairs[0].1.dims();
    let (tile, [_, tile_columns]) = Tile::of(width);
    let inner: usize = pairs.iter().map(|(left, _)| left.columns).sum();
    // Runs of equal length, so that the last one is not a sliver.
    let depth = inner.div_ceil(inner.div_ceil(DEPTH));
    let mut buffer = PANEL.take();
    for column in (0..width).step_by(PANELS * tile_columns) {
        let columns = (PANELS * tile_columns).min(width - column);
        let panels = columns.div_ceil(tile_columns);
        let rows = output.rows();
        let mut output = output.part(0..rows, column..column + columns);
        for from in (0..inner).step_by(depth) {
            let (left, right) = terms(pairs, from, depth);
            let depth = depth.min(inner - from);
            let packed = aligned(&mut buffer, panels * tile_columns * depth);
            let mut before = 0;
            for right in &right {
                let (panels, stride, width) =
                    (&mut packed[before * tile_columns..], tile_columns * depth, tile_columns);
                let part = right.columns(column, columns);
                of_any!(part, matrix => Arch::new().dispatch(Pack { panels, stride, matrix, width }));
                before += right.dims()[0];
            }
            let start = if from == 0 { start.from(column) } else { Start::Output };
            let stride = tile_columns * depth;
            Arch::new().dispatch(Tiles { tile, output: &mut output, left: &left, right: packed, stride, start });
            #[allow(unsafe_code)]
            // SAFETY: the tiles of these panels are all columns of this part, over all its rows.
            unsafe {
                output.set_written();
            }
        }
    }
    PANEL.set(buffer);
}

/// The terms from `from` to `from + depth` of the sum of all products, as products again.
fn terms<'a>(pairs: &[Pair<'a>], from: usize, depth: usize) -> (Vec<Matrix<'a>>, Vec<Right<'a>>) {
    let mut before = 0;
    let mut parts = (Vec::with_capacity(pairs.len()), Vec::with_capacity(pairs.len()));
    for (left, right) in pairs {
        let (start, end) = (from.max(before), (from + depth).min(before + left.columns));
        if start < end {
            parts.0.push(left.columns(start - before, end - start));
            parts.1.push(right.rows(start - before, end - start));
        }
        before += left.columns;
    }
    parts
}

/// The right side of several products, packed once for all of them.
#[derive(Debug)]
pub(crate) struct Panels {
    numbers: Vec<f32>,
    /// Rows of the right side.
    inner: usize,
    tile: Tile,
    /// Columns of a panel.
    width: usize,
}

impl Default for Panels {
    fn default() -> Self {
        Self { numbers: Vec::new(), inner: 0, tile: Tile::Tall, width: 1 }
    }
}

impl Panels {
    /// With fewer rows on the left of all products together, packing costs more than it brings.
    pub(crate) const LEAST: usize = FEW_ALONG;

    /// Packs a matrix, in the memory of the one before.
    pub(crate) fn pack(&mut self, right: Matrix<'_>) {
        let (tile, [_, width]) = Tile::of(right.columns);
        (self.tile, self.width, self.inner) = (tile, width, right.rows);
        let stride = width * right.rows;
        let panels = aligned(&mut self.numbers, right.columns.div_ceil(width) * stride);
        Arch::new().dispatch(Pack { panels, stride, matrix: right, width });
    }

    /// How many columns of a matrix with so many make a panel.
    pub(crate) fn width_for(columns: usize) -> usize {
        Tile::of(columns).1[1]
    }

    /// `left · right`, on this thread alone, with columns from `column` on, where a panel begins, and with as many rows from
    /// `row` on as the left side has columns. All of the output is written.
    pub(crate) fn multiply(
        &self,
        output: &mut Block<'_>,
        left: Matrix<'_>,
        [row, column]: [usize; 2],
        start: Start<'_>,
    ) {
        assert!(column % self.width == 0 && row + left.columns <= self.inner, "whole panels");
        let (stride, rows) = (self.width * self.inner, output.rows());
        let numbers = &self.numbers[offset(&self.numbers)..];
        // A few at a time, which stay near while all rows go by.
        for at in (0..output.columns()).step_by(PANELS * self.width) {
            let columns = (PANELS * self.width).min(output.columns() - at);
            let right = &numbers[(column + at) / self.width * stride..][..columns.div_ceil(self.width) * stride];
            let right = &right[row * self.width..];
            let mut output = output.part(0..rows, at..at + columns);
            let start = start.from(at);
            Arch::new().dispatch(Tiles { tile: self.tile, output: &mut output, left: &[left], right, stride, start });
        }
        #[allow(unsafe_code)]
        // SAFETY: the tiles of all panels are all columns, over all rows.
        unsafe {
            output.set_written();
        }
    }
}

/// With fewer rows on the left than this, packing the right side costs more than it brings: where it lies without gaps
/// along its rows, and where it does along its columns, which would have to be turned.
const FEW: usize = 4;
const FEW_ALONG: usize = 16;

/// A product with few rows on the left.
struct Thin<'a, 'b> {
    output: &'a mut Block<'b>,
    left: Matrix<'a>,
    right: Matrix<'a>,
    start: Start<'a>,
}

impl WithSimd for Thin<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { output, left, right, start } = self;
        let Matrix { columns, strides: [down, along], .. } = right;
        let row = |at: usize| &left.numbers[at * left.strides[0]..][..left.columns];
        begin(output, start);
        if along == 1 {
            for at in 0..output.rows() {
                let output = output.row(at, 0..columns);
                for (at, x) in row(at).iter().enumerate() {
                    math::axpy(*x, &right.numbers[at * down..][..columns], output);
                }
            }
            return;
        }
        for column in 0..columns {
            let y = &right.numbers[column * along..][..left.columns];
            dots(simd, [y], output.rows(), row, |_, at, sum| output.row(at, column..column + 1)[0] += sum);
        }
    }
}

/// Writes what sums are added to.
fn begin(output: &mut Block<'_>, start: Start<'_>) {
    match start {
        Start::Zero => output.fill(0.0),
        Start::Row(row) => output.fill_rows(row),
        Start::Output => {}
    }
}

/// A product with few rows on the left and a right side in half precision.
fn thin_half<T: Number>(output: &mut Block<'_>, left: Matrix<'_>, right: Matrix<'_, T>, start: Start<'_>) {
    if right.strides[1] != 1 {
        Arch::new().dispatch(ThinHalf { output, left, right, start });
        return;
    }
    thin_lines(output, left, [right.rows, right.columns], true, start, |at, to| {
        simd(Widen(to, &right.numbers[at * right.strides[0]..][..right.columns]));
    });
}

/// The same where the columns of the right side lie without gaps, as in a step of decoding: it takes as long as the weight takes to
/// come from memory, so numbers are widened in registers. Sums are those of [`Thin`], bit for bit.
struct ThinHalf<'a, 'b, T> {
    output: &'a mut Block<'b>,
    left: Matrix<'a>,
    right: Matrix<'a, T>,
    start: Start<'a>,
}

impl<T: Number> WithSimd for ThinHalf<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { output, left, right, start } = self;
        let row = |at: usize| &left.numbers[at * left.strides[0]..][..left.columns];
        begin(output, start);
        let (rows, fours) = (output.rows(), output.rows() / 4 * 4);
        for column in 0..right.columns {
            let line = &right.numbers[column * right.strides[1]..][..left.columns];
            for first in (0..fours).step_by(4) {
                let ys = [row(first), row(first + 1), row(first + 2), row(first + 3)];
                for (at, sum) in (first..).zip(dots_of_half(simd, line, ys)) {
                    output.row(at, column..column + 1)[0] += sum;
                }
            }
            for at in fours..rows {
                let [sum] = dots_of_half(simd, line, [row(at)]);
                output.row(at, column..column + 1)[0] += sum;
            }
        }
    }
}

/// The products of a line in half precision with rows.
#[inline(always)]
fn dots_of_half<S: Simd, T: Number, const N: usize>(simd: S, line: &[T], ys: [&[f32]; N]) -> [f32; N] {
    let whole = line.len() / S::F32_LANES;
    let y_vectors = vectors::<S, N>(ys, whole);
    let mut sums = [simd.splat_f32s(0.0); N];
    for (at, x) in line.chunks_exact(S::F32_LANES).enumerate() {
        let x = T::vector(simd, x);
        for (sum, y) in sums.iter_mut().zip(&y_vectors) {
            *sum = simd.mul_add_e_f32s(x, y[at], *sum);
        }
    }
    let tail = whole * S::F32_LANES;
    let mut totals = [0.0; N];
    for ((total, sum), y) in totals.iter_mut().zip(&sums).zip(&ys) {
        let mut rest = 0.0;
        for (x, y) in line[tail..].iter().zip(&y[tail..]) {
            rest += x.widen() * y;
        }
        *total = simd.reduce_sum_f32s(*sum) + rest;
    }
    totals
}

/// A product with few rows on the left and a right side that is written out when it is read.
fn thin_part<L: Lines>(output: &mut Block<'_>, left: Matrix<'_>, right: Part<L>, start: Start<'_>) {
    thin_lines(output, left, right.lying(), right.lies_along(), start, |at, to| right.widen_line(at, to));
}

/// A product with few rows on the left and a right side of which some lines are widened at a time: its rows, or its columns if
/// it does not lie `along`.
fn thin_lines(
    output: &mut Block<'_>,
    left: Matrix<'_>,
    [lines, length]: [usize; 2],
    along: bool,
    start: Start<'_>,
    widen: impl Fn(usize, &mut [f32]),
) {
    /// They stay in the first or second cache.
    const LINES: usize = 8;
    let mut buffer = PANEL.take();
    for from in (0..lines).step_by(LINES) {
        let count = LINES.min(lines - from);
        let wide = first(&mut buffer, count * length);
        for (at, line) in wide.chunks_exact_mut(length).enumerate() {
            widen(from + at, line);
        }
        let wide = Matrix::new(wide, [count, length], [length, 1]);
        if along {
            let start = if from == 0 { start } else { Start::Output };
            Arch::new().dispatch(Thin { output: &mut *output, left: left.columns(from, count), right: wide, start });
        } else {
            let rows = output.rows();
            let mut output = output.part(0..rows, from..from + count);
            let right = wide.transposed();
            Arch::new().dispatch(Thin { output: &mut output, left, right, start: start.from(from) });
        }
    }
    PANEL.set(buffer);
}

/// The same with all threads.
pub(crate) fn multiply(mut output: Block<'_>, pairs: &[Pair<'_>], start: Start<'_>) {
    let terms: usize = pairs.iter().map(|(left, _)| left.columns).sum();
    if output.rows() * terms * output.columns() < ALONE {
        multiply_alone(&mut output, pairs, start);
        return;
    }
    let (_, tile) = Tile::of(output.columns());
    in_parts(output, tile, PACKING, |mut output, row, column| {
        let (height, width) = (output.rows(), output.columns());
        let parts = pairs.iter().map(|(left, right)| (left.rows(row, height), right.columns(column, width)));
        let pairs: Vec<Pair<'_>> = parts.collect();
        multiply_alone(&mut output, &pairs, start.from(column));
    });
}

/// Calls `work` by all threads with the parts of the output of a product, and the row and column where they begin.
pub(super) fn in_parts(
    output: Block<'_>,
    [tile_rows, tile_columns]: [usize; 2],
    packing: usize,
    work: impl Fn(Block<'_>, usize, usize) + Sync,
) {
    let [height, width] = part([output.rows(), output.columns()], [tile_rows, tile_columns], packing);
    let tasks: Vec<_> = output
        .columns_of(width)
        .enumerate()
        .flat_map(|(column, band)| {
            band.bands(height).enumerate().map(move |(row, part)| (part, row * height, column * width))
        })
        .collect();
    tasks.into_par_iter().for_each(|(output, row, column)| work(output, row, column));
}

/// Packing a panel takes as long as so many rows of its products.
pub(super) const PACKING: usize = 40;

/// Multiplications below which one thread is done before others are awake.
const ALONE: usize = 1 << 20;

/// Rows and columns of a task, so that all threads are done soonest: more tasks are shared out more evenly, but each
/// packs its panels anew and reads its rows of the left side.
fn part([rows, columns]: [usize; 2], [tile_rows, tile_columns]: [usize; 2], packing: usize) -> [usize; 2] {
    /// Reading rows takes as long as their products with a twentieth of a panel.
    const READING: f64 = 0.05;
    let threads = rayon::current_num_threads();
    let all = columns.div_ceil(tile_columns);
    let mut best = (f64::INFINITY, [rows, columns]);
    for panels in 1..=PANELS.min(all) {
        for bands in 1..=(2 * threads).min(rows.div_ceil(packing)) {
            let height = rows.div_ceil(bands).next_multiple_of(tile_rows);
            let tasks = all.div_ceil(panels) * rows.div_ceil(height);
            let time = (tasks.div_ceil(threads) * (height.min(rows) + packing)) as f64 * (panels as f64 + READING);
            if time < best.0 {
                best = (time, [height, panels * tile_columns]);
            }
        }
    }
    best.1
}

/// A few columns: rows of the left side with rows of the transposed right side.
struct Dots<'a> {
    output: &'a mut [f32],
    left: &'a [f32],
    right: &'a [f32],
    inner: usize,
}

impl WithSimd for Dots<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { output, left, right, inner } = self;
        let columns = right.len() / inner;
        let right = |at: usize| &right[at * inner..][..inner];
        // So many rows at once as leave registers for the operands.
        const ROWS: usize = 4;
        let rows = if S::REGISTER_COUNT >= 32 { ROWS } else { 1 };
        for (output, left) in output.chunks_mut(rows * columns).zip(left.chunks(rows * inner)) {
            if left.len() == ROWS * inner {
                let left: [&[f32]; ROWS] = std::array::from_fn(|at| &left[at * inner..][..inner]);
                dots(simd, left, columns, right, |row, at, sum| output[row * columns + at] = sum);
            } else {
                for (output, x) in output.chunks_exact_mut(columns).zip(left.chunks_exact(inner)) {
                    dots(simd, [x], columns, right, |_, at, sum| output[at] = sum);
                }
            }
        }
    }
}

/// The products of rows with `count` others: four at a time, so that they are read once for them.
#[inline(always)]
fn dots<'a, S: Simd, const M: usize>(
    simd: S,
    xs: [&[f32]; M],
    count: usize,
    row: impl Fn(usize) -> &'a [f32],
    mut put: impl FnMut(usize, usize, f32),
) {
    let fours = count / 4 * 4;
    for first in (0..fours).step_by(4) {
        let sums = dots_of(simd, xs, [row(first), row(first + 1), row(first + 2), row(first + 3)]);
        for (m, sums) in sums.into_iter().enumerate() {
            for (at, sum) in sums.into_iter().enumerate() {
                put(m, first + at, sum);
            }
        }
    }
    for at in fours..count {
        for (m, [sum]) in dots_of(simd, xs, [row(at)]).into_iter().enumerate() {
            put(m, at, sum);
        }
    }
}

/// The first `count` vectors of each row.
#[inline(always)]
fn vectors<S: Simd, const N: usize>(rows: [&[f32]; N], count: usize) -> [&[S::f32s]; N] {
    let mut vectors: [&[S::f32s]; N] = [&[]; N];
    for (vectors, row) in vectors.iter_mut().zip(rows) {
        *vectors = &S::as_simd_f32s(row).0[..count];
    }
    vectors
}

#[inline(always)]
fn dots_of<S: Simd, const M: usize, const N: usize>(simd: S, xs: [&[f32]; M], ys: [&[f32]; N]) -> [[f32; N]; M] {
    let length = xs[0].len();
    let (whole, tail) = (length / S::F32_LANES, length / S::F32_LANES * S::F32_LANES);
    let (x_vectors, y_vectors) = (vectors::<S, M>(xs, whole), vectors::<S, N>(ys, whole));
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    for at in 0..whole {
        for (sums, x) in sums.iter_mut().zip(&x_vectors) {
            for (sum, y) in sums.iter_mut().zip(&y_vectors) {
                *sum = simd.mul_add_e_f32s(x[at], y[at], *sum);
            }
        }
    }
    // Loops, not closures, which might be compiled for the oldest instruction set.
    let mut totals = [[0.0; N]; M];
    for ((totals, sums), x) in totals.iter_mut().zip(&sums).zip(&xs) {
        for ((total, sum), y) in totals.iter_mut().zip(sums).zip(&ys) {
            let mut rest = 0.0;
            for (x, y) in x[tail..length].iter().zip(&y[tail..length]) {
                rest += x * y;
            }
            *total = simd.reduce_sum_f32s(*sum) + rest;
        }
    }
    totals
}

/// Fewer columns than this do not fill a panel.
pub(super) const THIN: usize = 32;

/// What a product is added to.
#[derive(Debug)]
pub(crate) enum Onto {
    Zero,
    /// The same row everywhere: a bias.
    Row(FlexTensor),
    /// A tensor, in its own memory if that is free.
    Tensor(FlexTensor),
}

impl Onto {
    /// The tensor `[rows, columns]` that `add` makes of this.
    ///
    /// # Safety
    /// `add` must write all numbers of its block, unless it is to start from those that are there.
    #[allow(unsafe_code)]
    pub(super) unsafe fn with(self, shape: [usize; 2], add: impl FnOnce(Block<'_>, Start<'_>)) -> FlexTensor {
        let row = match self {
            Self::Tensor(output) => {
                return overwrite(output, |output| add(Block::new(output, shape[1]), Start::Output));
            }
            Self::Row(row) => Some(contiguous(row)),
            Self::Zero => None,
        };
        let start = row.as_ref().map_or(Start::Zero, |row| Start::Row(numbers(row)));
        let mut memory = Memory::new(shape);
        add(memory.block(), start);
        // SAFETY: as the caller promises.
        tensor(unsafe { memory.written() }, Shape::new(shape))
    }
}

/// The sum of `left · right` over pairs of matrices, of which the first decides how it is computed, and of what it is
/// added to. A right side may be kept in half precision.
pub(crate) fn product<const N: usize>(pairs: [[FlexTensor; 2]; N], onto: Onto) -> FlexTensor {
    let ([rows, inner], [_, columns]) = (pairs[0][0].shape().dims::<2>(), pairs[0][1].shape().dims::<2>());
    if rows.min(inner) > 0 && columns >= THIN {
        let pairs = pairs.map(|pair| pair.map(visible));
        let sides = pairs.iter().map(|[left, right]| (Matrix::of(left), Right::of(right)));
        let sides: Vec<Pair<'_>> = sides.filter(|(left, _)| left.columns > 0).collect();
        #[allow(unsafe_code)]
        // SAFETY: a product writes all of its output.
        return unsafe { onto.with([rows, columns], |output, start| multiply(output, &sides, start)) };
    }
    let output = pairs.into_iter().map(|[left, right]| thin(left, to_f32(right))).reduce(Flex::float_add);
    let output = output.expect("at least one pair");
    match onto {
        Onto::Zero => output,
        Onto::Tensor(onto) => Flex::float_add(output, onto),
        Onto::Row(row) if columns > 0 => {
            let row = contiguous(row);
            let row = numbers(&row);
            overwrite(output, |output| {
                output.par_chunks_mut(columns).for_each(|output| math::axpy(1.0, row, output));
            })
        }
        Onto::Row(_) => output,
    }
}

/// `left · right` with few columns.
fn thin(left: FlexTensor, right: FlexTensor) -> FlexTensor {
    let ([rows, inner], [_, columns]) = (left.shape().dims::<2>(), right.shape().dims::<2>());
    if rows * inner * columns == 0 {
        return Flex::float_matmul(left, right);
    }
    let (left, right) = (contiguous(left), contiguous(transposed(right)));
    let (left, right) = (numbers(&left), numbers(&right));
    let height = rows_per_piece(inner);
    let output = pieces(rows * columns, height * columns, |at, output| {
        let left = &left[at * height * inner..][..output.len() / columns * inner];
        Arch::new().dispatch(Dots { output, left, right, inner });
    });
    tensor(output, Shape::new([rows, columns]))
}
