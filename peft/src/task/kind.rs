//! What a kind of task is: the class of model that it loads, and what it makes of a data file.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::files::checkpoint::Placement;
use peft_core::{Adaptable, Labels, ModelSpec, PeftError, Result};
use peft_models::auto::{ArchitectureRegistry, ClassifierOptions};
use peft_models::common::config::{LabelConfig, RawConfig};
use peft_tasks::data::augmentation::Augmentations;
use peft_tasks::data::labels::LabelSet;
use peft_tasks::data::reading::files_of;
use peft_tasks::data::text_data::TextData;
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::tasks::task::Task;
use peft_tasks::tasks::text_to_image::DreamBoothOptions;
use peft_tasks::train::identity::file_mark;

use crate::task::inputs::ForwardInputs;

/// A kind of task, such as `causal-lm`: which class of model it loads, and the [`Task`] that it makes of a data file.
///
/// Every command that trains, evaluates, merges, inspects or combines goes through this trait, so a kind that a program
/// registers ([`TaskRegistry::with`](crate::run::TaskRegistry::with)) works in all of them. `peft generate` does not: it is
/// for causal language models only.
pub trait TaskKind: Send + Sync + 'static {
    /// The class of model: `AutoCausalLm`.
    type Model: Module + ModuleDisplay + Adaptable + Sync + 'static;
    /// What is learned, and measured.
    type Task: Task<Self::Model>;

    /// Its name on the command line and in run files: `causal-lm`.
    fn name(&self) -> &'static str;

    /// Other names that mean the same.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// `task_type` of `adapter_config.json`, where PEFT has one. A run writes it over what its configuration says.
    ///
    /// Commands that take the task from an adapter ([`TaskRegistry::of_type`](crate::run::TaskRegistry::of_type)) take the
    /// first kind with its type, and built-in ones come first. So it should be unique, or `None`.
    fn task_type(&self) -> Option<&'static str>;

    /// Types of adapters that are of this kind if their base is, although another kind has the type as its own.
    fn other_task_types(&self) -> &'static [&'static str] {
        &[]
    }

    /// How the classes of transformers end that are models of this kind: `ForCausalLM`. By this a command that is told no
    /// task finds the one that a base is for: of several, the kind with the longest ending.
    fn class_endings(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether the data is text, at least in part: then commands read the tokenizer of the base, and that of an adapter.
    fn reads_text(&self) -> bool {
        true
    }

    /// Loads the base model in a folder. `head` says what the head is to be, for kinds that have one of their own.
    ///
    /// A training run makes it from the labels of the data ([`head_for`](TaskKind::head_for)); without labels only its seed is
    /// set, to that of the run. Other commands do not know the labels yet: at most `num_labels` is set, to the outputs of a
    /// head that an adapter brings.
    ///
    /// # Errors
    /// If the folder cannot be read, or no architecture of the registry has such a model.
    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<Self::Model>;

    /// The model of a `config.json`, without its weights: enough to plan and to count.
    ///
    /// # Errors
    /// If no architecture of the registry has such a model.
    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<Self::Model>;

    /// Whether there is data at all, said before anything is loaded.
    ///
    /// # Errors
    /// If there is no such file, or the folder holds none.
    fn check_data(&self, data: &Path) -> Result<()> {
        let there = |file: &PathBuf| fs::metadata(file).map(|_| ()).map_err(PeftError::io("read", file));
        files_of(data)?.iter().try_for_each(there)
    }

    /// What a checkpoint remembers of the data, to see whether a resumed run has the same: contents, not where they lie.
    ///
    /// # Errors
    /// If a file cannot be read.
    fn mark_data(&self, data: &TextData) -> Result<String> {
        Ok(files_of(&data.file)?.iter().map(file_mark).collect::<Result<Vec<_>>>()?.join("; "))
    }

    /// The labels that a data file holds, for kinds with labels: `Some` for every kind whose [`head`](TaskKind::head) is.
    /// `base` is the base model's folder, which may say how they are read.
    ///
    /// An evaluation asks for them where neither the adapter nor the base names its labels, and fails without.
    ///
    /// # Errors
    /// If the column of labels is missing or holds something else.
    fn learn_labels(&self, data: &TextData, base: &Path) -> Result<Option<LabelSet>> {
        let _ = (data, base);
        Ok(None)
    }

    /// What the outputs of a loaded model mean, for kinds with labels. If this is `Some`, so must be
    /// [`learn_labels`](TaskKind::learn_labels).
    fn head<'a>(&self, model: &'a Self::Model) -> Option<&'a LabelConfig> {
        let _ = model;
        None
    }

    /// The head that fits these labels. There is a tokenizer if the kind [reads text](TaskKind::reads_text).
    fn head_for(&self, labels: &LabelSet, tokenizer: Option<&Tokenizer>) -> ClassifierOptions {
        let _ = tokenizer;
        ClassifierOptions {
            num_labels: Some(labels.outputs()),
            ..ClassifierOptions::for_labels(&self.labels_to_save(labels))
        }
    }

    /// How labels are written beside an adapter.
    fn labels_to_save(&self, labels: &LabelSet) -> Labels {
        labels.to_labels()
    }

    /// The task that a data file is.
    ///
    /// # Errors
    /// If the file cannot be read or does not hold what the task needs.
    fn task(&self, source: &TaskSource<'_>) -> Result<Self::Task>;

    /// Writes what else belongs into the folder of a trained adapter, after the adapter itself.
    ///
    /// # Errors
    /// If the disk says no.
    fn finish(&self, folder: &Path, spec: &ModelSpec) -> Result<()> {
        let _ = (folder, spec);
        Ok(())
    }

    /// One forward pass over recorded inputs: `peft forward`.
    ///
    /// # Errors
    /// If the inputs do not go with the task. By default: there is no such pass.
    fn forward(&self, model: &Self::Model, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let _ = (model, inputs);
        Err(PeftError::unsupported(format!("a recorded forward pass of {}", self.name()), "the task does not say how"))
    }

    /// Names of the inputs that [`forward`](TaskKind::forward) takes, as the reference's models call them.
    fn inputs(&self) -> Vec<&'static str> {
        ForwardInputs::OF_TEXT.to_vec()
    }

    /// The input without which there is no loss: a text for the message that asks for it.
    fn labels_input(&self) -> &'static str {
        "`labels`"
    }
}

