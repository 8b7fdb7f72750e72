//! What a base in pieces asks of the processes that keep it.

use std::ops::Range;

use crate::error::Result;

/// The processes that keep a base together. The trait is small, so that whatever moves bytes can implement it.
pub trait Peers: Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world_size(&self) -> usize;

    /// The bytes of every process, by rank. All of them call it, as often.
    ///
    /// # Errors
    /// If another process is gone.
    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// Reads what other processes [keep](super::Kept). They do not take part: any process may read at any time, on any
    /// thread, also while the others compute or wait for something else.
    ///
    /// # Errors
    /// If another process is gone.
    fn read(&self, wanted: Vec<Wanted<'_>>) -> Result<()>;
}

/// Parts of a matrix that another process keeps, and where they go.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Who keeps them.
    pub rank: usize,
    /// Number of the matrix.
    pub matrix: usize,
    /// Bytes of what is kept of it, one run after another.
    pub ranges: Vec<Range<usize>>,
    /// As long as all runs together.
    pub into: &'a mut [u8],
}
