//! A training run as data: what a run file holds, and what the flags of `peft train` fill.

use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::{BaseDtype, write_atomically};
use peft_core::quant::QuantConfig;
use peft_core::{PeftError, Result, WEIGHTS_FILE, nearest};
use peft_tasks::data::augmentation::Augmentations;
use peft_tasks::data::columns::Columns;
use peft_tasks::data::reading;
use peft_tasks::data::sample::Truncation;
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::text_to_image::DreamBoothOptions;
use peft_tasks::train::identity::file_mark;
use peft_tasks::train::limits::{self, Limit, Range};
use peft_tasks::train::{TrainConfig, folder};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::load::configure::{tasks, virtual_positions};
use crate::task::TaskOptions;

/// Name of the run file that lies beside a trained adapter. PEFT passes over it.
pub const RUN_FILE: &str = folder::RUN_FILE;

/// A training run, whole: the same file gives the same adapter.
///
/// ```
/// let run = peft::run::RunConfig::parse(
///     "
///     model: models/gpt2
///     data: { train: poems.txt }
///     method: { peft_type: LORA, r: 16, target_modules: [c_attn] }
///     training: { learning_rate: 1e-3, max_steps: 200 }
///     output: poems
///     ",
/// )?;
/// assert_eq!((run.task.as_str(), run.training.batch_size), ("causal-lm", 8));
/// # Ok::<(), peft::core::PeftError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Folder of the base model, or its id on the hub.
    pub model: String,
    /// Name of the task: `causal-lm`, `seq-cls`, ….
    pub task: String,
    /// The data files, and how their rows become samples.
    pub data: DataConfig,
    /// The method and its settings, as `adapter_config.json` has them. Without `peft_type` it is LoRA.
    pub method: Map<String, Value>,
    /// An adapter to go on from, a folder or an id on the hub: its method and its values, in place of `method`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// Settings of the training loop.
    #[serde(deserialize_with = "training")]
    pub training: TrainConfig,
    /// Folder for the adapter, the log, the loss curve and checkpoints.
    pub output: PathBuf,
    /// `flex`, `wgpu`, `cuda`, `tch`; by default the best one of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What the frozen matrices of the base are kept in: `float32`, `auto`, `bfloat16`, `float16`.
    #[serde(with = "dtype")]
    pub dtype: BaseDtype,
    /// In how few bits the linear layers of the base are kept, if its files do not have them so already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantConfig>,
    /// From which size on numbers that enter a layer in int8 are not rounded to int8, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_int8_threshold: Option<f32>,
    /// Whether each of several processes keeps a part of the base, in place of all of it.
    #[serde(skip_serializing_if = "is_default")]
    pub shard_base: bool,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            task: "causal-lm".to_owned(),
            data: DataConfig::default(),
            method: Map::from_iter([("peft_type".to_owned(), "LORA".into())]),
            init_from: None,
            training: TrainConfig::default(),
            output: PathBuf::new(),
            device: None,
            dtype: BaseDtype::default(),
            quantization: None,
            llm_int8_threshold: None,
            shard_base: false,
        }
    }
}

