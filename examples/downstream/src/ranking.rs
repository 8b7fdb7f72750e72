//! `pair-ranking`: of two answers to a prompt, which one is better. A task of one's own, in one file.
//!
//! A sequence classifier with one output scores both answers; the loss is that of a reward model,
//! `−log σ(chosen − rejected)` (Bradley and Terry; Stiennon and others, arXiv 2009.01325), as in `RewardTrainer` of TRL.
//!
//! [`PairRanking`] is the task: a loss and a measure. [`PairRankingKind`] says which model it wants, and how a data file
//! becomes the task.

use std::path::Path;

use peft::core::burn::tensor::{Device, Tensor, activation};
use peft::core::checkpoint::Placement;
use peft::core::{PeftError, Result};
use peft::models::SequenceClassifier;
use peft::models::auto::{ArchitectureRegistry, AutoSequenceClassifier, ClassifierOptions};
use peft::models::config::{LabelConfig, RawConfig};
use peft::task::{ForwardInputs, ForwardOutput, TaskKind, TaskSource};
use peft::tasks::data::batch::{Padding, collate};
use peft::tasks::data::dataset::{Dataset, TextRows};
use peft::tasks::data::labels::{LabelKind, LabelSet};
use peft::tasks::data::sample::{Preprocessor, Sample};
use peft::tasks::data::text_data::TextData;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::tasks::task::{Evaluation, Task, scalar};
use serde_json::Value;

/// Columns of a row, as in the data sets that TRL reads. `--prompt-column` may name another prompt.
const PROMPT: &str = "prompt";
const CHOSEN: &str = "chosen";
const REJECTED: &str = "rejected";

/// Pairs of answers, the better one first.
#[derive(Debug, Clone)]
pub struct PairRanking {
    chosen: Vec<Sample>,
    rejected: Vec<Sample>,
    padding: Padding,
}

impl PairRanking {
    /// Reads the pairs of a file. A prompt and an answer are the first and the second sequence of a pair.
    fn read(source: &TaskSource<'_>) -> Result<Self> {
        let TaskSource { data, base, .. } = *source;
        let tokenizer = source.tokenizer()?;
        if data.tasks > 1 {
            let reason = "its rows do not say which task they are of: take a prompt of one task";
            return Err(PeftError::unsupported("pair-ranking behind a multitask prompt", reason));
        }
        let rows = Dataset::read(&data.file, TextRows::Lines)?;
        let mut builder = Preprocessor::new(tokenizer);
        builder.max_length = Some(row_length(data, base)?);
        let prompt = data.columns.prompt.as_deref().unwrap_or(PROMPT);
        let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
        for row in &rows.rows {
            for (samples, column) in [(&mut chosen, CHOSEN), (&mut rejected, REJECTED)] {
                let sample = builder.sequence(&rows.text(row, prompt)?, Some(&rows.text(row, column)?))?;
                if sample.is_empty() {
                    return Err(rows.bad_row(row, format!("`{prompt}` and `{column}` are empty: leave the row out")));
                }
                samples.push(sample);
            }
        }
        Ok(Self { chosen, rejected, padding: Padding::right(pad_of(tokenizer)) })
    }

    /// By how much the chosen answer is above the rejected one, `[items]`. One forward pass scores both.
    fn margins<M: SequenceClassifier>(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let side = |samples: &'_ [Sample]| items.iter().map(|it| samples[*it].clone()).collect::<Vec<_>>();
        let rows = [side(&self.chosen), side(&self.rejected)].concat();
        margins(model.logits(&collate(&rows, &self.padding)?.input(device)))
    }
}

/// Scores of the chosen answers, less those of the rejected ones that follow them.
///
/// # Shapes
/// - scores: `[2 · pairs, 1]`
/// - output: `[pairs]`
///
/// # Errors
/// If there is more than one score for an answer, or the number of answers is odd.
fn margins(scores: Tensor<2>) -> Result<Tensor<1>> {
    let [rows, outputs] = scores.dims();
    if outputs != 1 || !rows.is_multiple_of(2) {
        let reason = format!("pairs need two rows with one score each, not {rows} rows with {outputs}");
        return Err(PeftError::Invalid(reason));
    }
    let pairs = rows / 2;
    let scores = scores.reshape([rows]);
    Ok(scores.clone().narrow(0, 0, pairs) - scores.narrow(0, pairs, pairs))
}

/// `−log σ(margin)`, summed over pairs; `[1]`.
fn loss_sum(margins: Tensor<1>) -> Tensor<1> {
    activation::log_sigmoid(margins).sum().neg()
}

