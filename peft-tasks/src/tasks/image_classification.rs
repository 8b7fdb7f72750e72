//! Image classification: labels for whole pictures.

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result};
use peft_models::{ImageClassifier, Pretrained};

use crate::data::augmentation::Augmentations;
use crate::data::image::ImageProcessor;
use crate::data::image::pictures::ImageFiles;
use crate::data::image_data::{ImageData, ImageSamples};
use crate::data::labels::{Label, LabelSet};
use crate::tasks::in_batches::in_batches;
use crate::tasks::row_labels::{RowLabels, rows};
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of an image classifier.
#[derive(Debug, Clone)]
pub struct ImageClassification {
    samples: ImageSamples,
    labels: RowLabels,
}

impl ImageClassification {
    /// Pictures and their labels, in the same order.
    ///
    /// # Errors
    /// If there are none, or not as many of one as of the other.
    pub fn new(
        files: Vec<ImageFiles>,
        labels: Vec<Label>,
        set: LabelSet,
        processor: ImageProcessor,
        augment: Augmentations,
    ) -> Result<Self> {
        if files.is_empty() || files.len() != labels.len() {
            let counts = format!("{} pictures and {} labels", files.len(), labels.len());
            return Err(PeftError::Invalid(format!(
                "a classifier needs as many labels as pictures, and some: {counts}"
            )));
        }
        Ok(Self { samples: ImageSamples::new(files, processor, augment), labels: RowLabels::new(labels, set) })
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ImageData {
    /// What the labels are: the names of the folders, or what a column of the table holds.
    ///
    /// # Errors
    /// If there is no picture or no label.
    pub fn label_set(&self) -> Result<LabelSet> {
        let rows = self.rows()?;
        LabelSet::learn(&rows.data, &rows.label_column()?, None)
    }

    /// The task of an image classifier, with the labels of [`label_set`](ImageData::label_set) or those of an adapter. The
    /// base model's folder says how pictures are read.
    ///
    /// # Errors
    /// If a picture is not there, a label is none of `set`, or the folder has no image processor. Pictures are decoded
    /// later: a damaged one ends the run, with its name.
    pub fn image_classification(
        &self,
        base: &(impl Pretrained + ?Sized),
        set: &LabelSet,
    ) -> Result<ImageClassification> {
        let processor = ImageProcessor::load(base.folder()?)?;
        let rows = self.rows()?;
        let column = rows.label_column()?;
        let labels = rows.data.rows.iter().map(|row| set.label(&rows.data, row, &column)).collect::<Result<_>>()?;
        let files = rows.images()?.into_iter().map(|image| ImageFiles { image, mask: None }).collect();
        ImageClassification::new(files, labels, set.clone(), processor, self.augment.clone())
    }
}

impl<M: ImageClassifier> Task<M> for ImageClassification {
    fn lengths(&self) -> Vec<usize> {
        vec![1; self.len()]
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.len()
    }

    fn unit(&self) -> &'static str {
        "pictures"
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn announce(&self, items: &[usize]) {
        self.samples.pictures.announce(items);
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        self.samples.check_channels(model.num_channels())?;
        let batch = self.samples.augmented(items, device)?;
        self.labels.loss_sum(model.logits(batch.pixel_values), items, device)
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        self.samples.check_channels(model.num_channels())?;
        let parts = in_batches(self.len(), batch_size, |items, next| {
            let pixels = self.samples.batch(items, device)?.pixel_values;
            self.samples.pictures.announce(next);
            let logits = model.logits(pixels);
            Ok((scalar(&self.labels.loss_sum(logits.clone(), items, device)?), rows(logits)))
        })?;
        let (sums, outputs): (Vec<f64>, Vec<_>) = parts.into_iter().unzip();
        let loss = sums.iter().sum::<f64>() / self.len() as f64;
        Ok(Evaluation { loss, metrics: self.labels.measure(&outputs.concat())? })
    }
}
