//! What tasks share whose model labels every position: tokens in classes, and tokens behind masks.

use burn::tensor::{Device, Tensor};

use crate::data::batch::Batch;
use crate::data::sample::IGNORED;
use crate::data::tensors::grid;
use crate::tasks::loss;

impl Batch {
    /// The loss of logits of every position, `[rows, prompt + width, classes]`, summed over the labels; `[1]`.
    pub fn loss_of_labels(&self, logits: Tensor<3>, device: &Device) -> Tensor<1> {
        let count = self.labels.iter().filter(|it| **it != IGNORED).count();
        let labels = grid(&self.labels, self.rows, self.width, device);
        loss::every_position(logits, labels).mul_scalar(count as f64)
    }

    /// The likeliest class of every position, `rows · width`. Behind virtual tokens the text comes last.
    pub fn predictions(&self, logits: Tensor<3>) -> Vec<i64> {
        let seq = logits.dims()[1];
        let predictions = logits.narrow(1, seq - self.width, self.width).argmax(2);
        predictions.into_data().iter::<i64>().collect()
    }
}
