//! A data set of pictures, and how they become samples.
//!
//! What task the rows are is said by a method: [`image_classification`](ImageData::image_classification),
//! [`semantic_segmentation`](ImageData::semantic_segmentation). They are beside their tasks.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{PeftError, Result, ops};
use rayon::prelude::*;

use crate::data::augmentation::Augmentations;
use crate::data::columns::Columns;
use crate::data::image::change::{Change, DRAWS, recolor};
use crate::data::image::geometry::Rectangle;
use crate::data::image::pictures::{Decoded, ImageFiles};
use crate::data::image::{ImageProcessor, ImageRows, Pictures};

/// Pictures in folders or in a table, and how they become samples of a task.
///
/// ```no_run
/// # fn main() -> peft_core::Result<()> {
/// use std::path::Path;
///
/// use peft_tasks::data::image_data::ImageData;
///
/// let data = ImageData::file("pets");
/// let labels = data.label_set()?;
/// let task = data.image_classification(Path::new("models/vit"), &labels)?;
/// println!("{} pictures", task.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct ImageData {
    /// A folder of pictures, or a table with their paths: see [`ImageRows::read`].
    pub file: PathBuf,
    /// Which column is what; the usual names are recognised.
    pub columns: Columns,
    /// Changes at random, while a model learns.
    pub augment: Augmentations,
    /// The rows, once they have been listed. Clones share them.
    rows: Arc<OnceLock<Arc<ImageRows>>>,
}

impl ImageData {
    /// The pictures of a folder or of a table.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { file: path.into(), ..Self::default() }
    }

    /// Says which column is what.
    pub fn columns(self, columns: Columns) -> Self {
        Self { columns, ..self }
    }

    /// Changes pictures at random while a model learns.
    pub fn augment(self, augment: Augmentations) -> Self {
        Self { augment, ..self }
    }

    /// The rows.
    ///
    /// # Errors
    /// As [`ImageRows::read`].
    pub fn rows(&self) -> Result<Arc<ImageRows>> {
        if let Some(rows) = self.rows.get() {
            return Ok(rows.clone());
        }
        let rows = Arc::new(ImageRows::read(&self.file, &self.columns)?);
        Ok(self.rows.get_or_init(|| rows).clone())
    }
}

/// Samples of pictures: decoded by [`Pictures`], made into tensors by an [`ImageProcessor`].
#[derive(Debug, Clone)]
pub(crate) struct ImageSamples {
    pub(crate) pictures: Pictures,
    processor: ImageProcessor,
    augment: Augmentations,
}

/// A batch of pictures.
pub(crate) struct ImageBatch {
    /// `[batch, 3, height, width]`
    pub(crate) pixel_values: Tensor<4>,
    /// Height and width.
    pub(crate) size: [usize; 2],
    /// Classes of the pixels, `[batch, height, width]`; empty without masks.
    pub(crate) classes: Vec<i64>,
}

/// A sample: height and width, `[3, height, width]`, and classes of the pixels.
type Sample = ([usize; 2], Vec<f32>, Vec<u16>);

impl ImageSamples {
    pub(crate) fn new(files: Vec<ImageFiles>, processor: ImageProcessor, augment: Augmentations) -> Self {
        Self { pictures: Pictures::new(files), processor, augment }
    }

    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Refuses a model that reads other pictures than there are.
    pub(crate) fn check_channels(&self, channels: usize) -> Result<()> {
        match channels {
            3 => Ok(()),
            _ => Err(PeftError::config(
                "num_channels",
                format!("is {channels}, but pictures have 3: red, green and blue"),
            )),
        }
    }

    /// A batch as an evaluation reads it.
    pub(crate) fn batch(&self, items: &[usize], device: &Device) -> Result<ImageBatch> {
        self.collate(items, device, |_, decoded| self.sample(decoded, None))
    }

    /// A batch as a model learns from it: changed at random, by numbers that depend on the seed of a step, so that a
    /// resumed run draws the same.
    pub(crate) fn augmented(&self, items: &[usize], device: &Device) -> Result<ImageBatch> {
        if self.augment.is_empty() {
            return self.batch(items, device);
        }
        let drawn = ops::drawn(items.len() * DRAWS, device);
        self.collate(items, device, |at, decoded| {
            let mut numbers = [0.0; DRAWS];
            numbers.copy_from_slice(&drawn[at * DRAWS..(at + 1) * DRAWS]);
            let change = self.augment.change(&numbers, decoded.picture.width, decoded.picture.height);
            self.sample(decoded, Some(change))
        })
    }

    fn sample(&self, mut decoded: Decoded, change: Option<Change>) -> Result<Sample> {
        let (width, height) = (decoded.picture.width, decoded.picture.height);
        if let Some(factors) = change.and_then(|it| it.color) {
            recolor(&mut decoded.picture, factors);
        }
        let part = change.and_then(|it| it.part);
        // A part is enlarged to what the model reads, which has one size then.
        let size = part.and_then(|_| self.processor.fixed_size());
        let part = part.filter(|_| size.is_some()).unwrap_or(Rectangle::whole(width, height));
        let (size_read, mut pixels) = self.processor.pixels_of(&decoded.picture, part, size)?;
        let mut classes = Vec::new();
        if let Some(mask) = &decoded.mask {
            classes = self.processor.classes_of(mask, part, size)?.classes;
        }
        if change.is_some_and(|it| it.is_mirrored) {
            pixels.chunks_exact_mut(size_read[1]).for_each(<[f32]>::reverse);
            classes.chunks_exact_mut(size_read[1]).for_each(<[u16]>::reverse);
        }
        Ok((size_read, pixels, classes))
    }

    fn collate(
        &self,
        items: &[usize],
        device: &Device,
        sample: impl Fn(usize, Decoded) -> Result<Sample> + Sync,
    ) -> Result<ImageBatch> {
        let decoded = self.pictures.take(items)?;
        let samples: Vec<Sample> =
            decoded.into_par_iter().enumerate().map(|(at, it)| sample(at, it)).collect::<Result<_>>()?;
        let size = samples.first().map_or([0, 0], |it| it.0);
        if let Some(at) = samples.iter().position(|it| it.0 != size) {
            let reason = format!(
                "its picture becomes {} × {} pixels where another of the batch becomes {} × {}: `size` of {} gives \
                 pictures no one size; give `height` and `width`, or a batch of one",
                samples[at].0[1],
                samples[at].0[0],
                size[1],
                size[0],
                self.processor.path().display()
            );
            return Err(PeftError::bad_file(&self.pictures.files(items[at]).image, reason));
        }
        let [height, width] = size;
        let (mut pixels, mut classes) = (Vec::with_capacity(samples.len() * 3 * height * width), Vec::new());
        for (_, sample, of_pixels) in &samples {
            pixels.extend_from_slice(sample);
            classes.extend(of_pixels.iter().map(|it| i64::from(*it)));
        }
        let data = TensorData::new(pixels, [samples.len(), 3, height, width]);
        Ok(ImageBatch { pixel_values: Tensor::from_data(data, device), size, classes })
    }
}