impl<M: SequenceClassifier> Task<M> for PairRanking {
    fn lengths(&self) -> Vec<usize> {
        self.chosen.iter().zip(&self.rejected).map(|(a, b)| a.len().max(b.len())).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.chosen[*it].len() + self.rejected[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        Ok(loss_sum(self.margins(model, items, device)?))
    }

    /// `accuracy`: how often the chosen answer is above the rejected one. `margin`: by how much, in the mean.
    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let items: Vec<usize> = (0..self.chosen.len()).collect();
        let (mut loss, mut found) = (0.0, Vec::new());
        for chunk in items.chunks(batch_size.max(1)) {
            let margins = self.margins(model, chunk, device)?;
            loss += scalar(&loss_sum(margins.clone()));
            found.extend(margins.into_data().iter::<f64>());
        }
        let count = items.len() as f64;
        // A model that scores all alike orders nothing.
        let ordered = found.iter().filter(|it| **it > 0.0).count();
        let metrics = [("accuracy", ordered as f64 / count), ("margin", found.iter().sum::<f64>() / count)];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value.into()));
        Ok(Evaluation { loss: loss / count, metrics: metrics.into_iter().collect() })
    }
}

/// The most tokens of a row: what the user says, else what the model has positions for.
fn row_length(data: &TextData, base: &Path) -> Result<usize> {
    let raw = RawConfig::read(base)?;
    let named = ["n_positions", "max_position_embeddings"].iter().find_map(|it| raw.json.get(*it)?.as_u64());
    let limit = named.map_or(usize::MAX, |it| (it as usize).saturating_sub(data.reserved));
    match data.max_length {
        Some(wanted) if wanted > limit => {
            Err(PeftError::config("max_length", format!("is {wanted}, but the model has {limit} positions")))
        }
        wanted => Ok(wanted.unwrap_or(limit.min(512))),
    }
}

/// What fills short rows up.
fn pad_of(tokenizer: &Tokenizer) -> u32 {
    tokenizer.pad_id().unwrap_or_else(|| tokenizer.fill_id())
}

/// Ranks pairs of answers, with a sequence classifier of one output.
pub struct PairRankingKind;

impl TaskKind for PairRankingKind {
    type Model = AutoSequenceClassifier;
    type Task = PairRanking;

    fn name(&self) -> &'static str {
        "pair-ranking"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["reward"]
    }

    /// That of a classifier, as TRL has it: its head is trained and saved, and Python loads the folder. Commands that go by
    /// `task_type` take the adapter for one of `seq-cls`, whose model is the same.
    fn task_type(&self) -> Option<&'static str> {
        Some("SEQ_CLS")
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AutoSequenceClassifier> {
        let mut head = ClassifierOptions { num_labels: Some(1), ..head.clone() };
        // A decoder must know what fills rows up. Training says it, other commands do not, nor do all checkpoints.
        if head.pad_token_id.is_none() && RawConfig::read(base)?.json.get("pad_token_id").is_none_or(Value::is_null) {
            head.pad_token_id = Tokenizer::load(base).ok().map(|it| pad_of(&it).into());
        }
        Ok(architectures.load_sequence_classifier(base, place, &head)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoSequenceClassifier> {
        let mut raw = raw.clone();
        raw.json.insert("num_labels".to_owned(), 1.into());
        architectures.sequence_classifier(&raw, device)
    }

    /// One number without a name: so that the adapter folder says it, and a merged `config.json`.
    fn learn_labels(&self, _data: &TextData, _base: &Path) -> Result<Option<LabelSet>> {
        Ok(Some(LabelSet::new(LabelKind::Regression, Vec::new())))
    }

    fn head<'a>(&self, model: &'a AutoSequenceClassifier) -> Option<&'a LabelConfig> {
        Some(model.labels())
    }

    fn head_for(&self, labels: &LabelSet, tokenizer: Option<&Tokenizer>) -> ClassifierOptions {
        ClassifierOptions {
            pad_token_id: tokenizer.map(|it| pad_of(it).into()),
            ..ClassifierOptions::for_labels(&self.labels_to_save(labels))
        }
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<PairRanking> {
        PairRanking::read(source)
    }

    /// The chosen answers, then as many rejected ones, are the rows of a batch.
    fn forward(&self, model: &AutoSequenceClassifier, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let logits = model.logits(&inputs.model_input()?);
        let margins = margins(logits.clone())?;
        let pairs = margins.dims()[0] as f64;
        Ok(ForwardOutput::logits(logits, Some(loss_sum(margins).div_scalar(pairs))))
    }
}
