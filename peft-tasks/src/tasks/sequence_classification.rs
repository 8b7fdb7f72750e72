//! Sequence classification: labels for whole sequences.

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result};
use peft_models::{Pretrained, SequenceClassifier};

use crate::data::batch::{Batch, Padding, collate};
use crate::data::columns::required;
use crate::data::labels::{Label, LabelSet};
use crate::data::sample::Sample;
use crate::data::tally::Tally;
use crate::data::text_data::TextData;
use crate::tasks::in_batches::in_batches;
use crate::tasks::row_labels::{RowLabels, rows};
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of a sequence classifier.
#[derive(Debug, Clone)]
pub struct SequenceClassification {
    samples: Vec<Sample>,
    labels: RowLabels,
    padding: Padding,
}

impl SequenceClassification {
    /// Samples and their labels, in the same order.
    ///
    /// # Errors
    /// If there are none, or not as many of one as of the other.
    pub fn new(samples: Vec<Sample>, labels: Vec<Label>, set: LabelSet, padding: Padding) -> Result<Self> {
        if samples.is_empty() || samples.len() != labels.len() {
            let counts = format!("{} sequences and {} labels", samples.len(), labels.len());
            return Err(PeftError::Invalid(format!(
                "a classifier needs as many labels as sequences, and some: {counts}"
            )));
        }
        Ok(Self { samples, labels: RowLabels::new(labels, set), padding })
    }

    fn batch(&self, items: &[usize]) -> Result<Batch> {
        collate(&items.iter().map(|it| &self.samples[*it]).collect::<Vec<_>>(), &self.padding)
    }
}

impl TextData {
    /// The task of a sequence classifier, with the labels of [`label_set`](TextData::label_set) or those of an adapter.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing, a sequence is empty or a label is none of `set`.
    pub fn sequence_classification(
        &self,
        base: &(impl Pretrained + ?Sized),
        set: &LabelSet,
    ) -> Result<SequenceClassification> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        let (data, columns) = self.read()?;
        let (text, label) = (required("text", &columns.text, &data)?, required("label", &columns.label, &data)?);
        let builder = self.preprocessor(folder, &tokenizer)?;
        let (mut samples, mut labels, mut tally) = (Vec::new(), Vec::new(), Tally::default());
        for row in &data.rows {
            let pair = columns.text_pair.as_ref().map(|it| data.text(row, it)).transpose()?;
            let (mut sample, cut) = builder
                .counted_sequence(&data.text(row, text)?, pair.as_deref())
                .map_err(|error| data.bad_row(row, error))?;
            tally.count(sample.len() + cut, &sample);
            sample.task_id = self.task_id(&data, row)?;
            if sample.is_empty() {
                return Err(data.bad_row(row, "the text is empty"));
            }
            samples.push(sample);
            labels.push(set.label(&data, row, label)?);
        }
        tally.say(self.row_length(folder)?, &data)?;
        self.say_unread(&data, &[&columns.text, &columns.text_pair, &columns.label]);
        SequenceClassification::new(samples, labels, set.clone(), Padding::right(tokenizer.fill_id()))
            .map_err(|error| data.bad(error))
    }
}

impl<M: SequenceClassifier> Task<M> for SequenceClassification {
    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(Sample::len).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.samples[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let logits = model.logits(&self.batch(items)?.input(device));
        self.labels.loss_sum(logits, items, device)
    }

    fn places(&self, _model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        Ok(Some(self.batch(items)?.places(labelled)))
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.samples.len(), batch_size, |items, _| {
            let logits = model.logits(&self.batch(items)?.input(device));
            Ok((scalar(&self.labels.loss_sum(logits.clone(), items, device)?), rows(logits)))
        })?;
        let (sums, outputs): (Vec<f64>, Vec<_>) = parts.into_iter().unzip();
        let loss = sums.iter().sum::<f64>() / self.samples.len() as f64;
        Ok(Evaluation { loss, metrics: self.labels.measure(&outputs.concat())? })
    }
}