/// The data of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// JSONL, JSON, CSV, TSV or plain text to train on.
    pub train: PathBuf,
    /// The same to evaluate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<PathBuf>,
    /// Which column is what; the usual names are recognised.
    #[serde(skip_serializing_if = "has_no_column")]
    pub columns: Columns,
    /// Longest sample in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Put several short texts into a row; none sees another.
    pub packing: bool,
    /// Learn prompts too, not only completions.
    pub train_on_prompt: bool,
    /// Tokens that two windows of a long context share, for question answering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_stride: Option<usize>,
    /// Share of the tokens that a masked language model predicts.
    pub masked_share: f64,
    /// Rows that an adapter looks at which starts from data; by default 256 for CorDA, and for EVA as many as it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_rows: Option<usize>,
    /// Tokens that the tokenizer and the embedding matrix of the base lack, and that are trained with the adapter.
    #[serde(skip_serializing_if = "is_default")]
    pub new_tokens: Vec<String>,
    /// What is done with samples that are longer than `max_length`: `left`, `right` or `refuse`.
    #[serde(skip_serializing_if = "is_default")]
    pub truncation: Truncation,
    /// What the role that answers is called in conversations, if neither `assistant` nor `gpt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_role: Option<String>,
    /// A prompt as a Jinja template of the columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// How pictures are changed at random while a model learns: `crop`, `flip`, `color`.
    #[serde(skip_serializing_if = "is_default")]
    pub augment: Augmentations,
    /// What pictures of a subject show, and how they are learned, for `text-to-image`.
    #[serde(skip_serializing_if = "is_default")]
    pub dreambooth: DreamBoothOptions,
    /// Name or code of the language that is spoken in recordings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Whether transcripts of recordings are in English, whatever is spoken.
    #[serde(skip_serializing_if = "is_default")]
    pub translate: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: PathBuf::new(),
            eval: None,
            columns: Columns::default(),
            max_length: None,
            packing: false,
            train_on_prompt: false,
            doc_stride: None,
            masked_share: TaskOptions::default().masked_share,
            calibration_rows: None,
            new_tokens: Vec::new(),
            truncation: Truncation::default(),
            assistant_role: None,
            prompt_template: None,
            augment: Augmentations::default(),
            dreambooth: DreamBoothOptions::default(),
            language: None,
            translate: false,
        }
    }
}

fn has_no_column(columns: &Columns) -> bool {
    *columns == Columns::default()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl RunConfig {
    /// Reads a run from YAML, of which JSON is a part.
    ///
    /// # Errors
    /// If it is no YAML, or a field is unknown or wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let run: Self = serde_saphyr::from_str(text).map_err(|error| {
            // The reader shows the lines around the fault, too.
            let error = error.to_string();
            PeftError::config("run file", error.lines().next().unwrap_or("cannot be read").to_owned())
        })?;
        Ok(run.with_peft_type())
    }

    /// Reads a run file.
    ///
    /// # Errors
    /// As [`RunConfig::parse`], or if there is no such file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = reading::text(path)?;
        Self::parse(&text).map_err(|error| PeftError::bad_file(path, error))
    }

    fn with_peft_type(mut self) -> Self {
        if !self.method.contains_key("peft_type") {
            self.method.insert("peft_type".into(), "LORA".into());
        }
        self
    }

    /// The run as YAML.
    ///
    /// # Errors
    /// If a number cannot be written.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).map_err(|error| PeftError::Invalid(format!("the run cannot be written: {error}")))
    }

    /// Writes the run into the folder of its adapter.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        write_atomically(folder.as_ref().join(RUN_FILE), self.to_yaml()?.as_bytes())
    }

    /// Says what is missing or makes no sense before anything is loaded.
    ///
    /// # Errors
    /// If the model, the training data or the output is not given, a number is out of its range, or settings do not go
    /// together.
    pub fn check(&self) -> Result<()> {
        let missing = [
            ("model", "--model", self.model.is_empty()),
            ("data.train", "--data", self.data.train.as_os_str().is_empty()),
            ("output", "--output", self.output.as_os_str().is_empty()),
        ];
        if let Some((field, flag, _)) = missing.into_iter().find(|it| it.2) {
            return Err(PeftError::config(field, format!("is not given: write it into the run file, or give {flag}")));
        }
        if self.init_from.is_some() && self.method != Self::default().method {
            let reason = "says the method, and so does the run: take one of them";
            return Err(PeftError::config("init_from", reason));
        }
        if self.init_from.is_some() && !self.data.new_tokens.is_empty() {
            return Err(PeftError::config("new_tokens", "go into a fresh adapter, not into one that is gone on from"));
        }
        limits::check(&self.data, &LIMITS)?;
        self.training.check()
    }

    /// What a checkpoint of the run must agree with: the task, and the data by its contents, not by where it lies.
    ///
    /// `mark` says what there is to remember of a data file.
    pub(crate) fn identity(
        &self,
        init_from: Option<&Path>,
        mark: impl Fn(&Path) -> Result<String>,
    ) -> Result<Map<String, Value>> {
        let mut data = match serde_json::to_value(&self.data) {
            Ok(Value::Object(data)) => data,
            _ => Map::new(),
        };
        data.insert("train".into(), mark(&self.data.train)?.into());
        if let Some(eval) = &self.data.eval {
            data.insert("eval".into(), mark(eval)?.into());
        }
        let mut identity = Map::from_iter([("task".into(), self.task.clone().into()), ("data".into(), data.into())]);
        if let Some(folder) = init_from {
            identity.insert("init_from".into(), file_mark(folder.join(WEIGHTS_FILE))?.into());
        }
        Ok(identity)
    }

    /// How the rows of a file become samples, positions for the method's prompt put aside.
    pub fn text_data(&self, file: &Path) -> TextData {
        TextData {
            file: file.to_path_buf(),
            columns: self.data.columns.clone(),
            max_length: self.data.max_length,
            reserved: virtual_positions(&self.method),
            tasks: tasks(&self.method),
            packing: self.data.packing,
            train_on_prompt: self.data.train_on_prompt,
            doc_stride: self.data.doc_stride,
            truncation: self.data.truncation,
            assistant_role: self.data.assistant_role.clone(),
            prompt_template: self.data.prompt_template.clone(),
            ..TextData::default()
        }
    }

    /// Settings that only some kinds of tasks read.
    pub fn task_options(&self) -> TaskOptions {
        TaskOptions {
            masked_share: self.data.masked_share,
            seed: self.training.seed,
            augment: self.data.augment.clone(),
            dreambooth: self.data.dreambooth.clone(),
            language: self.data.language.clone(),
            translate: self.data.translate,
            ..TaskOptions::default()
        }
    }
}

