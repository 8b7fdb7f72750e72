//! What a program knows: methods, architectures and kinds of tasks. All three are open.

use std::fmt;
use std::path::Path;

use burn::tensor::Device;
use peft_core::files::checkpoint::{Placement, Stored};
use peft_core::{MethodRegistry, PeftError, Result, read_config};
use peft_models::auto::{ArchitectureRegistry, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_tasks::tasks::task::Evaluation;
use peft_tasks::train::RunFolder;
use serde_json::Value;

use crate::load::adapters::AdapterSource;
use crate::load::any_model::{AnyModel, any_model};
use crate::run::config::{RunConfig, unknown_task};
use crate::run::evaluate::{EvalRequest, evaluate};
use crate::run::fit::{RunContext, RunObserver, RunReport, fit};
use crate::run::forward::{ForwardRequest, pass};
use crate::task::TaskKind;
use crate::task::causal_lm::CausalLmKind;
#[cfg(feature = "image")]
use crate::task::image_classification::ImageClassificationKind;
#[cfg(feature = "image")]
use crate::task::image_to_text::ImageToTextKind;
use crate::task::masked_lm::MaskedLmKind;
use crate::task::question_answering::QuestionAnsweringKind;
#[cfg(feature = "image")]
use crate::task::semantic_segmentation::SemanticSegmentationKind;
use crate::task::seq2seq_lm::Seq2SeqLmKind;
use crate::task::sequence_classification::SequenceClassificationKind;
use crate::task::similarity::SimilarityKind;
#[cfg(feature = "audio")]
use crate::task::speech_to_text::SpeechToTextKind;
#[cfg(feature = "image")]
use crate::task::text_to_image::TextToImageKind;
use crate::task::token_classification::TokenClassificationKind;
use crate::task::unet::UNetKind;

/// What a program knows. [`Registry::builtin`] has all of this build; a program adds its own:
///
/// ```
/// use peft::Registry;
///
/// let registry = Registry::builtin();
/// assert!(registry.tasks.names().contains(&"causal-lm"));
/// // let registry = registry.with_method::<RoadConfig>().with_architecture(albert::architecture()).with_task(Ranking);
/// ```
#[derive(Debug)]
pub struct Registry {
    /// Methods, by `peft_type`.
    pub methods: MethodRegistry,
    /// Architectures, by `model_type`.
    pub architectures: ArchitectureRegistry,
    /// Kinds of tasks, by name.
    pub tasks: TaskRegistry,
}

impl Registry {
    /// All that this build has.
    pub fn builtin() -> Self {
        Self {
            methods: crate::methods::methods(),
            architectures: ArchitectureRegistry::builtin(),
            tasks: TaskRegistry::builtin(),
        }
    }

    /// Knows one method more.
    pub fn with_method<T: peft_core::Tuner>(mut self) -> Self {
        self.methods = self.methods.with_method::<T>();
        self
    }

    /// Knows one architecture more.
    pub fn with_architecture(mut self, architecture: peft_models::auto::Architecture) -> Self {
        self.architectures = self.architectures.with(architecture);
        self
    }

    /// Knows one kind of task more.
    pub fn with_task(mut self, kind: impl TaskKind) -> Self {
        self.tasks = self.tasks.with(kind);
        self
    }
}

/// The object-safe side of [`TaskKind`]: what commands do with any of them.
trait AnyKind: Send + Sync {
    fn name(&self) -> &'static str;
    fn aliases(&self) -> &'static [&'static str];
    fn task_type(&self) -> Option<&'static str>;
    fn other_task_types(&self) -> &'static [&'static str];
    fn class_endings(&self) -> &'static [&'static str];
    fn reads_text(&self) -> bool;
    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AnyModel>;
    fn unallocated(&self, architectures: &ArchitectureRegistry, raw: &RawConfig, device: &Device) -> Result<AnyModel>;
    fn check_data(&self, data: &Path) -> Result<()>;
    fn fit(
        &self,
        run: &RunConfig,
        context: &RunContext<'_>,
        folder: &RunFolder,
        observer: &mut dyn RunObserver,
    ) -> Result<RunReport>;
    fn evaluate(&self, request: &EvalRequest, context: &RunContext<'_>) -> Result<Evaluation>;
    fn pass(&self, request: &ForwardRequest, context: &RunContext<'_>) -> Result<Vec<Stored>>;
}

impl<K: TaskKind> AnyKind for K {
    fn name(&self) -> &'static str {
        TaskKind::name(self)
    }
    fn aliases(&self) -> &'static [&'static str] {
        TaskKind::aliases(self)
    }
    fn task_type(&self) -> Option<&'static str> {
        TaskKind::task_type(self)
    }
    fn other_task_types(&self) -> &'static [&'static str] {
        TaskKind::other_task_types(self)
    }
    fn class_endings(&self) -> &'static [&'static str] {
        TaskKind::class_endings(self)
    }
    fn reads_text(&self) -> bool {
        TaskKind::reads_text(self)
    }
    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AnyModel> {
        Ok(any_model(TaskKind::load(self, architectures, base, place, head)?))
    }
    fn unallocated(&self, architectures: &ArchitectureRegistry, raw: &RawConfig, device: &Device) -> Result<AnyModel> {
        Ok(any_model(TaskKind::unallocated(self, architectures, raw, device)?))
    }
    fn check_data(&self, data: &Path) -> Result<()> {
        TaskKind::check_data(self, data)
    }
    fn fit(
        &self,
        run: &RunConfig,
        context: &RunContext<'_>,
        folder: &RunFolder,
        observer: &mut dyn RunObserver,
    ) -> Result<RunReport> {
        fit(self, run, context, folder, observer)
    }
    fn evaluate(&self, request: &EvalRequest, context: &RunContext<'_>) -> Result<Evaluation> {
        evaluate(self, request, context)
    }
    fn pass(&self, request: &ForwardRequest, context: &RunContext<'_>) -> Result<Vec<Stored>> {
        pass(self, request, context)
    }
}

