//! Losses, as the heads of transformers compute them.

use burn::tensor::{Int, Tensor, activation};
use peft_core::ops::{self, IGNORE_INDEX};
use peft_core::{PeftError, Result};

/// The loss of a language model: every position predicts the label of the next one.
///
/// # Shapes
/// - logits: `[batch, prompt + seq, vocab]`, where a prompt of virtual tokens has no labels
/// - labels: `[batch, seq]`, −100 where nothing is to be learned
pub fn causal_lm(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, total, vocab] = logits.dims();
    let [_, seq] = labels.dims();
    // Without a prompt nothing predicts the first token, with one its last virtual token does.
    let targets = if total > seq { seq } else { seq - 1 };
    let logits = logits.narrow(1, total - targets - 1, targets).reshape([batch * targets, vocab]);
    let labels = labels.narrow(1, seq - targets, targets).reshape([batch * targets]);
    ops::cross_entropy(logits, labels)
}

/// The loss of a model that labels every position itself: tokens in classes, and targets behind a source, whose decoder
/// reads them one position late.
///
/// # Shapes
/// - logits: `[batch, prompt + seq, classes]`, where a prompt of virtual tokens has no labels
/// - labels: `[batch, seq]`, −100 where nothing is to be learned
pub fn every_position(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, total, classes] = logits.dims();
    let [_, seq] = labels.dims();
    let logits = logits.narrow(1, total - seq, seq);
    ops::cross_entropy(logits.reshape([batch * seq, classes]), labels.reshape([batch * seq]))
}

/// The loss of extractive question answering: the mean of that for the start position and that for the end position.
///
/// Positions outside the sequence, as those of answers that were cut off, count in neither.
///
/// # Shapes
/// - logits: `[batch, seq, 2]`
/// - starts, ends: `[batch]`
pub fn question_answering(logits: Tensor<3>, starts: Tensor<1, Int>, ends: Tensor<1, Int>) -> Tensor<1> {
    let [batch, seq, _] = logits.dims();
    let one = |at: usize, places: Tensor<1, Int>| {
        let outside = places.clone().greater_equal_elem(seq as i64);
        let places = places.clamp_min(0).mask_fill(outside, IGNORE_INDEX);
        ops::cross_entropy(logits.clone().narrow(2, at, 1).reshape([batch, seq]), places)
    };
    (one(0, starts) + one(1, ends)).div_scalar(2.0)
}

/// The loss of a semantic segmentation model, as `SegformerForSemanticSegmentation` has it: the mean over the pixels that have a
/// class. With one output each pixel is on or off, and the mean is over all pixels, those without a class counting 0.
///
/// # Shapes
/// - logits: `[batch, classes, height, width]`
/// - labels: `[batch, height, width]`, `ignored` where nothing is to be learned
pub fn segmentation(logits: Tensor<4>, labels: Tensor<3, Int>, ignored: i64) -> Tensor<1> {
    let [batch, classes, height, width] = logits.dims();
    let pixels = batch * height * width;
    let labels = labels.reshape([pixels]);
    if classes > 1 {
        let unlearned = labels.clone().equal_elem(ignored);
        let logits = logits.permute([0, 2, 3, 1]).reshape([pixels, classes]);
        return ops::cross_entropy(logits, labels.mask_fill(unlearned, IGNORE_INDEX));
    }
    let logits = logits.reshape([pixels]);
    let counts = labels.clone().not_equal_elem(ignored).bool_and(labels.clone().greater_equal_elem(0)).float();
    let each = binary_cross_entropy(logits, labels.float());
    (each * counts).mean()
}

/// log(1 + e^−|x|) + max(x, 0) − x·t, which is finite for every x.
fn binary_cross_entropy<const D: usize>(logits: Tensor<D>, targets: Tensor<D>) -> Tensor<D> {
    let softplus = activation::softplus(logits.clone().abs().neg(), 1.0);
    softplus + logits.clone().clamp_min(0.0) - logits * targets
}

/// The rows of `[batch · (prompt + seq)]` that predict something, and what they should predict, where `prompt` virtual
/// tokens without labels stand before every row.
///
/// Computing the head for these rows only gives the same loss; where the loss is on completions it saves most of the
/// head's work.
pub fn predicting_rows(labels: &[i64], seq: usize, prompt: usize) -> (Vec<i64>, Vec<i64>) {
    let mut rows = Vec::new();
    let mut next = Vec::new();
    for (row, line) in labels.chunks(seq).enumerate() {
        let first = usize::from(prompt == 0);
        for (at, label) in line.iter().enumerate().skip(first).filter(|(_, label)| **label != IGNORE_INDEX) {
            rows.push((row * (prompt + seq) + prompt + at - 1) as i64);
            next.push(*label);
        }
    }
    (rows, next)
}

/// Labels of a classifier: class numbers, or numbers to regress on or to switch on.
#[derive(Debug, Clone)]
pub enum Labels {
    /// `[batch]`
    Classes(Tensor<1, Int>),
    /// `[batch, num_labels]`
    Values(Tensor<2>),
}

/// What a classifier's outputs mean: `problem_type` of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// Mean squared error.
    Regression,
    /// Softmax cross-entropy.
    SingleLabel,
    /// A binary cross-entropy for each label.
    MultiLabel,
}

impl ProblemType {
    /// The type that a checkpoint names, or else that labels and their number imply.
    pub fn resolve(named: Option<&str>, num_labels: usize, labels: &Labels) -> Result<Self> {
        match named {
            Some("regression") => Ok(Self::Regression),
            Some("single_label_classification") => Ok(Self::SingleLabel),
            Some("multi_label_classification") => Ok(Self::MultiLabel),
            Some(other) => Err(PeftError::config("problem_type", format!("is `{other}`, which is unknown"))),
            None if num_labels == 1 => Ok(Self::Regression),
            None if matches!(labels, Labels::Classes(_)) => Ok(Self::SingleLabel),
            None => Ok(Self::MultiLabel),
        }
    }
}

/// The loss of a sequence classifier.
///
/// # Shapes
/// - logits: `[batch, num_labels]`
pub fn classification(logits: Tensor<2>, labels: Labels, problem: ProblemType) -> Result<Tensor<1>> {
    let [batch, num_labels] = logits.dims();
    match (problem, labels) {
        (ProblemType::SingleLabel, Labels::Classes(classes)) => Ok(ops::cross_entropy(logits, classes)),
        (ProblemType::SingleLabel, Labels::Values(_)) => {
            Err(PeftError::Invalid("single-label classification needs whole numbers as labels".into()))
        }
        (problem, labels) => {
            let targets = match labels {
                Labels::Values(values) => values,
                Labels::Classes(classes) => classes.float().unsqueeze_dim(1),
            };
            if targets.dims() != [batch, num_labels] {
                let reason = format!("labels have the shape {:?}, logits {:?}", targets.dims(), [batch, num_labels]);
                return Err(PeftError::Invalid(reason));
            }
            Ok(match problem {
                ProblemType::Regression => {
                    let error = logits - targets;
                    (error.clone() * error).mean()
                }
                _ => binary_cross_entropy(logits, targets).mean(),
            })
        }
    }
}
