//! Matrix products of two sides that are not thin, such as activations with weights.
//!
//! The usual scheme of blocks (Goto and van de Geijn, ACM TOMS 34(3), 2008): of a run of the inner dimension the right
//! side is packed into panels as wide as a tile of the output, the left side into panels as high as a tile, and the sums
//! of a tile stay in registers while the run lasts. A few panels of the right side make a task, which packs them itself,
//! so that they go from memory to the cache of the core that reads them. Which numbers are added in which order depends
//! on the shape alone, not on the number of threads.
//!
//! Beside Burn's own product (the crate gemm) this one packs with all threads, keeps its buffers, and starts from a row
//! of biases, which needs no pass of its own.

use std::cell::RefCell;

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::{numbers, overwrite, tensor, zeros};

/// Numbers of the inner dimension that are packed at once: a panel of the right side is 300 kB then.
const DEPTH: usize = 1536;
/// Panels of the right side that make a task, at most: they stay in the second cache together.
const PANELS: usize = 2;
/// Vectors in a row of a tile.
const VECTORS: usize = 3;

/// A matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    /// From row to row, and from column to column; one of them is 1.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// A tensor of rank 2, as it lies if one of its axes has no gaps.
    fn visible(tensor: FlexTensor) -> FlexTensor {
        let strides = tensor.layout().strides();
        if strides.contains(&1) && strides.iter().all(|it| *it > 0) { tensor } else { tensor.to_contiguous() }
    }

    /// A tensor that is [`Matrix::visible`].
    fn new(tensor: &'a FlexTensor) -> Self {
        let [rows, columns] = tensor.shape().dims::<2>();
        let strides = [0, 1].map(|axis| tensor.layout().strides()[axis].unsigned_abs());
        Self { numbers: &tensor.storage::<f32>()[tensor.layout().start_offset()..], rows, columns, strides }
    }
}

/// What the output holds before the product is added.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same row everywhere.
    Row(&'a [f32]),
    /// What is there.
    Kept,
}

/// Rows and columns of a tile.
fn tile_size() -> [usize; 2] {
    struct Size;
    impl WithSimd for Size {
        type Output = [usize; 2];
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> [usize; 2] {
            [tile_rows::<S>(), VECTORS * S::F32_LANES]
        }
    }
    Arch::new().dispatch(Size)
}

/// As many accumulators as leave registers for the operands.
const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
}

thread_local! {
    /// Packed panels: kept, so that no product has to touch new pages.
    static RIGHT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Brings `lines` rows of the left side, or columns of the right side, into a panel `[depth, width]`, with zeros beside
/// them if they are fewer than `width`.
struct Pack<'a> {
    panel: &'a mut [f32],
    numbers: &'a [f32],
    /// From line to line, and along the inner dimension.
    strides: [usize; 2],
    lines: usize,
    width: usize,
}

impl WithSimd for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { panel, numbers, strides: [line, step], lines, width } = self;
        if lines < width {
            panel.fill(0.0);
        }
        if line == 1 {
            for (at, row) in panel.chunks_exact_mut(width).enumerate() {
                row[..lines].copy_from_slice(&numbers[at * step..at * step + lines]);
            }
            return;
        }
        // Four lines at a time are interleaved, a run of steps after the other.
        let steps = panel.len() / width;
        let even = if step == 1 { [lines / 4 * 4, steps / RUN * RUN] } else { [0, 0] };
        for from in (0..even[1]).step_by(RUN) {
            for first in (0..even[0]).step_by(4) {
                let run = |at: usize| {
                    let start = (first + at) * line + from;
                    numbers[start..].first_chunk::<RUN>().expect("a run of the line")
                };
                let rows = interleaved([run(0), run(1), run(2), run(3)]);
                for (row, panel) in rows.iter().zip(panel[from * width..].chunks_exact_mut(width)) {
                    panel[first..first + 4].copy_from_slice(row);
                }
            }
        }
        for at in 0..lines {
            let from = if at < even[0] { even[1] } else { 0 };
            let column = panel[from * width..].chunks_exact_mut(width);
            for (row, x) in column.zip(numbers.iter().skip(at * line + from * step).step_by(step)) {
                row[at] = *x;
            }
        }
    }
}

