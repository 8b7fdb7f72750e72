//! A mask on the CPU, asked for one row of a tile at a time.

use std::collections::HashMap;
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::backend::{BackendTensor, DispatchTensorKind, TensorMetadata};
use burn::tensor::{Bool, Int, Tensor};

use super::visibility::Visibility;
use crate::ops::kernel::contiguous;

/// The score of a key is set to the lowest number.
pub(super) const SET: u8 = 1;
/// The lowest number is added to it.
pub(super) const ADDED: u8 = 2;

/// What hides keys from queries, and how.
#[derive(Debug)]
pub(super) struct Seen {
    parts: Vec<(u8, Part)>,
}

/// A [`Visibility`] as vectors.
#[derive(Debug)]
struct Part {
    ranges: Option<[Numbers; 2]>,
    documents: Option<Documents>,
    /// `[batch or 1, 1, q_len or 1, kv_len]`
    dense: Option<FlexTensor>,
}

/// `[batch or 1, length]`
#[derive(Debug)]
struct Numbers {
    numbers: Vec<i32>,
    length: usize,
}

#[derive(Debug)]
struct Documents {
    queries: Numbers,
    keys: Numbers,
    /// For every row of `keys` where each document begins and ends.
    extents: Vec<HashMap<i32, Range<usize>>>,
}

impl Numbers {
    fn new(tensor: &Tensor<2, Int>) -> Self {
        let [_, length] = tensor.dims();
        Self { numbers: tensor.to_data().iter::<i32>().collect(), length }
    }

    fn rows(&self) -> usize {
        self.numbers.len() / self.length.max(1)
    }

    #[inline(always)]
    fn row(&self, batch: usize) -> &[i32] {
        &self.numbers[batch % self.rows() * self.length..][..self.length]
    }

    /// The number of a query, or that of all.
    #[inline(always)]
    fn of(&self, batch: usize, query: usize) -> i32 {
        self.row(batch)[query % self.length]
    }
}

impl Documents {
    const EVERYONE: i32 = Visibility::EVERYONE as i32;
    const EVERYTHING: i32 = Visibility::EVERYTHING as i32;

    fn new([queries, keys]: &[Tensor<2, Int>; 2]) -> Self {
        let (queries, keys) = (Numbers::new(queries), Numbers::new(keys));
        let extents = (0..keys.rows()).map(|batch| {
            let mut extents: HashMap<i32, Range<usize>> = HashMap::new();
            for (at, document) in keys.row(batch).iter().enumerate() {
                extents.entry(*document).or_insert(at..at + 1).end = at + 1;
            }
            extents
        });
        Self { extents: extents.collect(), queries, keys }
    }

    /// Keys among which are all that the query sees.
    fn range(&self, batch: usize, query: usize) -> Range<usize> {
        let own = self.queries.of(batch, query);
        if own == Self::EVERYTHING {
            return 0..self.keys.length;
        }
        let extents = &self.extents[batch % self.extents.len()];
        match (extents.get(&own), extents.get(&Self::EVERYONE)) {
            (Some(a), Some(b)) => a.start.min(b.start)..a.end.max(b.end),
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => 0..0,
        }
    }
}

impl Part {
    fn new(sight: &Visibility) -> Self {
        Self {
            ranges: sight.ranges.as_ref().map(|it| it.each_ref().map(Numbers::new)),
            documents: sight.documents.as_ref().map(Documents::new),
            dense: sight.dense.clone().map(|it| contiguous(flags(it))),
        }
    }

    fn batches(&self) -> usize {
        let ranges = self.ranges.iter().flatten().map(Numbers::rows);
        let documents = self.documents.iter().flat_map(|it| [it.queries.rows(), it.keys.rows()]);
        let dense = self.dense.iter().map(|it| it.shape()[0]);
        ranges.chain(documents).chain(dense).max().unwrap_or(1)
    }

    /// Keys among which are all that the query sees.
    fn range(&self, batch: usize, query: usize, keys: usize) -> Range<usize> {
        let ranges = self.ranges.as_ref().map_or(0..keys, |it| Self::between(it, batch, query));
        let documents = self.documents.as_ref().map_or(0..keys, |it| it.range(batch, query));
        both(both(0..keys, ranges), documents)
    }

