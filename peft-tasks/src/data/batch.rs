//! Samples as rectangular batches: what a data collator does in transformers.

use std::borrow::Borrow;

use peft_core::{PeftError, Result};

use crate::data::sample::{IGNORED, Sample, Side};

/// How short rows are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Where the filling goes.
    pub side: Side,
    /// The token it consists of.
    pub pad_id: u32,
    /// Widths are rounded up to a multiple of this; 0 and 1 leave them.
    pub multiple_of: usize,
    /// One width for all batches instead of the longest row's.
    pub width: Option<usize>,
}

impl Padding {
    /// Filling on the right with `pad_id`, to the longest row.
    pub fn right(pad_id: u32) -> Self {
        Self { side: Side::Right, pad_id, multiple_of: 1, width: None }
    }

    /// Filling on the left with `pad_id`, as generation needs it.
    pub fn left(pad_id: u32) -> Self {
        Self { side: Side::Left, ..Self::right(pad_id) }
    }

    pub(crate) fn width_for(&self, longest: usize) -> Result<usize> {
        match self.width {
            Some(width) if longest > width => Err(PeftError::Invalid(format!(
                "a row has {longest} tokens and batches are {width} wide; set `max_length` to {width} or less"
            ))),
            Some(width) => Ok(width),
            None => Ok(longest.next_multiple_of(self.multiple_of.max(1))),
        }
    }
}

/// A batch: flat vectors, row by row, each `[rows, width]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of sequences.
    pub rows: usize,
    /// Tokens a row, filling included.
    pub width: usize,
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// 1 for a token, 0 for filling.
    pub attention_mask: Vec<u8>,
    /// [`IGNORED`] under filling; empty when the samples have none.
    pub labels: Vec<i64>,
    /// `None` when no sample has them.
    pub token_type_ids: Option<Vec<u32>>,
    /// Place of a token in its own document, counted from 0; 0 under filling.
    pub position_ids: Vec<u32>,
    /// Number of the document in its row, counted from 1; 0 under filling. `None` when every row is one document.
    pub segment_ids: Option<Vec<u32>>,
    /// Number of each row's task, `[rows]`; `None` when no sample has one.
    pub task_ids: Option<Vec<i64>>,
}

impl Batch {
    /// Places of all that is no filling, numbered as `row · width + place`; with `labelled` of what has a label, where there
    /// are labels.
    pub fn places(&self, labelled: bool) -> Vec<usize> {
        let counts = |at: &usize| {
            self.attention_mask[*at] == 1 && (!labelled || self.labels.get(*at).is_none_or(|it| *it != IGNORED))
        };
        (0..self.attention_mask.len()).filter(counts).collect()
    }
}

/// Puts samples into a batch, shorter rows filled up: what a data collator does in transformers.
///
/// # Errors
/// No sample, an empty one, one wider than a fixed width, or samples with labels among samples without.
pub fn collate<S: Borrow<Sample>>(samples: &[S], padding: &Padding) -> Result<Batch> {
    let longest = samples.iter().map(|it| it.borrow().len()).max();
    let longest = longest.ok_or_else(|| PeftError::Invalid("a batch needs at least one row".to_owned()))?;
    let width = padding.width_for(longest)?;
    let labelled = !samples[0].borrow().labels.is_empty();
    let typed = samples.iter().any(|it| it.borrow().type_ids.is_some());

    let mut out = Batch { rows: samples.len(), width, ..Batch::default() };
    let mut types = Vec::new();
    for (row, sample) in samples.iter().map(Borrow::borrow).enumerate() {
        let (tokens, odd) = (sample.len(), |what: &str| PeftError::Invalid(format!("row {row} of a batch {what}")));
        if tokens == 0 {
            return Err(odd("has no token; leave empty texts out"));
        }
        if sample.labels.len() != if labelled { tokens } else { 0 } {
            return Err(odd("does not have as many labels as the others"));
        }
        if sample.type_ids.as_ref().is_some_and(|it| it.len() != tokens) {
            return Err(odd("does not have as many type ids as tokens"));
        }
        let (before, after) = match padding.side {
            Side::Left => (width - tokens, 0),
            Side::Right => (0, width - tokens),
        };
        fill(&mut out.input_ids, before, sample.input_ids.iter().copied(), after, padding.pad_id);
        fill(&mut out.attention_mask, before, std::iter::repeat_n(1, tokens), after, 0);
        fill(&mut out.position_ids, before, 0..tokens as u32, after, 0);
        if labelled {
            fill(&mut out.labels, before, sample.labels.iter().copied(), after, IGNORED);
        }
        if typed {
            let ids = sample.type_ids.clone().unwrap_or_else(|| vec![0; tokens]);
            fill(&mut types, before, ids.into_iter(), after, 0);
        }
    }
    out.token_type_ids = typed.then_some(types);
    let tasks: Vec<i64> = samples.iter().filter_map(|it| it.borrow().task_id).collect();
    if !tasks.is_empty() && tasks.len() != samples.len() {
        return Err(PeftError::Invalid("some rows of a batch name their task and others do not".to_owned()));
    }
    out.task_ids = (!tasks.is_empty()).then_some(tasks);
    Ok(out)
}

