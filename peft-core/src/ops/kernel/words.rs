//! What products of words share: pairs of numbers in bf16 and fours in int8, each in 32 bits.

use std::cell::RefCell;

thread_local! {
    /// The left side in words: kept, so that no product has to touch new pages.
    pub(super) static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Vectors in a row of a tile.
pub(super) const VECTORS: usize = 3;
/// Words of a vector.
pub(super) const LANES: usize = 16;
/// Columns of a panel.
pub(super) const WIDTH: usize = VECTORS * LANES;

/// What takes the sums of rows: the first one of them, the panel, and the sums.
pub(super) type Write<'a> = &'a mut dyn FnMut(usize, usize, &[[i32; WIDTH]]);

/// A run of words of every row of the left side: pairs in bf16, or fours in int8.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) pairs: &'a [u32],
    pub(super) stride: usize,
    pub(super) depth: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, at: usize) -> &'a [u32] {
        &self.pairs[at * self.stride..][..self.depth]
    }
}
