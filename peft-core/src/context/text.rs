//! The tokens that a forward reads, for adapters that act on some of them only.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Int, Tensor};

/// The text of every row up to the last position of the forward, or the prompt of a text that is being written.
#[derive(Clone)]
pub(crate) struct Text {
    ids: Tensor<2, Int>,
    /// Documents packed into one row.
    segments: Option<Tensor<2, Int>>,
    /// The rows that are meant, if not all.
    rows: Option<Vec<usize>>,
    read: Arc<OnceLock<Read>>,
}

/// What the tensors hold.
struct Read {
    ids: Vec<Vec<i64>>,
    segments: Option<Vec<Vec<i64>>>,
}

impl Text {
    pub(crate) fn new(ids: Tensor<2, Int>, segments: Option<Tensor<2, Int>>) -> Self {
        Self { ids, segments, rows: None, read: Arc::default() }
    }

    /// Some of the rows, for a layer that is computed for them alone.
    pub(crate) fn group(&self, rows: &[usize]) -> Self {
        let rows = match &self.rows {
            Some(own) => rows.iter().filter_map(|it| own.get(*it).copied()).collect(),
            None => rows.to_vec(),
        };
        Self { rows: Some(rows), ..self.clone() }
    }

    /// For every token of every row whether it stands in its document at or behind the start of the last occurrence of a
    /// sequence.
    pub(crate) fn behind(&self, sequence: &[i64]) -> Vec<Vec<bool>> {
        let read =
            self.read.get_or_init(|| Read { ids: rows_of(&self.ids), segments: self.segments.as_ref().map(rows_of) });
        let row = |at: usize| {
            let ids = &read.ids[at];
            match &read.segments {
                Some(segments) => {
                    let documents = documents(&segments[at]);
                    documents.flat_map(|it| behind_last(&ids[it], sequence)).collect()
                }
                None => behind_last(ids, sequence),
            }
        };
        match &self.rows {
            Some(rows) => rows.iter().map(|it| row(*it)).collect(),
            None => (0..read.ids.len()).map(row).collect(),
        }
    }
}

fn rows_of(tensor: &Tensor<2, Int>) -> Vec<Vec<i64>> {
    let [_, columns] = tensor.dims();
    let values: Vec<i64> = tensor.to_data().iter::<i64>().collect();
    values.chunks(columns.max(1)).map(<[i64]>::to_vec).collect()
}

/// Where the documents of a row lie.
fn documents(segments: &[i64]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    segments.chunk_by(|a, b| a == b).map(move |it| {
        let document = start..start + it.len();
        start = document.end;
        document
    })
}

fn behind_last(ids: &[i64], sequence: &[i64]) -> Vec<bool> {
    let start = match sequence.len() {
        0 => None,
        length => ids.windows(length).rposition(|it| it == sequence),
    };
    (0..ids.len()).map(|at| start.is_some_and(|it| at >= it)).collect()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn text(ids: [[i32; 6]; 2], segments: Option<[[i32; 6]; 2]>) -> Text {
        let device = Device::flex();
        Text::new(Tensor::from_ints(ids, &device), segments.map(|it| Tensor::from_ints(it, &device)))
    }

    #[test]
    fn the_last_occurrence_counts_and_none_is_none() {
        let text = text([[1, 2, 3, 1, 2, 9], [1, 3, 2, 1, 3, 1]], None);
        let last = vec![false, false, false, true, true, true];
        assert_eq!(text.behind(&[1, 2]), [last.clone(), vec![false; 6]]);
        assert_eq!(text.group(&[1, 0]).group(&[1]).behind(&[1, 2]), [last]);
        assert_eq!(text.behind(&[]), vec![vec![false; 6]; 2]);
        assert_eq!(text.behind(&[1; 7]), vec![vec![false; 6]; 2]);
    }

    #[test]
    fn packed_documents_are_told_apart() {
        let text = text([[1, 2, 3, 1, 2, 9], [5, 1, 2, 1, 2, 0]], Some([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 0]]));
        let first = vec![true, true, true, true, true, true];
        // The sequence does not count across the border of two documents, and padding is one of its own.
        assert_eq!(text.behind(&[1, 2]), [first, vec![false, false, false, true, true, false]]);
    }
}
