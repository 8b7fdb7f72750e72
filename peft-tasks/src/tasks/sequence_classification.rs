//! Sequence classification: labels for whole sequences.

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{PeftError, Result};
use peft_models::{Pretrained, SequenceClassifier};
use serde_json::{Map, Value};

use crate::data::batch::{Batch, Padding, collate};
use crate::data::columns::required;
use crate::data::labels::{Label, LabelKind, LabelSet, Targets};
use crate::data::sample::Sample;
use crate::data::tally::Tally;
use crate::data::tensors::line;
use crate::data::text_data::TextData;
use crate::eval::metrics::{self, Average, Confusion, MultiLabel};
use crate::tasks::interruption;
use crate::tasks::loss::{self, Labels, ProblemType};
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of a sequence classifier.
#[derive(Debug, Clone)]
pub struct SequenceClassification {
    samples: Vec<Sample>,
    labels: Vec<Label>,
    set: LabelSet,
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
        Ok(Self { samples, labels, set, padding })
    }

    fn batch(&self, items: &[usize]) -> Result<Batch> {
        collate(&items.iter().map(|it| &self.samples[*it]).collect::<Vec<_>>(), &self.padding)
    }

    fn problem(&self) -> ProblemType {
        match self.set.kind {
            LabelKind::Single => ProblemType::SingleLabel,
            LabelKind::Multi => ProblemType::MultiLabel,
            LabelKind::Regression => ProblemType::Regression,
        }
    }

    fn loss_of(&self, logits: Tensor<2>, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let labels: Vec<Label> = items.iter().map(|it| self.labels[*it].clone()).collect();
        let labels = match self.set.targets(&labels)? {
            Targets::Classes(classes) => Labels::Classes(line(&classes, device)),
            Targets::Flags(values) | Targets::Values(values) => {
                let width = values.len() / items.len();
                Labels::Values(Tensor::from_data(TensorData::new(values, [items.len(), width]), device))
            }
        };
        Ok(loss::classification(logits, labels, self.problem())?.mul_scalar(items.len() as f64))
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
        self.loss_of(logits, items, device)
    }

    fn places(&self, _model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        Ok(Some(self.batch(items)?.places(labelled)))
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let items: Vec<usize> = (0..self.samples.len()).collect();
        let mut sum = 0.0;
        let mut outputs: Vec<Vec<f32>> = Vec::new();
        for chunk in items.chunks(batch_size.max(1)) {
            interruption::go_on()?;
            let logits = model.logits(&self.batch(chunk)?.input(device));
            let width = logits.dims()[1];
            sum += scalar(&self.loss_of(logits.clone(), chunk, device)?);
            let data = logits.into_data().convert::<f32>();
            outputs.extend(data.as_slice::<f32>().unwrap_or(&[]).chunks(width).map(<[f32]>::to_vec));
        }
        Ok(Evaluation { loss: sum / items.len() as f64, metrics: self.measure(&outputs)? })
    }
}

impl SequenceClassification {
    fn measure(&self, outputs: &[Vec<f32>]) -> Result<Map<String, Value>> {
        let mut measures = Map::new();
        let classes = self.set.outputs();
        match self.set.kind {
            LabelKind::Single => {
                let mut confusion = Confusion::new(classes);
                for (output, label) in outputs.iter().zip(&self.labels) {
                    if let (Label::Class(class), Some(best)) = (label, crate::generate::logits::argmax(output)) {
                        confusion.add(*class, best as usize)?;
                    }
                }
                measures.insert("accuracy".into(), confusion.accuracy().into());
                measures.insert("f1".into(), confusion.average(Average::Macro).f1.into());
            }
            LabelKind::Multi => {
                let mut confusion = MultiLabel::new(classes);
                for (output, label) in outputs.iter().zip(&self.labels) {
                    if let Label::Classes(on) = label {
                        let truth: Vec<bool> = (0..classes).map(|it| on.contains(&it)).collect();
                        let predicted: Vec<bool> = output.iter().map(|it| *it > 0.0).collect();
                        confusion.add(&truth, &predicted)?;
                    }
                }
                measures.insert("accuracy".into(), confusion.accuracy().into());
                measures.insert("f1".into(), confusion.average(Average::Micro).f1.into());
            }
            LabelKind::Regression => {
                let (predicted, truth): (Vec<f64>, Vec<f64>) = outputs
                    .iter()
                    .zip(&self.labels)
                    .filter_map(|(output, label)| match label {
                        Label::Value(value) => Some((f64::from(output[0]), f64::from(*value))),
                        _ => None,
                    })
                    .unzip();
                measures.insert("mse".into(), metrics::mean_squared_error(&truth, &predicted)?.into());
                measures.insert("pearson".into(), metrics::pearson(&truth, &predicted)?.into());
            }
        }
        Ok(measures)
    }
}
