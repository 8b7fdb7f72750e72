//! The matrices of a base of which every process keeps a part.

use std::collections::HashMap;
use std::fmt;
use std::iter::once;
use std::ops::Range;
use std::slice::from_ref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use burn::tensor::{Bytes, DType};

use super::ahead::{Ahead, Whole};
use super::kept::Kept;
use super::matrix::{Matrix, share};
use super::peers::{Peers, Wanted};
use crate::error::{PeftError, Result};
use crate::order::Order;

/// A base that several processes keep together, each a part of every matrix.
///
/// A clone is the same one. All processes load the same checkpoints into it, in the same order.
#[derive(Clone)]
pub struct ShardedBase(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// What its tensors know it by.
    number: u64,
    library: Arc<Library>,
    order: Mutex<Order<usize>>,
    ahead: OnceLock<Ahead>,
    /// Matrices that all processes have agreed upon.
    agreed: Mutex<usize>,
}

/// What a thread needs that makes matrices whole.
struct Library {
    peers: Box<dyn Peers>,
    kept: Arc<Kept>,
    matrices: RwLock<Vec<Matrix>>,
    received: AtomicU64,
}

/// The bases of this program, by number.
static BASES: RwLock<Option<HashMap<u64, Weak<Inner>>>> = RwLock::new(None);
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl ShardedBase {
    /// A base without matrices yet. `share` is given what this process will keep, and says how the others are read.
    ///
    /// # Errors
    /// Those of `share`.
    pub fn new(share: impl FnOnce(Arc<Kept>) -> Result<Box<dyn Peers>>) -> Result<Self> {
        let kept = Arc::new(Kept::default());
        let library =
            Library { peers: share(kept.clone())?, kept, matrices: RwLock::default(), received: AtomicU64::default() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let inner = Arc::new(Inner {
            number,
            library: Arc::new(library),
            order: Mutex::default(),
            ahead: OnceLock::new(),
            agreed: Mutex::default(),
        });
        let mut bases = BASES.write().unwrap_or_else(PoisonError::into_inner);
        bases.get_or_insert_default().insert(number, Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// The base of a number, as long as a tensor of it lives.
    pub(super) fn of(number: u64) -> Option<Self> {
        let bases = BASES.read().unwrap_or_else(PoisonError::into_inner);
        bases.as_ref()?.get(&number)?.upgrade().map(Self)
    }

    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    /// How many processes keep it.
    pub fn world_size(&self) -> usize {
        self.0.library.peers.world_size()
    }

    /// Bytes that this process keeps.
    pub fn kept(&self) -> usize {
        self.0.library.kept.size()
    }

    /// Bytes that this process has read from others until now.
    pub fn received(&self) -> u64 {
        self.0.library.received.load(Ordering::Relaxed)
    }

    /// The rows of a matrix of numbers that this process keeps; nothing if there are fewer rows than processes, where a
    /// matrix stays whole.
    pub(crate) fn rows(&self, rows: usize) -> Option<Range<usize>> {
        let peers = &self.0.library.peers;
        (rows >= peers.world_size()).then(|| share(rows, peers.rank(), peers.world_size()))
    }

    /// Adds a matrix of numbers, of which these are the rows that this process keeps.
    pub(crate) fn add(&self, key: &str, shape: [usize; 2], dtype: DType, part: Bytes) -> usize {
        let bytes = dtype.size() * shape[0] * shape[1];
        self.0.library.add(Matrix { key: key.to_owned(), dtype, shape, bytes }, part)
    }

    /// Adds a packed matrix, of which these are all bytes, and keeps a part.
    pub(crate) fn add_packed(&self, key: &str, shape: [usize; 2], packed: &[u8]) -> usize {
        let matrix = Matrix { key: key.to_owned(), dtype: DType::Flex32, shape, bytes: packed.len() };
        let peers = &self.0.library.peers;
        let part = packed[matrix.part(peers.rank(), peers.world_size())].to_vec();
        self.0.library.add(matrix, Bytes::from_bytes_vec(part))
    }

    /// Makes sure that all processes have added the same matrices. Before that nothing can be read.
    ///
    /// # Errors
    /// If one has not: which one, and the first matrix that differs.
    pub(crate) fn agree(&self) -> Result<()> {
        let library = &self.0.library;
        let mut agreed = self.0.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        let matrices = library.matrices.read().unwrap_or_else(PoisonError::into_inner).clone();
        let lines: Vec<String> = matrices[*agreed..].iter().map(Matrix::to_string).collect();
        let all = library.peers.all_gather(lines.join("\n").into_bytes())?;
        if let Some((rank, other)) = all.iter().enumerate().skip(1).find(|(_, it)| **it != all[0]) {
            let [first, other] = [&all[0], other].map(|it| String::from_utf8_lossy(it).into_owned());
            let same = first.lines().zip(other.lines()).take_while(|(first, other)| first == other).count();
            let line = |all: &str| all.lines().nth(same).unwrap_or("nothing").to_owned();
            return Err(PeftError::Invalid(format!(
                "rank {rank} does not load the base that rank 0 loads: it has {}, and rank 0 {}",
                line(&other),
                line(&first)
            )));
        }
        *agreed = matrices.len();
        Ok(())
    }

    pub(super) fn matrix(&self, matrix: usize) -> Matrix {
        self.0.library.matrix(matrix)
    }

    /// The bytes of a matrix. What will be used next is read meanwhile.
    pub(super) fn whole(&self, matrix: usize) -> Whole {
        let inner = &self.0;
        let next = inner.order.lock().unwrap_or_else(PoisonError::into_inner).used(matrix);
        let read_ahead = inner.ahead.get().and_then(|it| it.take(matrix));
        let whole = read_ahead.unwrap_or_else(|| inner.library.whole(matrix));
        if let Some(next) = next {
            let start = || {
                let library = inner.library.clone();
                Ahead::new(move |matrix| library.whole(matrix))
            };
            inner.ahead.get_or_init(start).ask(next);
        }
        whole
    }

    /// Rows of a matrix of numbers, one after another.
    pub(super) fn rows_of(&self, matrix: usize, rows: &[usize]) -> Whole {
        self.0.library.rows(matrix, rows)
    }
}

impl Library {
    fn add(&self, matrix: Matrix, part: Bytes) -> usize {
        let mut matrices = self.matrices.write().unwrap_or_else(PoisonError::into_inner);
        matrices.push(matrix);
        self.kept.add(bytes::Bytes::from_owner(Owned(part)));
        matrices.len() - 1
    }

    fn matrix(&self, matrix: usize) -> Matrix {
        self.matrices.read().unwrap_or_else(PoisonError::into_inner)[matrix].clone()
    }

    fn whole(&self, number: usize) -> Whole {
        let matrix = self.matrix(number);
        let (rank, world_size) = (self.peers.rank(), self.peers.world_size());
        let mut whole = memory(matrix.dtype, matrix.bytes);
        let mut rest: &mut [u8] = &mut whole;
        let mut wanted = Vec::new();
        for other in 0..world_size {
            let size = matrix.part(other, world_size).len();
            let (into, after) = rest.split_at_mut(size);
            rest = after;
            match other == rank {
                true => self.kept.read(number, from_ref(&(0..size)), into)?,
                false if size > 0 => {
                    let ranges = once(0..size).collect();
                    wanted.push(Wanted { rank: other, matrix: number, ranges, into });
                }
                false => {}
            }
        }
        self.read(wanted)?;
        Ok(whole)
    }

    fn rows(&self, number: usize, rows: &[usize]) -> Whole {
        let matrix = self.matrix(number);
        let (rank, world_size) = (self.peers.rank(), self.peers.world_size());
        let size = matrix.row();
        // Each one is read once, however often it is looked up. Sorted, they are so by their owners, too.
        let mut distinct = rows.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let owners: Vec<(usize, usize)> = distinct.iter().map(|it| matrix.owner(*it, world_size)).collect();
        let mut found = vec![0; distinct.len() * size];
        let mut rest: &mut [u8] = &mut found;
        let mut wanted = Vec::new();
        let mut at = 0;
        for part in owners.chunk_by(|a, b| a.0 == b.0) {
            let (owner, first) = part[0];
            let (into, after) = rest.split_at_mut(part.len() * size);
            rest = after;
            let run = |row: &usize| (row - first) * size..(row - first + 1) * size;
            let ranges: Vec<Range<usize>> = distinct[at..at + part.len()].iter().map(run).collect();
            at += part.len();
            match owner == rank {
                true => self.kept.read(number, &ranges, into)?,
                false => wanted.push(Wanted { rank: owner, matrix: number, ranges, into }),
            }
        }
        self.read(wanted)?;
        let mut output = memory(matrix.dtype, rows.len() * size);
        for (row, to) in rows.iter().zip(output.chunks_exact_mut(size.max(1))) {
            let from = distinct.partition_point(|it| it < row) * size;
            to.copy_from_slice(&found[from..from + size]);
        }
        Ok(output)
    }

    fn read(&self, wanted: Vec<Wanted<'_>>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let bytes: usize = wanted.iter().map(|it| it.into.len()).sum();
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.peers.read(wanted)
    }
}

/// Zeros, which begin where such a number may.
fn memory(dtype: DType, bytes: usize) -> Bytes {
    match dtype {
        DType::F32 => Bytes::from_elems(vec![0_u32; bytes.div_ceil(4)]),
        DType::Flex32 => Bytes::from_elems(vec![0_u64; bytes.div_ceil(8)]),
        _ => Bytes::from_elems(vec![0_u16; bytes.div_ceil(2)]),
    }
}

/// Memory that others may read.
struct Owned(Bytes);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut bases = BASES.write().unwrap_or_else(PoisonError::into_inner);
        bases.get_or_insert_default().remove(&self.number);
    }
}

impl fmt::Debug for ShardedBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = &self.0.library.peers;
        write!(f, "ShardedBase({} of {}, {} bytes)", peers.rank(), peers.world_size(), self.kept())
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?} in {} bytes", self.key, self.shape, self.dtype, self.bytes)
    }
}
