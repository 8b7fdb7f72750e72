//! A data file, and how its rows become samples of text.
//!
//! What task the rows are is said by a method: `causal_lm`, `sequence_classification`, and so on. Each of them is written
//! beside its task, in the files of [`tasks`](crate::tasks).

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use peft_core::{PeftError, Result};
use peft_models::common::config::RawConfig;
use serde_json::Value;

use crate::data::chat::ChatTemplate;
use crate::data::columns::{Columns, required};
use crate::data::dataset::{Dataset, Row, TextRows, quoted};
use crate::data::labels::LabelSet;
use crate::data::messages::TEMPLATE_VARIABLES;
use crate::data::sample::{Preprocessor, Truncation};
use crate::data::tokenizer::Tokenizer;

/// A data file, and how its rows become samples of a task on text.
///
/// The methods that make a task take the base model, or the path of its folder: its tokenizer splits the text, and its
/// configuration says how long rows may be.
///
/// ```no_run
/// # fn main() -> peft_core::Result<()> {
/// use std::path::Path;
///
/// use peft_tasks::data::text_data::TextData;
///
/// let base = Path::new("models/gpt2");
/// let task = TextData::file("poems.txt").max_length(256).packing(true).causal_lm(base)?;
/// println!("{} rows", task.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct TextData {
    /// JSONL, JSON, CSV, TSV or plain text; a folder or a pattern for several: see [`Dataset::read`].
    pub file: PathBuf,
    /// Which column is what; the usual names are recognised.
    pub columns: Columns,
    /// Longest row in tokens. Longer documents are cut into pieces; longer completions and sequences are truncated.
    pub max_length: Option<usize>,
    /// Positions that the model has a table for, [`ModelSpec::max_positions`](peft_core::ModelSpec::max_positions); what
    /// `config.json` says if not set.
    pub positions: Option<usize>,
    /// Positions of the model that a prompt of virtual tokens takes up before every row.
    pub reserved: usize,
    /// How many tasks a multitask prompt tells apart. Above 1 the column `task_id` says which one a row is of.
    pub tasks: usize,
    /// Several documents in a row.
    pub packing: bool,
    /// Whether the loss counts prompts too.
    pub train_on_prompt: bool,
    /// Question answering: tokens of a long context that the next window repeats; a third of `max_length` if not set.
    pub doc_stride: Option<usize>,
    /// The tokenizer; that of the base model's folder if not set.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// What words conversations; the template of the base model's folder if not set.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// What is done with rows that are longer than `max_length`.
    pub truncation: Truncation,
    /// What the role that answers is called in conversations, if neither `assistant` nor `gpt`.
    pub assistant_role: Option<String>,
    /// What words prompts from the columns of a row, in place of a prompt column: see
    /// [`RowTemplate`](crate::data::row_template::RowTemplate).
    pub prompt_template: Option<String>,
    /// The rows, once they have been read.
    pub rows: Rows,
}

/// Rows that have been read already, so that a pipe is read once. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Rows(Arc<OnceLock<(PathBuf, Arc<Dataset>)>>);

/// Longest row if neither the user nor the model says: rows of documents must end somewhere.
const MAX_LENGTH: usize = 512;
/// Column of the task of a row, called as the argument of the reference's models is, in the singular.
const TASK_COLUMN: &str = "task_id";