/// Steps that are packed for all lines before the next, so that this piece of the panel stays in the cache.
const RUN: usize = 64;

/// Column `i` of the four rows is row `i` of the result.
#[inline(always)]
fn interleaved([a, b, c, d]: [&[f32; RUN]; 4]) -> [[f32; 4]; RUN] {
    let mut rows = [[0.0; 4]; RUN];
    for ((((row, a), b), c), d) in rows.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *row = [*a, *b, *c, *d];
    }
    rows
}

/// The tiles of a task: all panels of the left side with some of the right side.
struct Tiles<'a, 'b> {
    /// Rows, as wide as the panels of the right side together, or less.
    output: &'a mut [&'b mut [f32]],
    left: &'a [f32],
    right: &'a [f32],
    depth: usize,
    start: Start<'a>,
}

impl WithSimd for Tiles<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if tile_rows::<S>() == 8 { self.run::<S, 8>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl Tiles<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let lanes = VECTORS * S::F32_LANES;
        let Self { output, left, right, depth, start } = self;
        for (left, output) in left.chunks_exact(depth * ROWS).zip(output.chunks_mut(ROWS)) {
            for (panel, right) in right.chunks_exact(depth * lanes).enumerate() {
                let first = panel * lanes;
                let start = match start {
                    Start::Row(row) => Start::Row(&row[first..]),
                    start => start,
                };
                let sums = tile::<S, ROWS>(simd, left, right);
                for (sums, output) in sums.iter().zip(output.iter_mut()) {
                    let last = (first + lanes).min(output.len());
                    let output = &mut output[first..last];
                    if output.len() < lanes {
                        ragged::<S>(sums, output, start);
                    } else {
                        whole(simd, sums, output, start);
                    }
                }
            }
        }
    }
}

/// The row of a tile.
#[inline(always)]
fn whole<S: Simd>(simd: S, sums: &[S::f32s], output: &mut [f32], start: Start<'_>) {
    let (output, _) = S::as_mut_simd_f32s(output);
    match start {
        Start::Zero => output.copy_from_slice(sums),
        Start::Row(row) => {
            for ((y, s), r) in output.iter_mut().zip(sums).zip(S::as_simd_f32s(row).0) {
                *y = simd.add_f32s(*s, *r);
            }
        }
        Start::Kept => {
            for (y, s) in output.iter_mut().zip(sums) {
                *y = simd.add_f32s(*s, *y);
            }
        }
    }
}

/// The row of a tile at the right edge.
#[inline(always)]
fn ragged<S: Simd>(sums: &[S::f32s], output: &mut [f32], start: Start<'_>) {
    let sums: &[f32] = bytemuck::cast_slice(sums);
    for (at, (y, s)) in output.iter_mut().zip(sums).enumerate() {
        *y = match start {
            Start::Zero => *s,
            Start::Row(row) => row[at] + s,
            Start::Kept => *y + s,
        };
    }
}

/// The product of a panel `[depth, ROWS]`, transposed, with a panel `[depth, VECTORS · lanes]`.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize>(simd: S, left: &[f32], right: &[f32]) -> [[S::f32s; VECTORS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let (left, _) = left.as_chunks::<ROWS>();
    let (right, _) = S::as_simd_f32s(right).0.as_chunks::<VECTORS>();
    for (left, right) in left.iter().zip(right) {
        for (sums, x) in sums.iter_mut().zip(left) {
            let x = simd.splat_f32s(*x);
            for (sum, y) in sums.iter_mut().zip(right) {
                *sum = simd.mul_add_e_f32s(x, *y, *sum);
            }
        }
    }
    sums
}