/// What a task is made of.
#[derive(Clone, Copy)]
pub struct TaskSource<'a> {
    /// The file, and how its rows become samples.
    pub data: &'a TextData,
    /// Folder of the base model.
    pub base: &'a Path,
    /// The tokenizer, for kinds that [read text](TaskKind::reads_text).
    pub tokenizer: Option<&'a Tokenizer>,
    /// What the labels are, for kinds with labels.
    pub labels: Option<&'a LabelSet>,
    /// Settings that only some kinds read.
    pub options: &'a TaskOptions,
    /// Where what a task computes ahead of training is computed.
    pub device: &'a Device,
}

impl<'a> TaskSource<'a> {
    /// The tokenizer, which a kind that reads text has.
    ///
    /// # Errors
    /// If there is none.
    pub fn tokenizer(&self) -> Result<&'a Tokenizer> {
        self.tokenizer.ok_or_else(|| PeftError::Invalid("the task needs a tokenizer, and reads no text".into()))
    }

    /// The labels, which a kind with labels must have.
    ///
    /// # Errors
    /// If there are none.
    pub fn labels(&self) -> Result<&'a LabelSet> {
        self.labels.ok_or_else(|| PeftError::Invalid("the task needs labels, and nobody said what they are".into()))
    }
}

/// Settings that only some kinds of tasks read.
#[derive(Debug, Clone)]
pub struct TaskOptions {
    /// Whether the model has an adapter.
    pub adapted: bool,
    /// Share of the tokens that a masked language model predicts.
    pub masked_share: f64,
    /// What the choice of masked tokens depends on.
    pub seed: u64,
    /// Most tokens of a target that an evaluation generates. If it is not set, nothing is generated unless
    /// [`writes`](TaskOptions::writes) is.
    pub max_new_tokens: Option<usize>,
    /// Whether an evaluation generates, as far as the model's own settings let it; for kinds whose targets have no usual length.
    pub writes: bool,
    /// Name or code of the language that is spoken.
    pub language: Option<String>,
    /// Whether what is said is written in English.
    pub translate: bool,
    /// How pictures are changed at random while a model learns.
    pub augment: Augmentations,
    /// What pictures of a subject show, and how they are learned.
    pub dreambooth: DreamBoothOptions,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            adapted: true,
            masked_share: 0.15,
            seed: 42,
            max_new_tokens: None,
            writes: false,
            language: None,
            translate: false,
            augment: Augmentations::default(),
            dreambooth: DreamBoothOptions::default(),
        }
    }
}

/// What a recorded forward pass gives.
pub struct ForwardOutput {
    /// `logits` or `last_hidden_state`.
    pub name: &'static str,
    /// Its numbers.
    pub data: TensorData,
    /// The loss, if there were labels; `[1]`.
    pub loss: Option<Tensor<1>>,
}

impl ForwardOutput {
    /// Logits, with their loss.
    pub fn logits<const D: usize>(logits: Tensor<D>, loss: Option<Tensor<1>>) -> Self {
        Self { name: "logits", data: logits.into_data(), loss }
    }
}
