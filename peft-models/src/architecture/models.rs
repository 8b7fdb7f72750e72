//! Models of any architecture, one type for each task.

use std::path::Path;

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Int, Tensor};
use peft_core::erased::AnyModule;
use peft_core::{Adaptable, Labels, ModelSpec, PeftError, Result};

use super::origin::Origin;
use crate::common::cache::{KvCache, Seq2SeqCache};
use crate::common::config::LabelConfig;
use crate::common::denoiser::{Denoiser, DenoiserConfig, DenoiserInput};
use crate::common::input::{AudioInput, ModelInput};
use crate::common::pretrained::Pretrained;
use crate::common::task::{
    CausalLm, Encoded, FeatureExtractor, ImageClassifier, MaskedLm, QuestionAnswerer, SemanticSegmenter, Seq2SeqLm,
    SequenceClassifier, TokenClassifier,
};

/// A struct that holds any model of a task. What follows the names are the methods of the task's trait, those that change
/// the model last.
macro_rules! auto_model {
    (
        $(#[$doc:meta])*
        $name:ident: $task:path as $object:ident, task_type: $task_type:expr $(, labels: $labels:ident)?;
        $(fn $method:ident($($arg:ident: $type:ty),*) -> $output:ty;)*
        $(mut fn $change:ident();)*
    ) => {
        $(#[$doc])*
        ///
        /// It has the parameters and paths of the model inside, and remembers where that was loaded from.
        #[derive(Debug, Clone)]
        pub struct $name {
            model: AnyModule<dyn $object>,
            origin: Option<Origin>,
        }

        #[doc = concat!("[`", stringify!($task), "`] and [`Adaptable`] without generic methods.")]
        trait $object {
            fn spec(&self) -> ModelSpec;
            fn has_tied_head(&self) -> bool;
            fn untie_head(&mut self);
            fn repeat_layers(&mut self, order: &[usize]) -> Result<()>;
            $(fn $method(&self, $($arg: $type),*) -> $output;)*
            $(fn $change(&mut self);)*
        }

        impl<M: $task + Adaptable> $object for M {
            fn spec(&self) -> ModelSpec {
                Adaptable::spec(self)
            }
            fn has_tied_head(&self) -> bool {
                Adaptable::is_tied(self)
            }
            fn untie_head(&mut self) {
                Adaptable::untie_head(self);
            }
            fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
                Adaptable::repeat_layers(self, order)
            }
            $(fn $method(&self, $($arg: $type),*) -> $output {
                <Self as $task>::$method(self, $($arg),*)
            })*
            $(fn $change(&mut self) {
                <Self as $task>::$change(self);
            })*
        }

        impl $name {
            /// A model of any type, such as one of your own.
            pub fn from_model<M: $task + Adaptable + ModuleDisplay + Sync + 'static>(model: M) -> Self {
                Self { model: AnyModule::new(model, |it| it, |it| it), origin: None }
            }

            /// The model, if it is an `M`.
            pub fn downcast_ref<M: 'static>(&self) -> Option<&M> {
                self.model.downcast_ref()
            }

            /// The model, if it is an `M`, to be changed.
            pub fn downcast_mut<M: 'static>(&mut self) -> Option<&mut M> {
                self.model.downcast_mut()
            }

            /// The model itself.
            ///
            /// # Errors
            /// What it was, if it is no `M`.
            pub fn downcast<M: 'static>(self) -> std::result::Result<M, Self> {
                let Self { model, origin } = self;
                model.downcast().map_err(|model| Self { model, origin })
            }

            pub(crate) fn with_origin(self, origin: Origin) -> Self {
                Self { origin: Some(origin), ..self }
            }
        }

        impl $task for $name {
            $(fn $method(&self, $($arg: $type),*) -> $output {
                self.model.$method($($arg),*)
            })*
            $(fn $change(&mut self) {
                self.model.$change();
            })*
        }

        impl Adaptable for $name {
            fn spec(&self) -> ModelSpec {
                let mut spec = self.model.spec();
                let task_type: Option<&str> = $task_type;
                if let Some(task_type) = task_type {
                    spec.task_type = Some(task_type.to_owned());
                }
                if let Some(origin) = &self.origin {
                    spec.base_name = Some(origin.name.clone());
                    spec.drawn.clone_from(&origin.drawn);
                }
                $(
                    spec.labels = self.$labels();
                )?
                spec
            }

            fn is_tied(&self) -> bool {
                self.model.has_tied_head()
            }

            fn untie_head(&mut self) {
                self.model.untie_head();
            }

            fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
                self.model.repeat_layers(order)
            }
        }

        impl Pretrained for $name {
            fn folder(&self) -> Result<&Path> {
                match &self.origin {
                    Some(origin) => Ok(&origin.folder),
                    None => Err(PeftError::Invalid(
                        "this model was not loaded from a folder, so that it has no tokenizer of its own: give the \
                         folder of one"
                            .to_owned(),
                    )),
                }
            }
        }

        impl ModuleDisplayDefault for $name {
            fn content(&self, content: Content) -> Option<Content> {
                self.model.content(content)
            }

            fn num_params(&self) -> usize {
                Module::num_params(self)
            }
        }

        impl ModuleDisplay for $name {}

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&ModuleDisplay::format(self, Default::default()))
            }
        }

        impl Module for $name {
            fn collect_devices(&self, devices: Devices) -> Devices {
                self.model.collect_devices(devices)
            }
            fn fork(self, device: &Device) -> Self {
                Self { model: self.model.fork(device), ..self }
            }
            fn to_device(self, device: &Device) -> Self {
                Self { model: self.model.to_device(device), ..self }
            }
            fn train(self) -> Self {
                Self { model: self.model.train(), ..self }
            }
            fn valid(&self) -> Self {
                Self { model: self.model.valid(), origin: self.origin.clone() }
            }
            fn materialize(self) -> Self {
                Self { model: self.model.materialize(), ..self }
            }
            fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
                self.model.visit(visitor);
            }
            fn map<V: ModuleMapper>(self, mapper: &mut V) -> Self {
                Self { model: self.model.map(mapper), ..self }
            }
        }
    };
}

