//! How a matrix is cut.

use std::ops::Range;

use burn::tensor::DType;

/// Packed matrices are cut between so many bytes.
const LINE: usize = 64;

/// What all processes know of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    /// Its key in the checkpoint.
    pub(super) key: String,
    /// Of its numbers; [`DType::Flex32`] if they are packed.
    pub(super) dtype: DType,
    /// Rows and columns as it is stored.
    pub(super) shape: [usize; 2],
    /// Bytes of all of it.
    pub(super) bytes: usize,
}

impl Matrix {
    /// What is not cut: a row of numbers, or a run of packed bytes.
    fn unit(&self) -> usize {
        match self.dtype {
            DType::Flex32 => LINE,
            dtype => dtype.size() * self.shape[1],
        }
    }

    /// Bytes that a process keeps. Parts differ by one row at most.
    pub(super) fn part(&self, rank: usize, world_size: usize) -> Range<usize> {
        let unit = self.unit().max(1);
        let units = self.bytes.div_ceil(unit);
        let end = |rank: usize| (share(units, rank, world_size).end * unit).min(self.bytes);
        let start = if rank == 0 { 0 } else { end(rank - 1) };
        start..end(rank)
    }

    /// Bytes of a row of numbers.
    pub(super) fn row(&self) -> usize {
        self.dtype.size() * self.shape[1]
    }

    /// Who keeps a row of numbers, and the first one that it keeps.
    pub(super) fn owner(&self, row: usize, world_size: usize) -> (usize, usize) {
        let rows = self.shape[0];
        // The last of those whose share begins at or before it: shares may be empty.
        let near = (row * world_size / rows.max(1)).min(world_size - 1);
        let rank = (near.saturating_sub(1)..world_size).find(|it| share(rows, *it, world_size).contains(&row));
        let rank = rank.unwrap_or(near);
        (rank, share(rows, rank, world_size).start)
    }
}

/// The part of `count` things that a process has.
pub(super) fn share(count: usize, rank: usize, world_size: usize) -> Range<usize> {
    count * rank / world_size..count * (rank + 1) / world_size
}