/// Kinds of tasks, by name.
pub struct TaskRegistry {
    kinds: Vec<Box<dyn AnyKind>>,
}

impl fmt::Debug for TaskRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl TaskRegistry {
    /// Knows nothing.
    pub fn new() -> Self {
        Self { kinds: Vec::new() }
    }

    /// All that this build has.
    pub fn builtin() -> Self {
        Self::new()
            .with(CausalLmKind)
            .with(Seq2SeqLmKind)
            .with(MaskedLmKind)
            .with(SequenceClassificationKind)
            .with(TokenClassificationKind)
            .with(QuestionAnsweringKind)
            .with(SimilarityKind)
            .with(UNetKind)
            .with_pictures()
            .with_speech()
    }

    /// Kinds of tasks on pictures.
    fn with_pictures(self) -> Self {
        #[cfg(feature = "image")]
        let this = self
            .with(ImageClassificationKind)
            .with(SemanticSegmentationKind)
            .with(ImageToTextKind)
            .with(TextToImageKind);
        #[cfg(not(feature = "image"))]
        let this = self;
        this
    }

    /// Kinds of tasks on recordings.
    fn with_speech(self) -> Self {
        #[cfg(feature = "audio")]
        let this = self.with(SpeechToTextKind);
        #[cfg(not(feature = "audio"))]
        let this = self;
        this
    }

    /// Knows one kind more; one of the same name is replaced.
    pub fn with(mut self, kind: impl TaskKind) -> Self {
        self.kinds.retain(|it| it.name() != TaskKind::name(&kind));
        self.kinds.push(Box::new(kind));
        self
    }

