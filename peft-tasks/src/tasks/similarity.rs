//! Sentence similarity: pairs of sentences whose embeddings have a cosine that says how alike they are.
//!
//! The losses are those of sentence-transformers: `MultipleNegativesRankingLoss` for pairs without a score (van den Oord
//! and others 2018, <https://arxiv.org/abs/1807.03748>), `CosineSimilarityLoss` for pairs with one.

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::{PeftError, Result, brief, ops};
use peft_models::{FeatureExtractor, Pretrained};
use serde_json::{Map, Value};

use crate::data::batch::{Padding, collate};
use crate::data::columns::required;
use crate::data::sample::Sample;
use crate::data::tally::Tally;
use crate::data::text_data::TextData;
use crate::eval::metrics;
use crate::tasks::features::{mean_pooling, normalise};
use crate::tasks::in_batches::in_batches;
use crate::tasks::row_labels::rows;
use crate::tasks::task::{Evaluation, Task, scalar};

/// What the cosine is multiplied with before the softmax, as in sentence-transformers.
pub const SCALE: f64 = 20.0;

/// The task of a model of sentence embeddings.
#[derive(Debug, Clone)]
pub struct Similarity {
    first: Vec<Sample>,
    second: Vec<Sample>,
    /// How alike the sentences of a pair are, usually 0 to 1; empty if pairs just belong together.
    scores: Vec<f32>,
    padding: Padding,
}

impl Similarity {
    /// The sentences of pairs, and how alike they are. Without scores a sentence is to find its partner among those of
    /// its batch, so a batch should not hold the same sentence twice.
    ///
    /// # Errors
    /// If there is no pair, a sentence is empty, or the lists are not equally long.
    pub fn new(first: Vec<Sample>, second: Vec<Sample>, scores: Vec<f32>, padding: Padding) -> Result<Self> {
        let (pairs, scored) = (first.len(), scores.len());
        if pairs == 0 || pairs != second.len() || (scored > 0 && scored != pairs) {
            let counts = format!("{pairs} first sentences, {} second ones, {scored} scores", second.len());
            return Err(PeftError::Invalid(format!(
                "pairs need two sentences each, and a score for all or none: {counts}"
            )));
        }
        if let Some(row) = (0..pairs).find(|it| first[*it].is_empty() || second[*it].is_empty()) {
            return Err(PeftError::Invalid(format!("a sentence of pair {} is empty", row + 1)));
        }
        if let Some(score) = scores.iter().find(|it| !it.is_finite()) {
            return Err(PeftError::Invalid(format!("a score is {score}, expected a number")));
        }
        Ok(Self { first, second, scores, padding })
    }

    /// One vector of length 1 for each sentence, `[items, d_model]`.
    fn vectors<M: FeatureExtractor>(
        &self,
        model: &M,
        texts: &[Sample],
        items: &[usize],
        device: &Device,
    ) -> Result<Tensor<2>> {
        let input = collate(&items.iter().map(|it| &texts[*it]).collect::<Vec<_>>(), &self.padding)?.input(device);
        Ok(embed(model, &input))
    }

    /// The loss of a batch of vectors, a sum over its pairs.
    fn loss_of(&self, first: Tensor<2>, second: Tensor<2>, items: &[usize], device: &Device) -> Tensor<1> {
        let mean = if self.scores.is_empty() {
            multiple_negatives_ranking(first, second, SCALE)
        } else {
            let scores: Vec<f32> = items.iter().map(|it| self.scores[*it]).collect();
            let count = scores.len();
            cosine_similarity(first, second, Tensor::from_data(TensorData::new(scores, [count]), device))
        };
        mean.mul_scalar(items.len() as f64)
    }
}

/// The mean of a sentence's hidden states at length 1, without the virtual tokens of a prompt.
///
/// # Shapes
/// - output: `[batch, d_model]`
pub fn embed<M: FeatureExtractor>(model: &M, input: &peft_models::ModelInput) -> Tensor<2> {
    let hidden = model.last_hidden_state(input);
    let [_, total, _] = hidden.dims();
    let [_, seq] = input.dims();
    normalise(mean_pooling(hidden.narrow(1, total - seq, seq), input.attention_mask.clone()))
}