/// What the numbers of [`DataConfig`] may be.
const LIMITS: [Limit<DataConfig>; 4] = [
    Limit::whole("max_length", |it| it.max_length, 1, limits::MOST_TOKENS),
    Limit::whole("doc_stride", |it| it.doc_stride, 0, limits::MOST_TOKENS),
    Limit::number("masked_share", |it| Some(it.masked_share), Range::Within(0.0, 1.0)),
    Limit::whole("calibration_rows", |it| it.calibration_rows, 1, limits::MOST_TOKENS),
];

/// Settings of the training loop, of which none may be misspelt: serde passes over what it does not know in a struct that
/// has another one flattened into it.
fn training<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<TrainConfig, D::Error> {
    let given = Map::deserialize(from)?;
    let known = serde_json::to_value(TrainConfig::default()).map_err(D::Error::custom)?;
    let known: Vec<&str> = known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
    if let Some(unknown) = given.keys().find(|it| !known.contains(&it.as_str())) {
        let near = nearest(unknown, known.iter().copied());
        let hint = near.first().map_or(String::new(), |it| format!("; did you mean `{it}`?"));
        return Err(D::Error::custom(format!("`training` has no field `{unknown}`{hint}")));
    }
    serde_json::from_value(Value::Object(given)).map_err(D::Error::custom)
}

/// A dtype by its name.
mod dtype {
    use peft_core::files::checkpoint::BaseDtype;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(dtype: &BaseDtype, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(dtype)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BaseDtype, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a task that was meant, for an error.
pub(crate) fn unknown_task(given: &str, known: &[&str]) -> PeftError {
    let near = nearest(given, known.iter().copied());
    let hint = near.first().map_or(String::new(), |it| format!("; did you mean `{it}`?"));
    PeftError::config("task", format!("is `{given}`, expected {}{hint}", known.join(", ")))
}
