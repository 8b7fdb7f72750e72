//! Where results are written: rectangles of a matrix, one for every task, and memory that nobody has to fill first.
//!
//! A large output does not stay in the cache between being filled with zeros and being written. So what is new is written
//! once, by the task that computes it.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

/// A rectangle of a matrix in memory that is row-major. Nobody else sees its numbers while it lives.
///
/// It may be fresh, which means that its numbers have not been written yet: they can be written, but not be seen.
pub(crate) struct Block<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    /// From row to row.
    stride: usize,
    fresh: bool,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: a block is like the mutable slices of its rows, which may be sent to another thread.
#[allow(unsafe_code)]
unsafe impl Send for Block<'_> {}

impl<'a> Block<'a> {
    /// Numbers seen as rows of `columns`.
    pub(crate) fn new(numbers: &'a mut [f32], columns: usize) -> Self {
        Self::whole(numbers.as_mut_ptr(), numbers.len(), columns, false)
    }

    fn fresh(memory: &'a mut [MaybeUninit<f32>], columns: usize) -> Self {
        Self::whole(memory.as_mut_ptr().cast(), memory.len(), columns, true)
    }

    fn whole(first: *mut f32, length: usize, columns: usize, fresh: bool) -> Self {
        let rows = length.checked_div(columns).unwrap_or_default();
        assert_eq!(rows * columns, length, "whole rows");
        Self { first, rows, columns, stride: columns, fresh, memory: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Part of it. The caller sees to it that no two parts that can be used at the same time share a number.
    fn part_of(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns, "columns {columns:?} of {}", self.columns);
        let first = self.first.wrapping_add(rows.start * self.stride + columns.start);
        Self { first, rows: rows.len(), columns: columns.len(), ..*self }
    }

    /// Part of it, for a while.
    pub(crate) fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> Block<'_> {
        self.part_of(rows, columns)
    }

    /// Bands of `height` rows; the last one may be lower.
    pub(crate) fn bands(self, height: usize) -> impl Iterator<Item = Self> {
        (0..self.rows).step_by(height).map(move |at| self.part_of(at..(at + height).min(self.rows), 0..self.columns))
    }

    /// Bands of `width` columns; the last one may be narrower.
    pub(crate) fn columns_of(self, width: usize) -> impl Iterator<Item = Self> {
        (0..self.columns).step_by(width).map(move |at| self.part_of(0..self.rows, at..(at + width).min(self.columns)))
    }

    /// Where numbers of a row are, or will be. Nothing but numbers may be written there.
    #[allow(unsafe_code)]
    #[inline(always)]
    fn places(&mut self, row: usize, columns: Range<usize>) -> &mut [MaybeUninit<f32>] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.columns, "within the block");
        let first = self.first.wrapping_add(row * self.stride + columns.start);
        // SAFETY: within the block, so in memory that was borrowed for as long as it lives, and borrowed here from the
        // block, which alone leads there.
        unsafe { std::slice::from_raw_parts_mut(first.cast(), columns.len()) }
    }

    /// Numbers of a row.
    ///
    /// # Panics
    /// If the block is fresh.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(!self.fresh, "numbers that have been written");
        // SAFETY: they have been.
        unsafe { self.places(row, columns).assume_init_mut() }
    }

    /// Writes numbers of a row, from a column on.
    #[inline(always)]
    pub(crate) fn put(&mut self, row: usize, column: usize, numbers: &[f32]) {
        self.places(row, column..column + numbers.len()).write_copy_of_slice(numbers);
    }

    /// Brings places of a fresh block that will be written soon into the cache, by a store to each of its lines.
    ///
    /// Nobody waits for that. The stores of a whole tile at once, to lines that are far away, hold up what comes after them.
    #[inline(always)]
    pub(crate) fn fetch(&mut self, rows: Range<usize>, columns: Range<usize>) {
        if !self.fresh {
            return;
        }
        for row in rows {
            for place in self.places(row, columns.clone()).iter_mut().step_by(LINE) {
                place.write(0.0);
            }
        }
    }

    /// The same number everywhere.
    pub(crate) fn fill(&mut self, number: f32) {
        for row in 0..self.rows {
            self.places(row, 0..self.columns).fill(MaybeUninit::new(number));
        }
        self.fresh = false;
    }

    /// The same row everywhere.
    pub(crate) fn fill_rows(&mut self, numbers: &[f32]) {
        for row in 0..self.rows {
            self.put(row, 0, &numbers[..self.columns]);
        }
        self.fresh = false;
    }

    /// From now on its numbers can be seen.
    ///
    /// # Safety
    /// All of them must have been written.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn set_written(&mut self) {
        self.fresh = false;
    }
}

/// Memory for a matrix, which becomes its numbers when they have been written.
pub(crate) struct Memory {
    numbers: Vec<f32>,
    shape: [usize; 2],
}

impl Memory {
    pub(crate) fn new(shape: [usize; 2]) -> Self {
        let mut numbers = Vec::with_capacity(shape[0] * shape[1]);
        if cfg!(debug_assertions) {
            // Tests see what was forgotten.
            numbers.spare_capacity_mut().fill(MaybeUninit::new(f32::NAN));
        }
        Self { numbers, shape }
    }

    /// All of it, fresh.
    pub(crate) fn block(&mut self) -> Block<'_> {
        let [rows, columns] = self.shape;
        Block::fresh(&mut self.numbers.spare_capacity_mut()[..rows * columns], columns)
    }

    /// # Safety
    /// All numbers of the block must have been written.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn written(mut self) -> Vec<f32> {
        // SAFETY: the capacity is there, and the caller promises the rest.
        unsafe { self.numbers.set_len(self.shape[0] * self.shape[1]) };
        self.numbers
    }
}

/// So many numbers, made by all threads in pieces of `length`: `write` gets the number of the piece and the piece, which
/// holds zeros, and is in the cache already.
pub(crate) fn pieces(count: usize, length: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(count);
    numbers.spare_capacity_mut()[..count].par_chunks_mut(length).enumerate().for_each(|(at, piece)| {
        piece.fill(MaybeUninit::new(0.0));
        #[allow(unsafe_code)]
        // SAFETY: zeros were written.
        write(at, unsafe { piece.assume_init_mut() });
    });
    #[allow(unsafe_code)]
    // SAFETY: the capacity is there, and the pieces are all of it.
    unsafe {
        numbers.set_len(count)
    };
    numbers
}

/// So many numbers of a buffer, which grows if it must, from the beginning of a line of the cache on: a vector that lies in two
/// lines takes two loads.
pub(super) fn aligned(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    first(buffer, length + LINE);
    let before = offset(buffer);
    &mut buffer[before..before + length]
}

/// Numbers before the first one that begins a line.
pub(super) fn offset(numbers: &[f32]) -> usize {
    numbers.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE)
}

/// Numbers of a line of the cache.
const LINE: usize = 16;

/// So many numbers of a buffer, which grows if it must.
pub(crate) fn first(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}