    /// Their names.
    pub fn names(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|it| it.name()).collect()
    }

    /// The kind of a name, or of another name that means the same.
    ///
    /// # Errors
    /// If there is none; the error lists those that there are.
    pub fn get(&self, name: &str) -> Result<KnownTask<'_>> {
        let found = self.kinds.iter().find(|it| it.name() == name || it.aliases().contains(&name));
        found.map(|it| KnownTask(it.as_ref())).ok_or_else(|| unknown_task(name, &self.names()))
    }

    /// The kind that `task_type` of an `adapter_config.json` names.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_type(&self, task_type: &str) -> Result<KnownTask<'_>> {
        let found = self.kinds.iter().find(|it| it.task_type() == Some(task_type));
        found.map(|it| KnownTask(it.as_ref())).ok_or_else(|| {
            PeftError::unsupported(format!("task_type {task_type}"), "its models are not there in this version")
        })
    }

    /// The kind of a command that may be told none: `name`, else what the `task_type` of the adapters says, else what the
    /// `architectures` of the base are for, else the first that is registered: `causal-lm`.
    ///
    /// # Errors
    /// If there is no such kind, adapters are of several, or a folder cannot be read.
    pub fn chosen(&self, name: Option<&str>, adapters: &[AdapterSource], base: &Path) -> Result<KnownTask<'_>> {
        if let Some(name) = name {
            return self.get(name);
        }
        let mut found: Option<(&Path, String)> = None;
        for AdapterSource { folder, .. } in adapters {
            let config = read_config(folder)?;
            let Some(task_type) = config.get("task_type").and_then(Value::as_str) else { continue };
            match &found {
                Some((first, known)) if known != task_type => {
                    let reason = format!(
                        "its `task_type` is {task_type}, that of {} is {known}: say by --task what is meant",
                        first.display()
                    );
                    return Err(PeftError::bad_file(folder, reason));
                }
                Some(_) => {}
                None => found = Some((folder, task_type.to_owned())),
            }
        }
        match found {
            Some((_, task_type)) => self.of_type_on(&task_type, base),
            None => self.of_class(base),
        }
    }

    /// The kind that an adapter with this `task_type` is of on the base in a folder: that of the base, if it
    /// [takes such adapters](TaskKind::other_task_types), else that of the type.
    ///
    /// # Errors
    /// As [`of_type`](TaskRegistry::of_type).
    pub fn of_type_on(&self, task_type: &str, base: &Path) -> Result<KnownTask<'_>> {
        // Several kinds may have one type: what writes text for text, and what writes text for sound.
        match self.of_class(base) {
            Ok(kind) if kind.task_type() == Some(task_type) || kind.0.other_task_types().contains(&task_type) => {
                Ok(kind)
            }
            _ => self.of_type(task_type),
        }
    }

    /// The kind that the `architectures` of the base in a folder are for, else the first that is registered.
    ///
    /// # Errors
    /// If the folder has no `config.json` that can be read.
    pub fn of_class(&self, base: &Path) -> Result<KnownTask<'_>> {
        let raw = RawConfig::read(base)?;
        // ChatGLM's class is named as those of models that read one text and write another.
        let is_named_otherwise = raw.json.get("model_type").is_some_and(|it| it == "chatglm");
        let class = raw.json.get("architectures").and_then(|it| it.get(0)).or(raw.json.get("_class_name"));
        let class = class.and_then(Value::as_str);
        let class = class.filter(|_| !is_named_otherwise).unwrap_or_default();
        // How much of the name a kind knows: `WhisperForConditionalGeneration` is more than `ForConditionalGeneration`.
        let known = |it: &dyn AnyKind| {
            it.class_endings().iter().filter(|it| class.ends_with(**it)).map(|it| it.len()).max().unwrap_or(0)
        };
        // Of several that know as much, the first.
        match self.kinds.iter().map(AsRef::as_ref).rev().max_by_key(|it| known(*it)) {
            Some(kind) => Ok(KnownTask(kind)),
            None => Err(unknown_task("", &self.names())),
        }
    }

    /// All of them, in the order in which they were registered.
    pub fn iter(&self) -> impl Iterator<Item = KnownTask<'_>> {
        self.kinds.iter().map(|it| KnownTask(it.as_ref()))
    }
}

impl Default for TaskRegistry {
    fn default() -> Self {
        Self::builtin()
    }
}

/// A kind of task whose types are forgotten: what a command can do with any of them.
#[derive(Clone, Copy)]
pub struct KnownTask<'a>(&'a dyn AnyKind);

impl KnownTask<'_> {
    /// Its name: `causal-lm`.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// `task_type` of `adapter_config.json`, where PEFT has one.
    pub fn task_type(&self) -> Option<&'static str> {
        self.0.task_type()
    }

    /// Whether its data is text; see [`TaskKind::reads_text`].
    pub fn reads_text(&self) -> bool {
        self.0.reads_text()
    }

    /// Loads the base model in a folder; see [`TaskKind::load`].
    ///
    /// # Errors
    /// If it cannot be read, or is of an unknown architecture.
    pub fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: impl Into<Placement>,
        head: &ClassifierOptions,
    ) -> Result<AnyModel> {
        self.0.load(architectures, base, &place.into(), head)
    }

    /// The model of a `config.json`, without its weights.
    ///
    /// # Errors
    /// If it is of an unknown architecture.
    pub fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AnyModel> {
        self.0.unallocated(architectures, raw, device)
    }

    pub(crate) fn check_data(&self, data: &Path) -> Result<()> {
        self.0.check_data(data)
    }

    pub(crate) fn fit(
        &self,
        run: &RunConfig,
        context: &RunContext<'_>,
        folder: &RunFolder,
        observer: &mut dyn RunObserver,
    ) -> Result<RunReport> {
        self.0.fit(run, context, folder, observer)
    }

    pub(crate) fn evaluate(&self, request: &EvalRequest, context: &RunContext<'_>) -> Result<Evaluation> {
        self.0.evaluate(request, context)
    }

    pub(crate) fn pass(&self, request: &ForwardRequest, context: &RunContext<'_>) -> Result<Vec<Stored>> {
        self.0.pass(request, context)
    }
}
