//! Token classification: a tag for every word.

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result, brief};
use peft_models::{Pretrained, TokenClassifier};
use serde_json::{Map, Value};

use crate::data::batch::{Batch, Padding, collate};
use crate::data::dataset::quoted;
use crate::data::sample::{IGNORED, Sample};
use crate::data::tags::list;
use crate::data::text_data::TextData;
use crate::eval::entities::EntityScores;
use crate::tasks::in_batches::in_batches;
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
    /// [`Preprocessor::words`](crate::data::sample::Preprocessor::words) makes them; `names` are the tags.
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

    fn batch(&self, items: &[usize]) -> Result<Batch> {
        collate(&items.iter().map(|it| &self.samples[*it]).collect::<Vec<_>>(), &self.padding)
    }

    fn name(&self, tag: i64) -> &str {
        usize::try_from(tag).ok().and_then(|it| self.names.get(it)).map_or("O", String::as_str)
    }
}

impl TextData {
    /// The task of a token classifier, with the tags of [`tag_names`](TextData::tag_names) or those of an adapter. A word's
    /// tag goes to its first token.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing or a tag is none of `names`.
    pub fn token_classification(
        &self,
        base: &(impl Pretrained + ?Sized),
        names: &[String],
    ) -> Result<TokenClassification> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        let (data, words, tags) = self.words()?;
        let builder = self.preprocessor(folder, &tokenizer)?;
        let (mut samples, mut tagged, mut kept) = (Vec::new(), 0, 0);
        for row in &data.rows {
            let items = list(&data, row, &words)?;
            let text = items.iter().map(|it| match it.as_str() {
                Some(word) => Ok(word.to_owned()),
                None => {
                    Err(data.bad_row(row, format!("column `{words}` holds {}, expected words", brief(&it.to_string()))))
                }
            });
            let text = text.collect::<Result<Vec<_>>>()?;
            let number = |tag: &Value| {
                let name = tag.as_str().map_or_else(|| tag.to_string(), str::to_owned);
                let place = names.iter().position(|it| *it == name);
                place
                    .map(|it| it as i64)
                    .ok_or_else(|| data.bad_row(row, format!("tag `{}` is none of {}", brief(&name), quoted(names))))
            };
            let numbers = list(&data, row, &tags)?.iter().map(number).collect::<Result<Vec<_>>>()?;
            let mut sample = builder.words(&text, &numbers).map_err(|error| data.bad_row(row, error))?;
            sample.task_id = self.task_id(&data, row)?;
            tagged += numbers.len();
            kept += sample.labelled();
            samples.push(sample);
        }
        if kept < tagged {
            let (lost, length) = (tagged - kept, self.row_length(folder)?);
            tracing::warn!(
                "{lost} of {tagged} tagged words are not among the first {length} tokens of their row, or have none"
            );
        }
        self.say_unread(&data, &[&Some(words), &Some(tags)]);
        TokenClassification::new(samples, names.to_vec(), Padding::right(tokenizer.fill_id()))
            .map_err(|error| data.bad(error))
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

    fn places(&self, _model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        Ok(Some(self.batch(items)?.places(labelled)))
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.samples.len(), batch_size, |items, _| {
            let batch = self.batch(items)?;
            let logits = model.logits(&batch.input(device));
            let sum = scalar(&batch.loss_of_labels(logits.clone(), device));
            let predictions = batch.predictions(logits);
            let rows = batch.labels.chunks(batch.width).zip(predictions.chunks(batch.width));
            let words = rows.map(|(labels, predictions)| {
                let words = labels.iter().zip(predictions).filter(|(label, _)| **label != IGNORED);
                words.map(|(label, predicted)| (*label, *predicted)).unzip()
            });
            Ok((sum, words.collect::<Vec<(Vec<_>, Vec<_>)>>()))
        })?;
        let sum: f64 = parts.iter().map(|it| it.0).sum();
        let mut scores = EntityScores::default();
        for (labels, predictions) in parts.iter().flat_map(|it| &it.1) {
            let labelled: Vec<&str> = labels.iter().map(|it| self.name(*it)).collect();
            let predicted: Vec<&str> = predictions.iter().map(|it| self.name(*it)).collect();
            scores.add(&labelled, &predicted)?;
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
        Ok(Evaluation { loss: sum / self.samples.iter().map(Sample::labelled).sum::<usize>() as f64, metrics })
    }
}
