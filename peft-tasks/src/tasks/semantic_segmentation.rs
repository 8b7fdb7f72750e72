//! Semantic segmentation: a class for every pixel.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::files::plain::read_text;
use peft_core::ops::{self, Interpolation};
use peft_core::{PeftError, Result};
use peft_models::{Pretrained, SemanticSegmenter};
use serde_json::{Map, Value};

use crate::data::image::pictures::ImageFiles;
use crate::data::image::{ImageProcessor, Mask};
use crate::data::image_data::{ImageBatch, ImageData, ImageSamples};
use crate::data::labels::{LabelKind, LabelSet};
use crate::eval::segmentation::PixelCounts;
use crate::tasks::in_batches::in_batches;
use crate::tasks::loss;
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of a semantic segmentation model.
#[derive(Debug, Clone)]
pub struct SemanticSegmentation {
    samples: ImageSamples,
    classes: Vec<String>,
}

impl SemanticSegmentation {
    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of a batch, of which those that are no class must be `ignored`.
    fn labels(&self, batch: &ImageBatch, items: &[usize], ignored: i64) -> Result<TensorData> {
        let [height, width] = batch.size;
        let classes = self.classes.len() as i64;
        if let Some(at) = batch.classes.iter().position(|it| *it != ignored && !(0..classes).contains(it)) {
            let files = self.samples.pictures.files(items[at / (height * width)]);
            let reason = format!(
                "a pixel is of class {}, but there are {classes} classes, from 0; {ignored} is for pixels that are not \
                 learned",
                batch.classes[at]
            );
            return Err(PeftError::bad_file(files.mask.as_ref().unwrap_or(&files.image), reason));
        }
        Ok(TensorData::new(batch.classes.clone(), [items.len(), height, width]))
    }
}

impl ImageData {
    /// The classes of pixels. Beside the pictures `id2label.json` may name them, as in the data sets of the reference's
    /// guides, or `classes.txt`, one a line. Without either they are the numbers in the masks, as many as the largest says:
    /// all masks are read for it, as the base model reads them.
    ///
    /// # Errors
    /// If a file cannot be read, or no pixel is of a class.
    pub fn mask_classes(&self, base: &(impl Pretrained + ?Sized)) -> Result<LabelSet> {
        let folder = if self.file.is_dir() { Some(self.file.as_path()) } else { self.file.parent() };
        if let Some(names) = folder.map(class_names).transpose()?.flatten() {
            return Ok(LabelSet::new(LabelKind::Single, names));
        }
        let processor = ImageProcessor::load(base.folder()?)?;
        let mut most = None;
        for path in self.rows()?.masks()? {
            let mask: Mask = processor.classes(&Mask::read(&path)?)?;
            most = most.max(mask.classes.into_iter().filter(|it| *it != UNLEARNED).max());
        }
        let Some(most) = most else {
            let reason = "no pixel of any mask is of a class, so there is nothing to learn";
            return Err(PeftError::bad_file(&self.file, reason));
        };
        Ok(LabelSet::new(LabelKind::Single, (0..=most).map(|it| it.to_string()).collect()))
    }

    /// The task of a semantic segmentation model. The base model's folder says how pictures are read.
    ///
    /// # Errors
    /// If a picture or a mask is not there, or the folder has no image processor. Files are decoded later: a damaged one
    /// ends the run, with its name.
    pub fn semantic_segmentation(
        &self,
        base: &(impl Pretrained + ?Sized),
        set: &LabelSet,
    ) -> Result<SemanticSegmentation> {
        let processor = ImageProcessor::load(base.folder()?)?;
        let rows = self.rows()?;
        let pairs = rows.images()?.into_iter().zip(rows.masks()?);
        let files = pairs.map(|(image, mask)| ImageFiles { image, mask: Some(mask) }).collect();
        let samples = ImageSamples::new(files, processor, self.augment.clone());
        Ok(SemanticSegmentation { samples, classes: set.names.clone() })
    }
}

/// What masks call pixels that are of no class.
const UNLEARNED: u16 = 255;

/// The names of classes that lie beside pictures.
fn class_names(folder: &Path) -> Result<Option<Vec<String>>> {
    let (json, text) = (folder.join("id2label.json"), folder.join("classes.txt"));
    if json.is_file() {
        let names: BTreeMap<String, String> =
            serde_json::from_str(&read_text(&json)?).map_err(|error| PeftError::bad_file(&json, error))?;
        let mut by_id = Vec::with_capacity(names.len());
        for id in 0..names.len() {
            let missing =
                || PeftError::bad_file(&json, format!("it has {} names, but none for class {id}", names.len()));
            by_id.push(names.get(&id.to_string()).cloned().ok_or_else(missing)?);
        }
        return Ok(Some(by_id));
    }
    if !text.is_file() {
        return Ok(None);
    }
    let names = read_text(&text)?;
    Ok(Some(names.lines().map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect()))
}

/// The logits of every pixel of a picture of this height and width.
fn of_pixels<M: SemanticSegmenter>(model: &M, pixel_values: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    ops::interpolate(model.logits(pixel_values), size, Interpolation::Bilinear)
}

impl<M: SemanticSegmenter> Task<M> for SemanticSegmentation {
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

    /// The mean over the pixels of a batch, as the reference has it, times the number of pictures.
    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        self.samples.check_channels(model.num_channels())?;
        let batch = self.samples.augmented(items, device)?;
        let labels = self.labels(&batch, items, model.ignored_label())?;
        let logits = of_pixels(model, batch.pixel_values, batch.size);
        let labels = Tensor::<3, Int>::from_data(labels, device);
        Ok(loss::segmentation(logits, labels, model.ignored_label()).mul_scalar(items.len() as f64))
    }

    /// `mean_iou`, `mean_accuracy`, `overall_accuracy`, and the IoU of each class.
    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        self.samples.check_channels(model.num_channels())?;
        let ignored = model.ignored_label();
        let parts = in_batches(self.len(), batch_size, |items, next| {
            let batch = self.samples.batch(items, device)?;
            self.samples.pictures.announce(next);
            let labels = self.labels(&batch, items, ignored)?;
            let logits = of_pixels(model, batch.pixel_values, batch.size);
            let on_device = Tensor::<3, Int>::from_data(labels, device);
            let sum = scalar(&loss::segmentation(logits.clone(), on_device, ignored)) * items.len() as f64;
            let mut counts = PixelCounts::new(self.classes.len().max(2));
            let found = match logits.dims()[1] {
                1 => logits.greater_elem(0.0).int(),
                _ => logits.argmax(1),
            };
            for (label, predicted) in batch.classes.iter().zip(found.into_data().iter::<i64>()) {
                if *label != ignored {
                    counts.add(*label as usize, predicted as usize)?;
                }
            }
            Ok((sum, counts))
        })?;
        let (mut sum, mut counts) = (0.0, PixelCounts::new(self.classes.len().max(2)));
        for (part, counted) in &parts {
            sum += part;
            counts.join(counted);
        }
        let mut metrics = Map::from_iter([
            ("mean_iou".to_owned(), Value::from(counts.mean_iou())),
            ("mean_accuracy".to_owned(), counts.mean_accuracy().into()),
            ("overall_accuracy".to_owned(), counts.overall_accuracy().into()),
        ]);
        for (name, iou) in self.classes.iter().zip(counts.iou()) {
            metrics.insert(format!("iou_{name}"), iou.map_or(Value::Null, Value::from));
        }
        Ok(Evaluation { loss: sum / self.len() as f64, metrics })
    }
}
