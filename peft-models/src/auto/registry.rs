//! Which architectures there are.

use burn::tensor::Device;
use peft_core::{PeftError, Result};

use crate::architecture::{
    Architecture, AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoImageToText, AutoMaskedLm,
    AutoQuestionAnswerer, AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq,
    AutoTokenClassifier, Constructor,
};
use crate::common::config::RawConfig;

/// The architectures that models can be loaded of.
///
/// Its methods `load_…` read a folder; those without `load_` build a model whose parameters are not allocated, which is
/// enough to plan and to count.
///
/// # Errors
/// All of them fail for a `model_type` that has no model for the task; the message lists those that have one.
#[derive(Debug, Clone)]
pub struct ArchitectureRegistry {
    architectures: Vec<Architecture>,
}

/// A model of a task, and where an [`Architecture`] says how to build it.
pub(super) trait Task: Sized {
    /// What the models are called in messages.
    const MODELS: &'static str;
    /// The method of [`Architecture`] that takes the constructor.
    const METHOD: &'static str;

    fn constructor(architecture: &Architecture) -> Option<&Constructor<Self>>;
}

macro_rules! tasks {
    ($($(#[$doc:meta])* $method:ident -> $model:ident, $models:literal;)+) => {
        $(impl Task for $model {
            const MODELS: &'static str = $models;
            const METHOD: &'static str = stringify!($method);

            fn constructor(architecture: &Architecture) -> Option<&Constructor<Self>> {
                architecture.$method.as_ref()
            }
        })+

        impl ArchitectureRegistry {
            $(
                $(#[$doc])*
                pub fn $method(&self, raw: &RawConfig, device: &Device) -> Result<$model> {
                    Ok(self.build(raw, device)?.0)
                }
            )+
        }
    };
}

tasks! {
    /// A causal language model without parameters.
    causal_lm -> AutoCausalLm, "causal language models";
    /// A sequence-to-sequence model without parameters.
    seq2seq_lm -> AutoSeq2SeqLm, "sequence to sequence";
    /// A sequence-to-sequence model that reads recordings, without parameters.
    speech_seq2seq -> AutoSpeechSeq2Seq, "speech recognition";
    /// A sequence classifier without parameters.
    sequence_classifier -> AutoSequenceClassifier, "classifiers";
    /// A token classifier without parameters.
    token_classifier -> AutoTokenClassifier, "token classification";
    /// An extractive question-answering model without parameters.
    question_answerer -> AutoQuestionAnswerer, "question answering";
    /// A masked language model without parameters.
    masked_lm -> AutoMaskedLm, "masked language models";
    /// A model without head and parameters.
    feature_extractor -> AutoFeatureExtractor, "feature extraction";
    /// A noise predictor without parameters.
    denoiser -> AutoDenoiser, "noise prediction";
    /// An image classifier without parameters.
    image_classifier -> AutoImageClassifier, "image classification";
    /// A model without parameters that writes text about a picture.
    image_to_text -> AutoImageToText, "text about pictures";
    /// A semantic segmentation model without parameters.
    semantic_segmenter -> AutoSemanticSegmenter, "semantic segmentation";
}

impl ArchitectureRegistry {
    /// One that knows nothing.
    pub fn new() -> Self {
        Self { architectures: Vec::new() }
    }

    /// With an architecture more. Where two are for the same `model_type`, the later one counts.
    pub fn with(mut self, architecture: Architecture) -> Self {
        self.architectures.push(architecture);
        self
    }

    /// A model without parameters, and the prefix that the keys of a headless checkpoint lack.
    pub(super) fn build<T: Task>(&self, raw: &RawConfig, device: &Device) -> Result<(T, &str)> {
        let model_type = raw.model_type()?;
        let all = self.architectures.iter();
        let mut fitting = all.rev().filter(|it| it.model_types.iter().any(|it| it == model_type));
        match fitting.find_map(|it| Some((it, T::constructor(it)?))) {
            Some((architecture, build)) => Ok((build(raw, device)?, &architecture.prefix)),
            None => Err(self.unknown::<T>(model_type, raw)),
        }
    }

    fn unknown<T: Task>(&self, model_type: &str, raw: &RawConfig) -> PeftError {
        let known = self.architectures.iter().filter(|it| T::constructor(it).is_some());
        let known: Vec<&str> = known.flat_map(|it| &it.model_types).map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let reason = format!(
            "for {} this registry knows {known}; register one of your own by \
             `ArchitectureRegistry::with(Architecture::new([\"{model_type}\"], …).{}(…))`",
            T::MODELS,
            T::METHOD
        );
        PeftError::unsupported(format!("model_type `{model_type}` of {}", raw.path().display()), reason)
    }
}