/// Every first sentence chooses its partner among all second sentences of the batch: the cross-entropy of `scale` times the
/// cosines, with the partner as the label.
///
/// # Shapes
/// - first, second: `[batch, d_model]`, of length 1
pub fn multiple_negatives_ranking(first: Tensor<2>, second: Tensor<2>, scale: f64) -> Tensor<1> {
    let device = first.device();
    let [batch, _] = first.dims();
    let cosines = first.matmul(second.transpose());
    ops::cross_entropy(cosines.mul_scalar(scale), Tensor::<1, Int>::arange(0..batch as i64, &device))
}

/// The mean squared error of the cosines.
///
/// # Shapes
/// - first, second: `[batch, d_model]`, of length 1
/// - scores: `[batch]`
pub fn cosine_similarity(first: Tensor<2>, second: Tensor<2>, scores: Tensor<1>) -> Tensor<1> {
    let [batch, _] = first.dims();
    let error = (first * second).sum_dim(1).reshape([batch]) - scores;
    (error.clone() * error).mean()
}

impl TextData {
    /// The task of a model of sentence embeddings: pairs of sentences, and a score for each if a label column is named or
    /// found.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing, a sentence is empty or a score is no number.
    pub fn similarity(&self, base: &(impl Pretrained + ?Sized)) -> Result<Similarity> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        let (data, columns) = self.read()?;
        let first = required("text", &columns.text, &data)?;
        let second = required("text_pair", &columns.text_pair, &data)?;
        let builder = self.preprocessor(folder, &tokenizer)?;
        let (mut firsts, mut seconds, mut scores, mut tally) = (Vec::new(), Vec::new(), Vec::new(), Tally::default());
        for row in &data.rows {
            for (texts, column) in [(&mut firsts, first), (&mut seconds, second)] {
                let counted = builder.counted_sequence(&data.text(row, column)?, None);
                let (mut sample, cut) = counted.map_err(|error| data.bad_row(row, error))?;
                tally.count(sample.len() + cut, &sample);
                sample.task_id = self.task_id(&data, row)?;
                texts.push(sample);
            }
            if let Some(column) = &columns.label {
                let text = data.text(row, column)?;
                let score = text.trim().parse();
                scores.push(score.map_err(|_| {
                    data.bad_row(
                        row,
                        format!("column `{column}` holds `{}`, expected how alike the sentences are", brief(&text)),
                    )
                })?);
            }
        }
        tally.say(self.row_length(folder)?, &data)?;
        self.say_unread(&data, &[&columns.text, &columns.text_pair, &columns.label]);
        Similarity::new(firsts, seconds, scores, Padding::right(tokenizer.fill_id())).map_err(|error| data.bad(error))
    }
}

impl<M: FeatureExtractor> Task<M> for Similarity {
    fn lengths(&self) -> Vec<usize> {
        self.first.iter().zip(&self.second).map(|(a, b)| a.len().max(b.len())).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.first[*it].len() + self.second[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let first = self.vectors(model, &self.first, items, device)?;
        let second = self.vectors(model, &self.second, items, device)?;
        Ok(self.loss_of(first, second, items, device))
    }

    /// Without scores: `accuracy`, how often the partner of a sentence is the nearest among all second sentences of the file,
    /// and `mrr`, the mean of one over its place. With scores: `pearson` and `spearman`, of scores and cosines.
    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.first.len(), batch_size, |items, _| {
            let first = self.vectors(model, &self.first, items, device)?;
            let second = self.vectors(model, &self.second, items, device)?;
            let sum = scalar(&self.loss_of(first.clone(), second.clone(), items, device));
            Ok((sum, rows(first), rows(second)))
        })?;
        let table = |vectors: Vec<f32>| {
            let width = vectors.len() / self.first.len().max(1);
            Tensor::<2>::from_data(TensorData::new(vectors, [self.first.len(), width]), device)
        };
        let (mut sum, mut firsts, mut seconds) = (0.0, Vec::new(), Vec::new());
        for (part, first, second) in parts {
            sum += part;
            firsts.extend(first.concat());
            seconds.extend(second.concat());
        }
        let cosines = table(firsts).matmul(table(seconds).transpose());
        let cosines = cosines.into_data().convert::<f32>();
        let cosines = cosines.as_slice::<f32>().unwrap_or(&[]);
        Ok(Evaluation { loss: sum / self.first.len() as f64, metrics: self.measure(cosines)? })
    }
}

