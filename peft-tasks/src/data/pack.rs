//! Several short documents in one row.
//!
//! A packed row is worth its memory only if documents do not see one another: positions start anew for each, segment
//! ids keep attention apart, and the first label of each is ignored, since the token before it is another document's.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

use crate::data::batch::{Batch, Padding, fill};
use crate::data::sample::{IGNORED, Sample, Side};

/// Which document goes into which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackOrder {
    /// Best fit, longest first: each document goes into the row where it leaves the least room. Fills rows to within
    /// 22 % of the optimum at worst, and almost wholly on real texts; mixes up the order. (TRL calls it `bfd`.)
    #[default]
    BestFit,
    /// In the given order; a row ends where the next document does not fit.
    Sequential,
}

/// A row of documents, `[seq]` each, without filling.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedRow {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// The first of every document is [`IGNORED`].
    pub labels: Vec<i64>,
    /// From 0 in every document.
    pub position_ids: Vec<u32>,
    /// Number of the document, from 1.
    pub segment_ids: Vec<u32>,
}

impl PackedRow {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.segment_ids.last().map_or(0, |it| *it as usize)
    }

    fn push(&mut self, document: &Sample) {
        let segment = self.documents() as u32 + 1;
        self.input_ids.extend(&document.input_ids);
        self.labels.push(IGNORED);
        self.labels.extend(document.labels.iter().skip(1));
        self.position_ids.extend(0..document.len() as u32);
        self.segment_ids.extend(std::iter::repeat_n(segment, document.len()));
    }
}

/// Packs language-model samples into rows of at most `max_length` tokens. Documents longer than that are split, see
/// [`Sample::chunks`]; empty ones are left out. No token is lost and none comes twice. Type ids are dropped.
///
/// # Errors
/// `max_length` is below 2, or a sample has no label for some token.
pub fn pack<S: Borrow<Sample>>(samples: &[S], max_length: usize, order: PackOrder) -> Result<Vec<PackedRow>> {
    if max_length < 2 {
        return Err(PeftError::config("max_length", format!("is {max_length}; a packed row needs room for 2 tokens")));
    }
    let mut documents = Vec::with_capacity(samples.len());
    for (index, sample) in samples.iter().map(Borrow::borrow).enumerate() {
        if sample.labels.len() != sample.len() {
            let counts = format!("{} labels for {} tokens", sample.labels.len(), sample.len());
            return Err(PeftError::Invalid(format!(
                "sample {index} has {counts}; only language-model samples can be packed"
            )));
        }
        documents.extend(sample.chunks(max_length));
    }
    Ok(match order {
        PackOrder::BestFit => best_fit(documents, max_length),
        PackOrder::Sequential => sequential(&documents, max_length),
    })
}

fn best_fit(mut documents: Vec<Sample>, max_length: usize) -> Vec<PackedRow> {
    // Stable: documents of one length stay in order, so the result depends on the input alone.
    documents.sort_by_key(|it| std::cmp::Reverse(it.len()));
    let mut rows: Vec<PackedRow> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for document in &documents {
        let fitting = by_room.range_mut(document.len()..).next();
        let row = match fitting {
            Some((room, these)) => {
                let (room, row) = (*room, these.pop());
                if these.is_empty() {
                    by_room.remove(&room);
                }
                row
            }
            None => None,
        };
        let row = row.unwrap_or_else(|| {
            rows.push(PackedRow::default());
            rows.len() - 1
        });
        rows[row].push(document);
        by_room.entry(max_length - rows[row].len()).or_default().push(row);
    }
    rows
}

fn sequential(documents: &[Sample], max_length: usize) -> Vec<PackedRow> {
    let mut rows: Vec<PackedRow> = Vec::new();
    for document in documents {
        match rows.last_mut() {
            Some(row) if row.len() + document.len() <= max_length => row.push(document),
            _ => {
                let mut row = PackedRow::default();
                row.push(document);
                rows.push(row);
            }
        }
    }
    rows
}

