//! Masked language modelling: predicting the tokens behind masks.

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result};
use peft_models::{MaskedLm, Pretrained};
use serde_json::{Map, Value};

use crate::data::batch::{Batch, Padding, collate};
use crate::data::columns::required;
use crate::data::rng;
use crate::data::sample::{IGNORED, Sample};
use crate::data::tally::Tally;
use crate::data::text_data::TextData;
use crate::data::tokenizer::Encoded;
use crate::eval::metrics;
use crate::tasks::in_batches::in_batches;
use crate::tasks::task::{Evaluation, Task, scalar};

/// Which tokens are masked, as `DataCollatorForLanguageModeling` of transformers does it, by BERT's recipe: of the tokens
/// to predict, eight in ten become the mask token, one a random token, and one stays.
#[derive(Debug, Clone)]
pub struct Masking {
    /// The mask token.
    pub mask: u32,
    /// Size of the vocabulary that random tokens come from.
    pub vocab: usize,
    /// Share of tokens that are predicted: `mlm_probability`, 0.15 in BERT.
    pub share: f64,
    /// What the choice depends on, with the number of the row.
    pub seed: u64,
}

impl Masking {
    /// A sequence with some of its tokens masked. Special tokens that were added around it stay.
    pub fn hide(&self, row: u64, text: &Encoded) -> Sample {
        let mut generator = rng::generator(self.seed, row);
        let mut sample =
            Sample { labels: vec![IGNORED; text.ids.len()], input_ids: text.ids.clone(), ..Sample::default() };
        for (at, _) in text.added.iter().enumerate().filter(|(_, added)| !**added) {
            if rng::unit(&mut generator) >= self.share {
                continue;
            }
            sample.labels[at] = i64::from(text.ids[at]);
            let behind = rng::unit(&mut generator);
            if behind < 0.8 {
                sample.input_ids[at] = self.mask;
            } else if behind < 0.9 {
                sample.input_ids[at] = rng::below(&mut generator, self.vocab) as u32;
            }
        }
        sample
    }
}

/// The task of a masked language model. Every row is masked once, so that two evaluations see the same.
#[derive(Debug, Clone)]
pub struct MaskedLanguageModelling {
    samples: Vec<Sample>,
    padding: Padding,
}

impl MaskedLanguageModelling {
    /// Samples as [`Masking::hide`] makes them. Those in which no token is masked are left out.
    ///
    /// # Errors
    /// If no sample is left.
    pub fn new(samples: Vec<Sample>, padding: Padding) -> Result<Self> {
        let samples: Vec<Sample> = samples.into_iter().filter(|it| it.labelled() > 0).collect();
        if samples.is_empty() {
            return Err(PeftError::Invalid("no row has a hidden word: there are too few or too short rows".into()));
        }
        Ok(Self { samples, padding })
    }

    fn batch(&self, items: &[usize]) -> Result<Batch> {
        collate(&items.iter().map(|it| &self.samples[*it]).collect::<Vec<_>>(), &self.padding)
    }
}

