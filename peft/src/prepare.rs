//! From a data file and a tokenizer to a task.

use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};
use peft_models::config::RawConfig;
use peft_tasks::chat::{ChatTemplate, messages};
use peft_tasks::classification::Classification;
use peft_tasks::collate::{Padding, Sample, SampleBuilder, Side};
use peft_tasks::columns::Columns;
use peft_tasks::data::{Dataset, Row, TextRows};
use peft_tasks::labels::LabelSet;
use peft_tasks::language_modelling::LanguageModelling;
use peft_tasks::tokenizer::Tokenizer;

/// Where the rows come from and how they become samples.
#[derive(Debug, Clone, Default)]
pub struct DataOptions {
    /// JSONL, JSON, CSV, TSV or plain text.
    pub file: PathBuf,
    /// Which column is what; the usual names are recognised.
    pub columns: Columns,
    /// Longest row in tokens. Longer texts are cut into pieces, longer answers and sentences are cut off.
    pub max_length: Option<usize>,
    /// Positions of the model that a prompt takes up before every row.
    pub reserved: usize,
    /// Several texts in a row.
    pub packing: bool,
    /// Whether prompts are learned too.
    pub train_on_prompt: bool,
}

/// Longest row if neither the user nor the model says: rows of texts must end somewhere.
const MAX_LENGTH: usize = 512;

impl DataOptions {
    fn read(&self) -> Result<(Dataset, Columns)> {
        let data = Dataset::read(&self.file, TextRows::Document)?;
        let columns = self.columns.clone().or_detected(&data.columns())?;
        Ok((data, columns))
    }

    fn max_length(&self, model: &Path) -> Result<usize> {
        let raw = RawConfig::read(model)?;
        let limit = ["n_positions", "max_position_embeddings"].iter().find_map(|it| raw.json.get(*it)?.as_u64());
        let limit = limit.map_or(usize::MAX, |it| (it as usize).saturating_sub(self.reserved));
        let wanted = self.max_length.unwrap_or(MAX_LENGTH.min(limit));
        if wanted > limit {
            let prompt = if self.reserved > 0 { " behind the prompt" } else { "" };
            let reason = format!("is {wanted}, but the model has {limit} positions{prompt}");
            return Err(PeftError::config("max_length", reason));
        }
        Ok(wanted)
    }

    /// Samples of a language model: texts, prompts with completions, or conversations.
    pub fn language_samples(&self, model: &Path, tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
        let (data, columns) = self.read()?;
        let max_length = self.max_length(model)?;
        let mut builder = SampleBuilder::new(tokenizer);
        builder.train_on_prompt = self.train_on_prompt;
        let mut samples = Vec::new();
        let template =
            match &columns.messages {
                Some(_) => Some(ChatTemplate::load(model, tokenizer.special())?.ok_or_else(|| {
                    PeftError::bad_file(model, "it has no chat template, which rows of messages need")
                })?),
                None => None,
            };
        for row in &data.rows {
            samples.extend(self.language_row(&data, row, &columns, template.as_ref(), &mut builder, max_length)?);
        }
        Ok(samples)
    }

    fn language_row(
        &self,
        data: &Dataset,
        row: &Row,
        columns: &Columns,
        template: Option<&ChatTemplate>,
        builder: &mut SampleBuilder<'_>,
        max_length: usize,
    ) -> Result<Vec<Sample>> {
        if let (Some(column), Some(template)) = (&columns.messages, template) {
            builder.max_length = Some(max_length);
            return Ok(vec![builder.chat(template, &messages(data, row, column)?)?]);
        }
        if let Some(column) = &columns.completion {
            builder.max_length = Some(max_length);
            let (prompt, completion) = (columns.prompt_of(data, row)?, data.text(row, column)?);
            return Ok(vec![builder.completion(&prompt, &completion)?]);
        }
        builder.max_length = None;
        let column = peft_tasks::columns::required("text", &columns.text)?;
        Ok(builder.text(&data.text(row, column)?)?.chunks(max_length))
    }

    /// The task of a causal language model.
    pub fn language_modelling(&self, model: &Path, tokenizer: &Tokenizer) -> Result<LanguageModelling> {
        let samples = self.language_samples(model, tokenizer)?;
        let pad = tokenizer.pad_id().unwrap_or_else(|| tokenizer.fill_id());
        if self.packing {
            LanguageModelling::packed(samples, self.max_length(model)?, pad)
        } else {
            LanguageModelling::padded(samples, pad)
        }
    }

    /// What the label column holds.
    pub fn label_set(&self) -> Result<LabelSet> {
        let (data, columns) = self.read()?;
        LabelSet::learn(&data, peft_tasks::columns::required("label", &columns.label)?, None)
    }

    /// The task of a sequence classifier. `side` is where shorter rows are filled up.
    pub fn classification(&self, model: &Path, tokenizer: &Tokenizer, set: &LabelSet) -> Result<Classification> {
        let (data, columns) = self.read()?;
        let (text, label) = (
            peft_tasks::columns::required("text", &columns.text)?,
            peft_tasks::columns::required("label", &columns.label)?,
        );
        let mut builder = SampleBuilder::new(tokenizer);
        builder.max_length = Some(self.max_length(model)?);
        builder.truncate = Side::Right;
        let (mut samples, mut labels) = (Vec::new(), Vec::new());
        for row in &data.rows {
            let pair = columns.text_pair.as_ref().map(|it| data.text(row, it)).transpose()?;
            let sample = builder.sequence(&data.text(row, text)?, pair.as_deref())?;
            if sample.is_empty() {
                return Err(data.bad_row(row, "the text is empty"));
            }
            samples.push(sample);
            labels.push(set.label(&data, row, label)?);
        }
        let pad = tokenizer.pad_id().unwrap_or_else(|| tokenizer.fill_id());
        Classification::new(samples, labels, set.clone(), Padding::right(pad))
    }
}
