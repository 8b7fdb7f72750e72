//! Text about pictures: captions, and answers to questions about them.

use burn::tensor::{Device, Int, Tensor};
use peft_core::ops::IGNORE_INDEX;
use peft_core::{Adaptable, Result};
use peft_models::{ImageToText, ModelInput, Pretrained};
use serde_json::{Map, Value};

use crate::data::batch::{Padding, collate};
use crate::data::image::ImageProcessor;
use crate::data::image::pictures::ImageFiles;
use crate::data::image_data::{ImageBatch, ImageData, ImageSamples};
use crate::data::sample::Sample;
use crate::data::tensors::grid;
use crate::data::tokenizer::Tokenizer;
use crate::eval::metrics;
use crate::eval::overlap::TextScores;
use crate::generate::captions::{generate_captions, with_picture};
use crate::tasks::in_batches::in_batches;
use crate::tasks::loss;
use crate::tasks::sequence_to_sequence::Written;
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of a model that writes text about a picture.
#[derive(Debug, Clone)]
pub struct Captioning {
    samples: ImageSamples,
    captions: Vec<Caption>,
    pad: u32,
    written: Option<Written>,
}

/// What is read beside a picture, and what is to be written.
#[derive(Debug, Clone)]
struct Caption {
    /// With the tokens that a tokenizer puts around a text.
    prompt: Vec<u32>,
    /// Without them, but for the last token.
    text: Vec<u32>,
}

impl ImageData {
    /// The task of a model that writes text about pictures: rows of a table with a picture (`image`), a text (`text`,
    /// `caption`) and perhaps a question before it (`prompt`). The base model's folder says how pictures are read.
    ///
    /// # Errors
    /// If a column is missing, a picture is not there, a text is empty, or the folder has no image processor.
    pub fn captioning(&self, base: &(impl Pretrained + ?Sized), tokenizer: &Tokenizer) -> Result<Captioning> {
        let processor = ImageProcessor::load(base.folder()?)?;
        let rows = self.rows()?;
        let (texts, prompts) = (rows.texts()?, rows.prompts()?);
        let end = tokenizer.eos_id();
        let captions = texts.iter().zip(prompts).zip(&rows.data.rows).map(|((text, prompt), row)| {
            let mut text = tokenizer.ids(text, false)?;
            if text.is_empty() {
                return Err(rows.data.bad_row(row, "a text is empty"));
            }
            text.extend(end);
            Ok(Caption { prompt: tokenizer.ids(&prompt, true)?, text })
        });
        let captions = captions.collect::<Result<_>>()?;
        let files = rows.images()?.into_iter().map(|image| ImageFiles { image, mask: None }).collect();
        let samples = ImageSamples::new(files, processor, self.augment.clone());
        Ok(Captioning { samples, captions, pad: tokenizer.fill_id(), written: None })
    }
}

impl Captioning {
    /// Has every evaluation write captions and measure them: exact matches, ROUGE, BLEU.
    pub fn with_writing(self, written: Written) -> Self {
        Self { written: Some(written), ..self }
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.captions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The loss of a batch, summed over all tokens that are to be written.
    fn of_batch<M: ImageToText>(
        &self,
        model: &M,
        items: &[usize],
        batch: ImageBatch,
        device: &Device,
    ) -> Result<Tensor<1>> {
        self.samples.check_channels(model.num_channels())?;
        let apart = model.has_encoder();
        let sample = |item: &usize| {
            let Caption { prompt, text } = &self.captions[*item];
            let mut input_ids = with_picture(model, prompt)?;
            let mut labels = vec![IGNORE_INDEX; input_ids.len()];
            if !apart {
                input_ids.extend(text);
                labels.extend(text.iter().map(|it| i64::from(*it)));
            }
            Ok(Sample { input_ids, labels, ..Sample::default() })
        };
        let samples: Vec<Sample> = items.iter().map(sample).collect::<Result<_>>()?;
        let rows = collate(&samples, &Padding::right(self.pad))?;
        let read = model.read(batch.pixel_values, &rows.input(device));
        let mean = if apart {
            let samples: Vec<Sample> =
                items.iter().map(|it| Sample::language(self.captions[*it].text.clone())).collect();
            let target = collate(&samples, &Padding::right(self.pad))?;
            let labels: Tensor<2, Int> = grid(&target.labels, target.rows, target.width, device);
            let shifted = ModelInput::ids(model.shift_right(labels.clone())?);
            loss::every_position(model.logits(&read, Some(&shifted)), labels)
        } else {
            loss::causal_lm(model.logits(&read, None), grid(&rows.labels, rows.rows, rows.width, device))
        };
        Ok(mean.mul_scalar(self.count(items) as f64))
    }

    fn count(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.captions[*it].text.len()).sum()
    }

    /// What the model writes.
    fn write<M: ImageToText + Adaptable>(
        &self,
        written: &Written,
        model: &M,
        batch: &[usize],
        pixel_values: Tensor<4>,
    ) -> Result<Vec<String>> {
        let device = pixel_values.device();
        let prompts: Vec<Vec<u32>> = batch.iter().map(|it| self.captions[*it].prompt.clone()).collect();
        let texts = generate_captions(model, pixel_values, &prompts, &written.plan, &device, |_, _| Ok(()))?;
        texts.iter().map(|it| written.tokenizer.decode(it, true)).collect()
    }
}

impl<M: ImageToText + Adaptable> Task<M> for Captioning {
    fn lengths(&self) -> Vec<usize> {
        self.captions.iter().map(|it| it.prompt.len() + it.text.len()).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.captions[*it].prompt.len() + self.captions[*it].text.len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        self.count(items)
    }

    fn announce(&self, items: &[usize]) {
        self.samples.pictures.announce(items);
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let batch = self.samples.augmented(items, device)?;
        self.of_batch(model, items, batch, device)
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.len(), batch_size, |items, next| {
            let pictures = self.samples.batch(items, device)?;
            self.samples.pictures.announce(next);
            let pixel_values = pictures.pixel_values.clone();
            let sum = scalar(&self.of_batch(model, items, pictures, device)?);
            let write = |written| self.write(written, model, items, pixel_values);
            Ok((sum, self.written.as_ref().map(write).transpose()?.unwrap_or_default()))
        })?;
        let (sums, texts): (Vec<f64>, Vec<_>) = parts.into_iter().unzip();
        let sum: f64 = sums.iter().sum();
        let count = self.count(&(0..self.len()).collect::<Vec<_>>());
        let perplexity = Value::from(metrics::perplexity(sum, count)?);
        let mut metrics = Map::from_iter([("perplexity".to_owned(), perplexity)]);
        if let Some(written) = &self.written {
            let mut scores = TextScores::default();
            for (caption, text) in self.captions.iter().zip(texts.concat()) {
                scores.add(&written.tokenizer.decode(&caption.text, true)?, &text);
            }
            metrics.extend(scores.metrics().map(|(name, value)| (name.to_owned(), Value::from(value))));
        }
        Ok(Evaluation { loss: sum / count as f64, metrics })
    }
}