pub(super) use auto_model;

auto_model! {
    /// A causal language model of any architecture.
    AutoCausalLm: CausalLm as CausalLmObject, task_type: Some("CAUSAL_LM");
    fn hidden(input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3>;
    fn head(hidden: Tensor<2>) -> Tensor<2>;
    fn head_weight() -> Option<Tensor<2>>;
    fn cache_limit() -> Option<usize>;
    fn supports_packing() -> bool;
    fn is_tied() -> bool;
    mut fn untie();
}

auto_model! {
    /// A sequence-to-sequence model of any architecture.
    AutoSeq2SeqLm: Seq2SeqLm as Seq2SeqLmObject, task_type: Some("SEQ_2_SEQ_LM");
    fn encode(source: &ModelInput) -> Encoded;
    fn decode(target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3>;
    fn head(hidden: Tensor<2>) -> Tensor<2>;
    fn shift_right(labels: Tensor<2, Int>) -> Result<Tensor<2, Int>>;
    fn decoder_start() -> Option<u32>;
    fn check_source(source: &ModelInput) -> Result<()>;
    fn is_tied() -> bool;
    mut fn untie();
}

auto_model! {
    /// A sequence-to-sequence model that reads recordings, of any architecture: `AutoModelForSpeechSeq2Seq`.
    // PEFT's guide trains it without a task type, whose wrapper would ask for `input_ids`.
    AutoSpeechSeq2Seq: Seq2SeqLm<AudioInput> as SpeechSeq2SeqObject, task_type: None;
    fn encode(source: &AudioInput) -> Encoded;
    fn decode(target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3>;
    fn head(hidden: Tensor<2>) -> Tensor<2>;
    fn shift_right(labels: Tensor<2, Int>) -> Result<Tensor<2, Int>>;
    fn decoder_start() -> Option<u32>;
    fn check_source(source: &AudioInput) -> Result<()>;
    fn is_tied() -> bool;
    mut fn untie();
}

auto_model! {
    /// A sequence classifier of any architecture.
    AutoSequenceClassifier: SequenceClassifier as SequenceClassifierObject, task_type: Some("SEQ_CLS"), labels: named_outputs;
    fn logits(input: &ModelInput) -> Tensor<2>;
    fn labels() -> &LabelConfig;
    fn pools_last_token() -> bool;
}

auto_model! {
    /// A token classifier of any architecture.
    AutoTokenClassifier: TokenClassifier as TokenClassifierObject, task_type: Some("TOKEN_CLS"), labels: named_tags;
    fn logits(input: &ModelInput) -> Tensor<3>;
    fn labels() -> &LabelConfig;
}

auto_model! {
    /// An extractive question-answering model of any architecture.
    AutoQuestionAnswerer: QuestionAnswerer as QuestionAnswererObject, task_type: Some("QUESTION_ANS");
    fn logits(input: &ModelInput) -> Tensor<3>;
}

auto_model! {
    /// A masked language model of any architecture.
    AutoMaskedLm: MaskedLm as MaskedLmObject, task_type: None;
    fn logits(input: &ModelInput) -> Tensor<3>;
}

auto_model! {
    /// A model without a head, of any architecture.
    AutoFeatureExtractor: FeatureExtractor as FeatureExtractorObject, task_type: Some("FEATURE_EXTRACTION");
    fn last_hidden_state(input: &ModelInput) -> Tensor<3>;
}

auto_model! {
    /// A noise predictor of any architecture.
    AutoDenoiser: Denoiser as DenoiserObject, task_type: None;
    fn predict(input: &DenoiserInput) -> Tensor<4>;
    fn about() -> &DenoiserConfig;
}

auto_model! {
    /// An image classifier of any architecture.
    AutoImageClassifier: ImageClassifier as ImageClassifierObject, task_type: None, labels: named_outputs;
    fn logits(pixel_values: Tensor<4>) -> Tensor<2>;
    fn labels() -> &LabelConfig;
    fn num_channels() -> usize;
    fn smallest_picture() -> [usize; 2];
}

auto_model! {
    /// A semantic segmentation model of any architecture.
    AutoSemanticSegmenter: SemanticSegmenter as SemanticSegmenterObject, task_type: None, labels: named_classes;
    fn logits(pixel_values: Tensor<4>) -> Tensor<4>;
    fn labels() -> &LabelConfig;
    fn num_channels() -> usize;
    fn smallest_picture() -> [usize; 2];
    fn ignored_label() -> i64;
}

// Two traits have this method; without one of the type's own, callers that import both would have to say which.
impl AutoCausalLm {
    /// Whether the head is the embedding matrix read the other way.
    pub fn is_tied(&self) -> bool {
        self.model.is_tied()
    }
}

impl AutoSeq2SeqLm {
    /// Whether the head is the embedding matrix read the other way.
    pub fn is_tied(&self) -> bool {
        self.model.is_tied()
    }
}

impl AutoSpeechSeq2Seq {
    /// Whether the head is the embedding matrix read the other way.
    pub fn is_tied(&self) -> bool {
        self.model.is_tied()
    }
}

impl AutoSequenceClassifier {
    fn named_outputs(&self) -> Option<Labels> {
        self.model.labels().labels()
    }

    /// What the labels are; [`SequenceClassifier::labels`].
    pub fn labels(&self) -> &LabelConfig {
        self.model.labels()
    }

    /// Whether every token sees the whole text. A decoder's classifier looks at the last token, so that it must know
    /// which is padding.
    pub fn is_encoder(&self) -> bool {
        !self.model.pools_last_token()
    }
}

impl AutoTokenClassifier {
    /// Tags have no `problem_type`.
    fn named_tags(&self) -> Option<Labels> {
        self.model.labels().labels().map(|it| Labels { problem_type: None, ..it })
    }

    /// What the labels are; [`TokenClassifier::labels`].
    pub fn labels(&self) -> &LabelConfig {
        self.model.labels()
    }
}

impl AutoImageClassifier {
    fn named_outputs(&self) -> Option<Labels> {
        self.model.labels().labels()
    }

    /// What the labels are; [`ImageClassifier::labels`].
    pub fn labels(&self) -> &LabelConfig {
        self.model.labels()
    }
}

impl AutoSemanticSegmenter {
    /// Classes of pixels have no `problem_type`.
    fn named_classes(&self) -> Option<Labels> {
        self.model.labels().labels().map(|it| Labels { problem_type: None, ..it })
    }

    /// What the classes are; [`SemanticSegmenter::labels`].
    pub fn labels(&self) -> &LabelConfig {
        self.model.labels()
    }
}
