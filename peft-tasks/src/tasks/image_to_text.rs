//! Text about pictures: captions, and answers to questions about them.

use burn::tensor::{Device, Int, Tensor};
use peft_core::ops::IGNORE_INDEX;
use peft_core::{PeftError, Result};
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
use crate::tasks::loss;
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of a model that writes text about a picture.
#[derive(Debug, Clone)]
pub struct Captioning {
    samples: ImageSamples,
    captions: Vec<Caption>,
    pad: u32,
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
        let samples = ImageSamples::new(files, processor, self.augment.clone())?;
        Ok(Captioning { samples, captions, pad: tokenizer.fill_id() })
    }
}

impl Captioning {
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
        let token = model.image_token().and_then(|it| u32::try_from(it).ok()).ok_or_else(|| {
            PeftError::config("image_token_index", "is not in config.json: nobody knows where the picture stands")
        })?;
        let apart = model.has_encoder();
        let sample = |item: &usize| {
            let Caption { prompt, text } = &self.captions[*item];
            let mut input_ids = vec![token; model.image_tokens()];
            input_ids.extend(prompt);
            let mut labels = vec![IGNORE_INDEX; input_ids.len()];
            if !apart {
                input_ids.extend(text);
                labels.extend(text.iter().map(|it| i64::from(*it)));
            }
            Sample { input_ids, labels, ..Sample::default() }
        };
        let samples: Vec<Sample> = items.iter().map(sample).collect();
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
}

impl<M: ImageToText> Task<M> for Captioning {
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
        let items: Vec<usize> = (0..self.len()).collect();
        let batches: Vec<&[usize]> = items.chunks(batch_size.max(1)).collect();
        let mut sum = 0.0;
        for (at, batch) in batches.iter().enumerate() {
            let pictures = self.samples.batch(batch, device)?;
            self.samples.pictures.announce(batches.get(at + 1).copied().unwrap_or_default());
            sum += scalar(&self.of_batch(model, batch, pictures, device)?);
        }
        let count = self.count(&items);
        let perplexity = Value::from(metrics::perplexity(sum, count)?);
        let metrics = Map::from_iter([("perplexity".to_owned(), perplexity)]);
        Ok(Evaluation { loss: sum / count as f64, metrics })
    }
}