impl TextData {
    /// The rows of a file, with the usual settings.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { file: path.into(), ..Self::default() }
    }

    /// Says which column is what.
    pub fn columns(self, columns: Columns) -> Self {
        Self { columns, ..self }
    }

    /// Sets the longest row, in tokens.
    pub fn max_length(self, tokens: usize) -> Self {
        Self { max_length: Some(tokens), ..self }
    }

    /// Leaves this many positions of the model to virtual tokens.
    pub fn reserved(self, positions: usize) -> Self {
        Self { reserved: positions, ..self }
    }

    /// Reads which of so many tasks a row is of, if there is more than one.
    pub fn tasks(self, tasks: usize) -> Self {
        Self { tasks, ..self }
    }

    /// Puts several short documents into a row, or each into its own.
    pub fn packing(self, packing: bool) -> Self {
        Self { packing, ..self }
    }

    /// Counts prompts in the loss, or completions alone.
    pub fn train_on_prompt(self, train_on_prompt: bool) -> Self {
        Self { train_on_prompt, ..self }
    }

    /// Says what is done with rows that are too long.
    pub fn truncation(self, truncation: Truncation) -> Self {
        Self { truncation, ..self }
    }

    /// Sets how many tokens of a context the next window repeats.
    pub fn doc_stride(self, tokens: usize) -> Self {
        Self { doc_stride: Some(tokens), ..self }
    }

    /// Takes a tokenizer that is loaded already, instead of that in the base model's folder.
    pub fn tokenizer(self, tokenizer: impl Into<Arc<Tokenizer>>) -> Self {
        Self { tokenizer: Some(tokenizer.into()), ..self }
    }

    /// What the label column holds.
    ///
    /// # Errors
    /// If the file cannot be read, or no column holds labels.
    pub fn label_set(&self) -> Result<LabelSet> {
        let (data, columns) = self.read()?;
        LabelSet::learn(&data, required("label", &columns.label, &data)?, None)
    }

    /// The rows of the file, and which column is what.
    ///
    /// # Errors
    /// If the file cannot be read, or no column has a usual name and none is given.
    pub fn read(&self) -> Result<(Arc<Dataset>, Columns)> {
        let data = self.data()?;
        let (columns, names) = (self.columns.clone(), data.columns());
        let columns = match &self.prompt_template {
            Some(_) => columns.for_prompt_template(&names),
            None => columns.or_detected(&names),
        };
        let columns = columns.map_err(|error| data.bad(error))?;
        Ok((data, columns))
    }

    /// The rows of the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn data(&self) -> Result<Arc<Dataset>> {
        if let Some((_, data)) = self.rows.0.get().filter(|it| it.0 == self.file) {
            return Ok(data.clone());
        }
        let data = Arc::new(Dataset::read(&self.file, TextRows::Document)?);
        // Another file's rows, if a clone has taken them in, stay that clone's.
        let _ = self.rows.0.set((self.file.clone(), data.clone()));
        Ok(data)
    }

    /// Says which columns are not among those that a task has read.
    pub fn say_unread(&self, data: &Dataset, read: &[&Option<String>]) {
        let read: Vec<&str> = read.iter().filter_map(|it| it.as_deref()).collect();
        let known = |it: &str| read.contains(&it) || it == TASK_COLUMN || it == TEMPLATE_VARIABLES;
        let unread: Vec<String> = data.columns().into_iter().filter(|it| !known(it)).collect();
        if !unread.is_empty() && self.prompt_template.is_none() {
            tracing::warn!("columns that are not read: {}", quoted(&unread));
        }
    }

    /// What makes samples of text, with the settings of this file and the tokenizer.
    ///
    /// # Errors
    /// If the model has fewer positions than `max_length`.
    pub fn preprocessor<'a>(&self, folder: &Path, tokenizer: &'a Tokenizer) -> Result<Preprocessor<'a>> {
        let mut builder = Preprocessor::new(tokenizer);
        builder.max_length = Some(self.row_length(folder)?);
        builder.truncation = self.truncation;
        builder.train_on_prompt = self.train_on_prompt;
        Ok(builder)
    }

    /// The tokenizer that is set, or that of the model's folder.
    ///
    /// # Errors
    /// If the folder's cannot be read.
    pub fn tokenizer_of(&self, folder: &Path) -> Result<Arc<Tokenizer>> {
        match &self.tokenizer {
            Some(tokenizer) => Ok(tokenizer.clone()),
            None => Tokenizer::load(folder).map(Arc::new),
        }
    }

    /// What words conversations: the template that is set, or that of the model's folder.
    ///
    /// # Errors
    /// If the folder's cannot be read.
    pub fn template_of(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Arc<ChatTemplate>>> {
        match &self.chat_template {
            Some(template) => Ok(Some(template.clone())),
            None => Ok(ChatTemplate::load(folder, tokenizer.special())?.map(Arc::new)),
        }
    }

    /// The task that a row is of, if the prompt wants to know.
    ///
    /// # Errors
    /// If the row does not say, or names no task.
    pub fn task_id(&self, data: &Dataset, row: &Row) -> Result<Option<i64>> {
        if self.tasks <= 1 {
            return Ok(None);
        }
        match data.value(row, TASK_COLUMN)?.as_u64() {
            Some(id) if id < self.tasks as u64 => Ok(Some(id as i64)),
            _ => {
                let reason = format!("column `{TASK_COLUMN}` must hold the number of a task, 0 to {}", self.tasks - 1);
                Err(data.bad_row(row, reason))
            }
        }
    }

    /// How many tokens a row may have: as many as are wanted and the model has positions for.
    ///
    /// # Errors
    /// If more are wanted than the model has.
    pub fn row_length(&self, model: &Path) -> Result<usize> {
        let limit = match self.positions {
            Some(positions) => Some(positions as u64),
            None => positions_of(&RawConfig::read(model)?)?,
        };
        let limit = limit.map_or(usize::MAX, |it| (it as usize).saturating_sub(self.reserved));
        let wanted = self.max_length.unwrap_or(MAX_LENGTH.min(limit));
        if wanted > limit {
            let prompt = if self.reserved > 0 { " behind the prompt" } else { "" };
            let reason = format!("is {wanted}, but the model has {limit} positions{prompt}");
            return Err(PeftError::config("max_length", reason));
        }
        Ok(wanted)
    }
}

