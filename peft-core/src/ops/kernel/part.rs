//! Right sides of products that are not there as numbers: a part at a time is written out, by the thread that reads it.

use std::cell::RefCell;
use std::ops::Range;

use super::matrix::Matrix;
use super::output::first;
use super::simd::{Kernel, simd};
use crate::quant::Packed;

/// A matrix whose lines are computed when they are read.
pub(crate) trait Lines: Copy {
    /// How many lines there are, and how long they are.
    fn size(&self) -> [usize; 2];

    /// Writes a rectangle out, line by line. Must be `#[inline(always)]`.
    fn write(&self, lines: Range<usize>, steps: Range<usize>, to: &mut [f32]);
}

/// A weight in 4 or 8 bits.
impl Lines for Packed<'_> {
    fn size(&self) -> [usize; 2] {
        [self.lines, self.width]
    }

    #[inline(always)]
    fn write(&self, lines: Range<usize>, steps: Range<usize>, to: &mut [f32]) {
        self.widen_part(lines, steps, to);
    }
}

/// A part of such a matrix, seen as the right side of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<L> {
    matrix: L,
    /// First line of the stored matrix, and how many.
    lines: [usize; 2],
    /// First number of a line, and how many.
    steps: [usize; 2],
    /// Whether the stored lines are rows of the right side; else they are its columns.
    along: bool,
}

thread_local! {
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl<L: Lines> Part<L> {
    /// All of it. Its lines are rows of the right side if it lies `along`, else columns.
    pub(crate) fn whole(matrix: L, along: bool) -> Self {
        let [lines, steps] = matrix.size();
        Self { matrix, lines: [0, lines], steps: [0, steps], along }
    }

    pub(super) fn dims(self) -> [usize; 2] {
        let ([_, lines], [_, steps]) = (self.lines, self.steps);
        if self.along { [lines, steps] } else { [steps, lines] }
    }

    pub(super) fn rows(self, first: usize, count: usize) -> Self {
        if self.along { self.of_lines(first, count) } else { self.of_steps(first, count) }
    }

    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        if self.along { self.of_steps(first, count) } else { self.of_lines(first, count) }
    }

    fn of_lines(self, first: usize, count: usize) -> Self {
        Self { lines: [self.lines[0] + first, count], ..self }
    }

    fn of_steps(self, first: usize, count: usize) -> Self {
        Self { steps: [self.steps[0] + first, count], ..self }
    }

    pub(super) fn lies_along(self) -> bool {
        self.along
    }

    /// How many lines of the stored matrix there are, and how long they are.
    pub(super) fn lying(self) -> [usize; 2] {
        [self.lines[1], self.steps[1]]
    }

    /// A line in single precision.
    pub(super) fn widen_line(self, line: usize, to: &mut [f32]) {
        simd(WidenPart { part: self.of_lines(line, 1), to });
    }

    /// Calls `with` with the part in single precision.
    pub(super) fn widened<R>(self, with: impl FnOnce(Matrix<'_>) -> R) -> R {
        let [lines, steps] = self.lying();
        let mut buffer = WIDE.take();
        let to = first(&mut buffer, lines * steps);
        simd(WidenPart { part: self, to: &mut *to });
        let matrix = Matrix::new(to, [lines, steps], [steps, 1]);
        let result = with(if self.along { matrix } else { matrix.transposed() });
        WIDE.set(buffer);
        result
    }
}

struct WidenPart<'a, L> {
    part: Part<L>,
    to: &'a mut [f32],
}

impl<L: Lines> Kernel for WidenPart<'_, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Part { matrix, lines: [line, lines], steps: [step, steps], .. } = self.part;
        matrix.write(line..line + lines, step..step + steps, self.to);
    }
}