/// Puts packed rows into one rectangle, with segment ids.
///
/// # Errors
/// No row, a row wider than a fixed width, or filling on the left, which packed rows do not have.
pub fn collate_packed<R: Borrow<PackedRow>>(rows: &[R], padding: &Padding) -> Result<Batch> {
    let longest = rows.iter().map(|it| it.borrow().len()).max();
    let longest = longest.ok_or_else(|| PeftError::Invalid("a batch needs at least one row".to_owned()))?;
    if padding.side == Side::Left {
        return Err(PeftError::Invalid("packed rows are filled up on the right".to_owned()));
    }
    let width = padding.width_for(longest)?;
    let mut out = Batch { rows: rows.len(), width, ..Batch::default() };
    let mut segments = Vec::with_capacity(rows.len() * width);
    for row in rows.iter().map(Borrow::borrow) {
        let after = width - row.len();
        fill(&mut out.input_ids, 0, row.input_ids.iter().copied(), after, padding.pad_id);
        fill(&mut out.attention_mask, 0, std::iter::repeat_n(1, row.len()), after, 0);
        fill(&mut out.labels, 0, row.labels.iter().copied(), after, IGNORED);
        fill(&mut out.position_ids, 0, row.position_ids.iter().copied(), after, 0);
        fill(&mut segments, 0, row.segment_ids.iter().copied(), after, 0);
    }
    out.segment_ids = Some(segments);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng;

    /// Documents of random lengths in which every token is unlike every other.
    fn documents(seed: u64, longest: usize) -> Vec<Sample> {
        let mut generator = rng::generator(seed, 0);
        let mut next = 0u32;
        (0..rng::below(&mut generator, 40))
            .map(|_| {
                let length = rng::below(&mut generator, longest) as u32;
                next += length;
                Sample::language((next - length..next).collect())
            })
            .collect()
    }

    #[test]
    fn no_token_is_lost_and_none_comes_twice() {
        for seed in 0..200 {
            let (documents, max_length) = (documents(seed, 30), 2 + seed as usize % 19);
            for order in [PackOrder::BestFit, PackOrder::Sequential] {
                let rows = pack(&documents, max_length, order).unwrap();
                let mut ids: Vec<u32> = rows.iter().flat_map(|it| it.input_ids.clone()).collect();
                if order == PackOrder::BestFit {
                    ids.sort_unstable();
                }
                assert!(ids.into_iter().eq(documents.iter().flat_map(|it| it.input_ids.clone())));
                for row in &rows {
                    assert!(!row.is_empty() && row.len() <= max_length);
                    check_row(row);
                }
            }
        }
    }

    fn check_row(row: &PackedRow) {
        for place in 0..row.len() {
            let starts = place == 0 || row.segment_ids[place] != row.segment_ids[place - 1];
            if starts {
                assert_eq!((row.position_ids[place], row.labels[place]), (0, IGNORED));
                assert_eq!(row.segment_ids[place], if place == 0 { 1 } else { row.segment_ids[place - 1] + 1 });
            } else {
                assert_eq!(row.position_ids[place], row.position_ids[place - 1] + 1);
                assert_eq!(row.input_ids[place], row.input_ids[place - 1] + 1);
                assert_eq!(row.labels[place], i64::from(row.input_ids[place]));
            }
        }
    }

    #[test]
    fn best_fit_needs_no_more_rows() {
        for seed in 0..50 {
            let documents = documents(seed, 16);
            let rows = |order| pack(&documents, 16, order).unwrap().len();
            assert!(rows(PackOrder::BestFit) <= rows(PackOrder::Sequential));
        }
        let lengths = [3, 6, 4, 7].map(|it| Sample::language(vec![0; it]));
        assert_eq!(pack(&lengths, 10, PackOrder::BestFit).unwrap().len(), 2);
        assert_eq!(pack(&lengths, 10, PackOrder::Sequential).unwrap().len(), 3);
    }

    #[test]
    fn a_batch_of_packed_rows() {
        let samples = [Sample::language(vec![1, 2]), Sample::language(vec![3]), Sample::language(vec![4, 5])];
        let rows = pack(&samples, 3, PackOrder::Sequential).unwrap();
        assert_eq!(rows.iter().map(PackedRow::documents).collect::<Vec<_>>(), [2, 1]);
        let batch = collate_packed(&rows, &Padding::right(9)).unwrap();
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5, 9]);
        assert_eq!(batch.labels, [-100, 2, -100, -100, 5, -100]);
        assert_eq!(batch.position_ids, [0, 1, 0, 0, 1, 0]);
        assert_eq!(batch.segment_ids.unwrap(), [1, 1, 2, 1, 1, 0]);
        assert_eq!(batch.attention_mask, [1, 1, 1, 1, 1, 0]);
        assert!(collate_packed(&rows, &Padding::left(9)).is_err());
        assert!(pack(&samples, 1, PackOrder::BestFit).is_err());
        let unlabelled = [Sample { input_ids: vec![1], ..Sample::default() }];
        assert!(pack(&unlabelled, 4, PackOrder::BestFit).unwrap_err().to_string().contains("0 labels for 1 tokens"));
    }
}