pub(crate) fn fill<T: Copy>(out: &mut Vec<T>, before: usize, row: impl Iterator<Item = T>, after: usize, with: T) {
    out.extend(std::iter::repeat_n(with, before));
    out.extend(row);
    out.extend(std::iter::repeat_n(with, after));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_comes_off_again() {
        let samples: Vec<Sample> = [3, 1, 5].map(|it| Sample::language((10..10 + it).collect())).to_vec();
        for side in [Side::Left, Side::Right] {
            for multiple_of in [0, 1, 4, 8] {
                let padding = Padding { side, multiple_of, ..Padding::right(0) };
                let batch = collate(&samples, &padding).unwrap();
                assert_eq!(batch.width, 5usize.next_multiple_of(multiple_of.max(1)));
                for (row, sample) in samples.iter().enumerate() {
                    let places = row * batch.width..(row + 1) * batch.width;
                    let kept = places.clone().filter(|it| batch.attention_mask[*it] == 1).collect::<Vec<_>>();
                    assert_eq!(kept.iter().map(|it| batch.input_ids[*it]).collect::<Vec<_>>(), sample.input_ids);
                    assert_eq!(kept.iter().map(|it| batch.labels[*it]).collect::<Vec<_>>(), sample.labels);
                    let positions = kept.iter().map(|it| batch.position_ids[*it] as usize);
                    assert!(positions.eq(0..sample.len()));
                    let filling = places.filter(|it| batch.attention_mask[*it] == 0);
                    assert!(filling.into_iter().all(|it| batch.input_ids[it] == 0 && batch.labels[it] == IGNORED));
                }
            }
        }
    }

    #[test]
    fn places_leave_filling_out_and_what_has_no_label() {
        let mut samples = [Sample::language(vec![1, 2, 3]), Sample::language(vec![4])];
        samples[0].labels[1] = IGNORED;
        let batch = collate(&samples, &Padding::right(0)).unwrap();
        assert_eq!((batch.places(false), batch.places(true)), (vec![0, 1, 2, 3], vec![0, 2, 3]));
        samples.iter_mut().for_each(|it| it.labels.clear());
        assert_eq!(collate(&samples, &Padding::left(0)).unwrap().places(true), [0, 1, 2, 5]);
    }

    #[test]
    fn left_padding_ends_every_row_with_its_last_token() {
        let samples = [Sample::language(vec![1, 2]), Sample::language(vec![3])];
        let batch = collate(&samples, &Padding::left(9)).unwrap();
        assert_eq!(batch.input_ids, [1, 2, 9, 3]);
        assert_eq!(batch.position_ids, [0, 1, 0, 0]);
        assert_eq!(batch.token_type_ids, None);
    }

    #[test]
    fn batches_that_do_not_fit_together_are_refused() {
        let message = |samples: &[Sample], padding| collate(samples, &padding).unwrap_err().to_string();
        let language = Sample::language(vec![1, 2, 3]);
        let plain = Sample { input_ids: vec![1], ..Sample::default() };
        assert_eq!(message(&[], Padding::right(0)), "a batch needs at least one row");
        assert!(
            message(&[language.clone(), Sample::default()], Padding::right(0)).starts_with("row 1 of a batch has no")
        );
        assert!(message(&[language.clone(), plain], Padding::right(0)).contains("as many labels"));
        let narrow = Padding { width: Some(2), ..Padding::right(0) };
        assert!(message(&[language], narrow).contains("set `max_length` to 2"));
    }
}