impl TextData {
    /// The task of a masked language model: sequences of one column, of which `share` of the tokens is masked, 0.15 in
    /// BERT. `seed` decides which. Longer sequences are truncated.
    ///
    /// # Errors
    /// If the file cannot be read, no column is a text, the tokenizer has no mask token, or `share` is not in (0, 1].
    pub fn masked_lm(
        &self,
        base: &(impl Pretrained + ?Sized),
        share: f64,
        seed: u64,
    ) -> Result<MaskedLanguageModelling> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(PeftError::config("masked", format!("is {share}, expected a share in (0, 1]")));
        }
        let mask = tokenizer.mask_id().ok_or_else(|| {
            PeftError::bad_file(folder, "its tokenizer names no `mask_token`, which masked words need")
        })?;
        tokenizer.check(&[mask])?;
        let masking = Masking { mask, vocab: tokenizer.usable_ids(), share, seed };
        let (data, columns) = self.read()?;
        let column = required("text", &columns.text, &data)?;
        let builder = self.preprocessor(folder, &tokenizer)?;
        let (mut samples, mut tally) = (Vec::new(), Tally::default());
        for (number, row) in data.rows.iter().enumerate() {
            let text = builder.encode(&data.text(row, column)?, None).map_err(|error| data.bad_row(row, error))?;
            let task_id = self.task_id(&data, row)?;
            let sample = Sample { task_id, ..masking.hide(number as u64, &text) };
            tally.count(sample.len() + text.cut, &sample);
            samples.push(sample);
        }
        tally.say(self.row_length(folder)?, &data)?;
        let hidden = samples.iter().filter(|it| it.labelled() > 0).count();
        if hidden < samples.len() {
            tracing::info!(
                "in {} of {} rows no token is hidden: they are left out",
                samples.len() - hidden,
                samples.len()
            );
        }
        self.say_unread(&data, &[&columns.text]);
        MaskedLanguageModelling::new(samples, Padding::right(tokenizer.fill_id())).map_err(|error| data.bad(error))
    }
}

impl<M: MaskedLm> Task<M> for MaskedLanguageModelling {
    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(Sample::len).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.samples[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.iter().map(|it| self.samples[*it].labelled()).sum()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let batch = self.batch(items)?;
        Ok(batch.loss_of_labels(model.logits(&batch.input(device)), device))
    }

    fn places(&self, _model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        Ok(Some(self.batch(items)?.places(labelled)))
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.samples.len(), batch_size, |items, _| {
            let batch = self.batch(items)?;
            let logits = model.logits(&batch.input(device));
            let sum = scalar(&batch.loss_of_labels(logits.clone(), device));
            let predictions = batch.predictions(logits);
            let correct = batch.labels.iter().zip(&predictions).filter(|(label, predicted)| label == predicted).count();
            Ok((sum, correct))
        })?;
        let sum: f64 = parts.iter().map(|it| it.0).sum();
        let correct: usize = parts.iter().map(|it| it.1).sum();
        let count = self.samples.iter().map(Sample::labelled).sum::<usize>();
        let mut metrics = Map::new();
        metrics.insert("perplexity".into(), Value::from(metrics::perplexity(sum, count)?));
        metrics.insert("accuracy".into(), Value::from(correct as f64 / count as f64));
        Ok(Evaluation { loss: sum / count as f64, metrics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_as_many_words_are_hidden_as_asked_and_added_tokens_never() {
        let masking = Masking { mask: 4, vocab: 1000, share: 0.15, seed: 7 };
        let ids: Vec<u32> = (5..905).collect();
        let mut added = vec![false; ids.len()];
        (added[0], added[899]) = (true, true);
        let text = Encoded { ids: ids.clone(), added, ..Encoded::default() };
        let sample = masking.hide(3, &text);
        assert_eq!(sample, masking.hide(3, &text));
        assert_ne!(sample, masking.hide(4, &text));
        let count = sample.labelled();
        assert!((100..170).contains(&count), "{count}");
        assert_eq!((sample.labels[0], sample.labels[899]), (IGNORED, IGNORED));
        let behind = |of: &dyn Fn(usize) -> bool| {
            (0..ids.len()).filter(|at| sample.labels[*at] != IGNORED && of(*at)).count() as f64 / count as f64
        };
        let (masked, kept) = (behind(&|at| sample.input_ids[at] == 4), behind(&|at| sample.input_ids[at] == ids[at]));
        assert!((0.7..0.9).contains(&masked) && (0.03..0.2).contains(&kept), "{masked} {kept}");
        for ((id, label), input) in ids.iter().zip(&sample.labels).zip(&sample.input_ids) {
            assert!(*label == IGNORED && input == id || *label == i64::from(*id), "{id}");
        }
    }
}