/// The positions that `config.json` names, or that the architecture has where it names none.
fn positions_of(raw: &RawConfig) -> Result<Option<u64>> {
    let model_type = raw.model_type()?;
    let named = ["n_positions", "max_position_embeddings"].iter().find_map(|it| raw.json.get(*it)?.as_u64());
    // What transformers' configurations start with, for tables whose end cannot be passed.
    let named = named.or(match model_type {
        "gpt_neo" | "opt" => Some(2048),
        "gpt2" | "bart" | "mbart" => Some(1024),
        "bert" | "roberta" | "xlm-roberta" | "deberta" | "deberta-v2" => Some(512),
        _ => None,
    });
    Ok(match model_type {
        // Their positions are distances, which have no end; `n_positions` says what T5 was trained on.
        "t5" | "mt5" => None,
        // Positions count from one behind the padding token.
        "roberta" | "xlm-roberta" => {
            let first = raw.json.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1) + 1;
            named.map(|it| it.saturating_sub(first))
        }
        _ => named,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_no_longer_than_the_model_has_positions() {
        let folder = tempfile::tempdir().unwrap();
        let length = |config: &str, data: TextData| {
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            data.row_length(folder.path()).map_err(|it| it.to_string())
        };
        let plain = || TextData::file("a.txt");
        assert_eq!(length(r#"{"model_type": "gpt2", "n_positions": 64}"#, plain()), Ok(64));
        assert_eq!(length(r#"{"model_type": "gpt2", "n_positions": 64}"#, plain().reserved(4)), Ok(60));
        // GPT-2 has 1024 where its configuration does not say, and a rotary model as many as anybody wants.
        let error = length(r#"{"model_type": "gpt2"}"#, plain().max_length(2000)).unwrap_err();
        assert!(error.contains("the model has 1024 positions"), "{error}");
        assert_eq!(length(r#"{"model_type": "llama"}"#, plain().max_length(2000)), Ok(2000));
        let error = length(r#"{"model_type": "roberta", "pad_token_id": 1}"#, plain().max_length(512)).unwrap_err();
        assert!(error.contains("the model has 510 positions"), "{error}");
        // What is known of the model goes before.
        let known = TextData { positions: Some(16), ..plain() };
        assert_eq!(length(r#"{"model_type": "gpt2", "n_positions": 64}"#, known), Ok(16));
    }
}
