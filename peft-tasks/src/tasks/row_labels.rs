//! The labels of rows, be they texts or pictures: the loss of a classifier on them, and how well it does.

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::Result;
use serde_json::{Map, Value};

use crate::data::labels::{Label, LabelKind, LabelSet, Targets};
use crate::data::tensors::line;
use crate::eval::metrics::{self, Average, Confusion, MultiLabel};
use crate::tasks::loss::{self, Labels, ProblemType};

/// A label for each row.
#[derive(Debug, Clone)]
pub(crate) struct RowLabels {
    labels: Vec<Label>,
    set: LabelSet,
}

impl RowLabels {
    /// Labels of a set, in the order of the rows.
    pub(crate) fn new(labels: Vec<Label>, set: LabelSet) -> Self {
        Self { labels, set }
    }

    fn problem(&self) -> ProblemType {
        match self.set.kind {
            LabelKind::Single => ProblemType::SingleLabel,
            LabelKind::Multi => ProblemType::MultiLabel,
            LabelKind::Regression => ProblemType::Regression,
        }
    }

    /// The loss of a classifier, summed over rows.
    ///
    /// # Shapes
    /// - logits: `[items, num_labels]`
    pub(crate) fn loss_sum(&self, logits: Tensor<2>, items: &[usize], device: &Device) -> Result<Tensor<1>> {
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

    /// Accuracy and F1 of classes, mean squared error and correlation of numbers. `outputs` are the logits of all rows.
    pub(crate) fn measure(&self, outputs: &[Vec<f32>]) -> Result<Map<String, Value>> {
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

/// The rows of a tensor on the host.
pub(crate) fn rows(logits: Tensor<2>) -> Vec<Vec<f32>> {
    let width = logits.dims()[1];
    let data = logits.into_data().convert::<f32>();
    data.as_slice::<f32>().unwrap_or(&[]).chunks(width).map(<[f32]>::to_vec).collect()
}
