//! Learning to tag words.

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result};
use peft_models::TokenClassifier;
use serde_json::Map;

use crate::data::sample::{IGNORED, Padded, Padding, Sample, pad};
use crate::eval::entities::EntityScores;
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of a token classifier.
#[derive(Debug, Clone)]
pub struct TokenClassification {
    samples: Vec<Sample>,
    names: Vec<String>,
    padding: Padding,
}

impl TokenClassification {
    /// Samples whose labels are numbers of tags at the first token of each word, as
    /// [`SampleBuilder::words`](crate::data::sample::SampleBuilder::words) makes them; `names` are the tags.
    ///
    /// # Errors
    /// If no sample has a label, or a label has no name.
    pub fn new(samples: Vec<Sample>, names: Vec<String>, padding: Padding) -> Result<Self> {
        let samples: Vec<Sample> = samples.into_iter().filter(|it| it.labelled() > 0).collect();
        if samples.is_empty() {
            return Err(PeftError::Invalid("no row has a word with a tag".into()));
        }
        let unnamed =
            |label: &&i64| **label != IGNORED && usize::try_from(**label).map_or(true, |it| it >= names.len());
        if let Some(label) = samples.iter().flat_map(|it| &it.labels).find(unnamed) {
            return Err(PeftError::Invalid(format!("there is no tag {label}, only 0 to {}", names.len() as i64 - 1)));
        }
        Ok(Self { samples, names, padding })
    }

    fn batch(&self, items: &[usize]) -> Result<Padded> {
        pad(&items.iter().map(|it| &self.samples[*it]).collect::<Vec<_>>(), &self.padding)
    }

    fn name(&self, tag: i64) -> &str {
        usize::try_from(tag).ok().and_then(|it| self.names.get(it)).map_or("O", String::as_str)
    }
}

impl<M: TokenClassifier> Task<M> for TokenClassification {
    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(Sample::len).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.samples[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.iter().map(|it| self.samples[*it].labelled()).sum()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let batch = self.batch(items)?;
        Ok(batch.loss_of_labels(model.logits(&batch.input(device)), device))
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let items: Vec<usize> = (0..self.samples.len()).collect();
        let (mut sum, mut scores) = (0.0, EntityScores::default());
        for chunk in items.chunks(batch_size.max(1)) {
            let batch = self.batch(chunk)?;
            let logits = model.logits(&batch.input(device));
            sum += scalar(&batch.loss_of_labels(logits.clone(), device));
            let guesses = batch.guesses(logits);
            for (labels, guesses) in batch.labels.chunks(batch.width).zip(guesses.chunks(batch.width)) {
                let words = || labels.iter().zip(guesses).filter(|(label, _)| **label != IGNORED);
                let right: Vec<&str> = words().map(|(label, _)| self.name(*label)).collect();
                let guess: Vec<&str> = words().map(|(_, guess)| self.name(*guess)).collect();
                scores.add(&right, &guess)?;
            }
        }
        let found = scores.scores();
        let mut metrics = Map::new();
        for (name, value) in [
            ("f1", found.f1),
            ("precision", found.precision),
            ("recall", found.recall),
            ("accuracy", scores.accuracy()),
        ] {
            metrics.insert(name.into(), value.into());
        }
        Ok(Evaluation { loss: sum / Task::<M>::targets(self, 0, &items) as f64, metrics })
    }
}