impl Similarity {
    /// `cosines` of every first sentence with every second one, row by row.
    fn measure(&self, cosines: &[f32]) -> Result<Map<String, Value>> {
        let count = self.first.len();
        let mut metrics = Map::new();
        if self.scores.is_empty() {
            let (mut correct, mut reciprocal) = (0, 0.0);
            for (own, row) in cosines.chunks(count).enumerate() {
                // Sentences that are as near as the partner stand before it: a constant model finds nothing.
                let place = row.iter().enumerate().filter(|(at, it)| *at == own || **it >= row[own]).count();
                correct += usize::from(place == 1);
                reciprocal += 1.0 / place as f64;
            }
            metrics.insert("accuracy".into(), (correct as f64 / count as f64).into());
            metrics.insert("mrr".into(), (reciprocal / count as f64).into());
        } else {
            let labels: Vec<f64> = self.scores.iter().map(|it| f64::from(*it)).collect();
            let predicted: Vec<f64> = (0..count).map(|it| f64::from(cosines[it * count + it])).collect();
            metrics.insert("pearson".into(), metrics::pearson(&labels, &predicted)?.into());
            metrics.insert("spearman".into(), metrics::spearman(&labels, &predicted)?.into());
        }
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected losses: sentence-transformers 6.2's formulas in torch, `cross_entropy(20 * cos, arange)` and
    // `mse_loss(cos, scores)`, on the same vectors.

    fn vectors() -> (Tensor<2>, Tensor<2>) {
        let device = Device::default();
        let first = [[0.5, -1.0, 2.0, 0.25], [1.5, 0.5, -0.75, 1.0], [-0.25, 0.75, 1.25, -2.0]];
        let second = [[0.75, -0.5, 1.0, 0.5], [1.0, 1.5, 0.25, 0.5], [-0.5, 0.25, 1.5, 1.0]];
        (normalise(Tensor::from_data(first, &device)), normalise(Tensor::from_data(second, &device)))
    }

    #[test]
    fn losses_are_those_of_sentence_transformers() {
        let (first, second) = vectors();
        let ranking = scalar(&multiple_negatives_ranking(first.clone(), second.clone(), SCALE));
        assert!((ranking - 0.245_254_06).abs() < 1e-5, "{ranking}");
        let scores = Tensor::from_data([0.9, 0.4, 0.1], &first.device());
        let cosine = scalar(&cosine_similarity(first, second, scores));
        assert!((cosine - 0.026_164_643).abs() < 1e-6, "{cosine}");
    }

    fn pairs(count: usize, scores: Vec<f32>) -> Result<Similarity> {
        let texts = vec![Sample { input_ids: vec![1], ..Sample::default() }; count];
        Similarity::new(texts.clone(), texts, scores, Padding::right(0))
    }

    #[test]
    fn measures_are_of_the_partner_s_place_or_of_the_scores() {
        let found = pairs(3, vec![]).unwrap().measure(&[0.9, 0.1, 0.2, 0.3, 0.2, 0.1, 0.5, 0.5, 0.5]).unwrap();
        // Places 1, 2 and, since equals stand before it, 3.
        assert_eq!(found["accuracy"], 1.0 / 3.0);
        assert!((found["mrr"].as_f64().unwrap() - (1.0 + 0.5 + 1.0 / 3.0) / 3.0).abs() < 1e-12);
        let found = pairs(2, vec![0.0, 1.0]).unwrap().measure(&[0.2, 0.9, 0.9, 0.4]).unwrap();
        assert!((found["pearson"].as_f64().unwrap() - 1.0).abs() < 1e-6);
        assert!((found["spearman"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn pairs_that_do_not_fit_are_refused() {
        assert!(pairs(0, vec![]).is_err());
        assert!(pairs(2, vec![0.5]).is_err());
        assert!(pairs(1, vec![f32::NAN]).unwrap_err().to_string().contains("score"));
    }
}