/// Adds `left · right` to what `start` says, in rows of `right.columns` numbers.
fn multiply(output: &mut [f32], left: Matrix<'_>, right: Matrix<'_>, start: Start<'_>) {
    let (width, inner) = (right.columns, left.columns);
    let [tile_rows, tile_columns] = tile_size();
    // Runs of equal length, so that the last one is not a sliver.
    let depth = inner.div_ceil(inner.div_ceil(DEPTH));
    // Fewer panels a task where there would be too few tasks.
    let panels = width.div_ceil(tile_columns);
    let count = (panels / (2 * rayon::current_num_threads())).clamp(1, PANELS) * tile_columns;
    let mut buffer = LEFT.take();
    for from in (0..inner).step_by(depth) {
        let depth = depth.min(inner - from);
        let start = if from == 0 { start } else { Start::Kept };
        let packed = first(&mut buffer, left.rows.div_ceil(tile_rows) * tile_rows * depth);
        packed.par_chunks_mut(tile_rows * depth).enumerate().for_each(|(panel, packed)| {
            let first = panel * tile_rows;
            Arch::new().dispatch(Pack {
                panel: packed,
                numbers: &left.numbers[first * left.strides[0] + from * left.strides[1]..],
                strides: left.strides,
                lines: tile_rows.min(left.rows - first),
                width: tile_rows,
            });
        });
        let packed = &*packed;
        columns(output, width, count).into_par_iter().enumerate().for_each(|(task, mut output)| {
            let mut buffer = RIGHT.take();
            let width = output[0].len();
            let own = first(&mut buffer, width.div_ceil(tile_columns) * tile_columns * depth);
            for (panel, own) in own.chunks_exact_mut(tile_columns * depth).enumerate() {
                let column = task * count + panel * tile_columns;
                Arch::new().dispatch(Pack {
                    panel: own,
                    numbers: &right.numbers[from * right.strides[0] + column * right.strides[1]..],
                    strides: [right.strides[1], right.strides[0]],
                    lines: tile_columns.min(width - panel * tile_columns),
                    width: tile_columns,
                });
            }
            let start = match start {
                Start::Row(row) => Start::Row(&row[task * count..]),
                start => start,
            };
            Arch::new().dispatch(Tiles { output: &mut output, left: packed, right: own, depth, start });
            RIGHT.set(buffer);
        });
    }
    LEFT.set(buffer);
}

/// The rows of the output, cut into columns of `count` numbers.
fn columns(output: &mut [f32], width: usize, count: usize) -> Vec<Vec<&mut [f32]>> {
    let rows = output.len() / width;
    let mut columns: Vec<Vec<&mut [f32]>> = (0..width.div_ceil(count)).map(|_| Vec::with_capacity(rows)).collect();
    for row in output.chunks_mut(width) {
        for (part, column) in row.chunks_mut(count).zip(&mut columns) {
            column.push(part);
        }
    }
    columns
}

/// So many numbers of a buffer, which grows if it must.
fn first(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// Below this many rows, columns or terms of a sum a product is thin, and the packing here would not pay.
const THIN: usize = 32;

/// `left · right + bias`, two matrices and a row.
pub(crate) fn product(left: FlexTensor, right: FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
    let ([rows, inner], [_, columns]) = (left.shape().dims::<2>(), right.shape().dims::<2>());
    let start = bias.map_or(Start::Zero, |it| Start::Row(numbers(it)));
    if rows.min(inner).min(columns) >= THIN {
        let mut output = zeros(rows * columns);
        let (left, right) = (Matrix::visible(left), Matrix::visible(right));
        multiply(&mut output, Matrix::new(&left), Matrix::new(&right), start);
        return tensor(output, Shape::new([rows, columns]));
    }
    let output = Flex::float_matmul(left, right);
    match start {
        Start::Row(row) if columns > 0 => overwrite(output, |output| {
            output.par_chunks_mut(columns).for_each(|output| super::math::axpy(1.0, row, output));
        }),
        _ => output,
    }
}
