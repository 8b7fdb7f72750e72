//! What this process keeps of every matrix.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;

use crate::error::{PeftError, Result};

/// The parts of all matrices that this process keeps, for those who read them.
#[derive(Debug, Default)]
pub struct Kept(RwLock<Vec<Bytes>>);

impl Kept {
    pub(super) fn add(&self, part: Bytes) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    /// Bytes that are kept of all matrices together.
    pub fn size(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().map(Bytes::len).sum()
    }

    /// All that is kept of a matrix.
    ///
    /// # Errors
    /// If nothing is kept of such a matrix.
    pub fn part(&self, matrix: usize) -> Result<Bytes> {
        let part = self.0.read().unwrap_or_else(PoisonError::into_inner).get(matrix).cloned();
        part.ok_or_else(|| PeftError::Invalid(format!("nothing is kept of matrix {matrix}")))
    }

    /// Runs of bytes of the part that is kept of a matrix, one after another.
    ///
    /// # Errors
    /// If nothing is kept of such a matrix, or less.
    pub fn read(&self, matrix: usize, ranges: &[Range<usize>], mut into: &mut [u8]) -> Result<()> {
        let part = self.part(matrix)?;
        for range in ranges {
            let run = part.get(range.clone()).filter(|it| it.len() <= into.len());
            let run = run.ok_or_else(|| {
                PeftError::Invalid(format!("of matrix {matrix} {} bytes are kept, not {range:?}", part.len()))
            })?;
            let (to, rest) = into.split_at_mut(run.len());
            to.copy_from_slice(run);
            into = rest;
        }
        Ok(())
    }
}