    #[inline(always)]
    fn between([begin, end]: &[Numbers; 2], batch: usize, query: usize) -> Range<usize> {
        begin.of(batch, query).max(0) as usize..end.of(batch, query).max(0) as usize
    }

    /// Marks what is hidden of a run of keys with a bit.
    #[inline(always)]
    fn mark(&self, bit: u8, batch: usize, query: usize, keys: Range<usize>, flags: &mut [u8]) {
        if let Some(ranges) = &self.ranges {
            let seen = Self::between(ranges, batch, query);
            let clamp = |at: usize| at.clamp(keys.start, keys.end) - keys.start;
            let (begin, end) = (clamp(seen.start), clamp(seen.end));
            for flag in &mut flags[..begin] {
                *flag |= bit;
            }
            for flag in &mut flags[end..] {
                *flag |= bit;
            }
        }
        if let Some(documents) = &self.documents {
            let own = documents.queries.of(batch, query);
            if own != Documents::EVERYTHING {
                for (flag, key) in flags.iter_mut().zip(&documents.keys.row(batch)[keys.clone()]) {
                    *flag |= if *key == own || *key == Documents::EVERYONE { 0 } else { bit };
                }
            }
        }
        if let Some(dense) = &self.dense {
            for (flag, hidden) in flags.iter_mut().zip(row(dense, batch, query, keys)) {
                *flag |= if *hidden != 0 { bit } else { 0 };
            }
        }
    }

    fn sees(&self, batch: usize, query: usize, key: usize) -> bool {
        let mut flag = [0];
        self.mark(1, batch, query, key..key + 1, &mut flag);
        flag == [0]
    }
}

impl Seen {
    pub(super) fn new(set: Option<&Visibility>, added: Option<&Visibility>) -> Self {
        let part = |bit: u8, sight: Option<&Visibility>| sight.map(|it| (bit, Part::new(it)));
        Self { parts: [part(SET, set), part(ADDED, added)].into_iter().flatten().collect() }
    }

    /// Rows of the batch that differ: all, or one.
    pub(super) fn batches(&self) -> usize {
        self.parts.iter().map(|(_, it)| it.batches()).max().unwrap_or(1)
    }

    /// The first key that the query sees, and the one after the last; nothing if it sees none.
    pub(super) fn range(&self, batch: usize, query: usize, keys: usize) -> Range<usize> {
        let mut range = self.parts.iter().map(|(_, it)| it.range(batch, query, keys)).fold(0..keys, both);
        let sees = |key: &usize| self.parts.iter().all(|(_, it)| it.sees(batch, query, *key));
        // Ranges and documents as texts have them are left at the first step.
        range.start = range.clone().find(sees).unwrap_or(range.end);
        range.end = range.clone().rev().find(sees).map_or(range.start, |it| it + 1);
        range
    }

    /// How keys are hidden from a query: [`SET`] and [`ADDED`], or 0 for those that it sees.
    #[inline(always)]
    pub(super) fn flags(&self, batch: usize, query: usize, keys: Range<usize>, flags: &mut [u8]) {
        flags.fill(0);
        for (bit, part) in &self.parts {
            part.mark(*bit, batch, query, keys.clone(), flags);
        }
    }
}

fn both(a: Range<usize>, b: Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

#[inline(always)]
fn row(dense: &FlexTensor, batch: usize, query: usize, keys: Range<usize>) -> &[u8] {
    let [batches, _, queries, length] = dense.shape().dims::<4>();
    let start = dense.layout().start_offset() + ((batch % batches) * queries + query % queries) * length;
    &dense.storage::<u8>()[start..start + length][keys]
}

/// A tensor of flags on the CPU, whether or not it is thought to be on a device that differentiates.
fn flags(tensor: Tensor<4, Bool>) -> FlexTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Bool(flags)) => flags,
        _ => panic!("the mask is not on the device of the queries"),
    }
}
