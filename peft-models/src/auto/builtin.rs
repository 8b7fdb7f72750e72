//! The architectures that this crate comes with, and what uses them without being told.

use std::path::Path;
use std::sync::LazyLock;

use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::{LoadReport, Result};

use super::hub;
use super::options::ClassifierOptions;
use super::registry::ArchitectureRegistry;
use crate::architecture::{
    AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoImageToText, AutoMaskedLm,
    AutoQuestionAnswerer, AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq,
    AutoTokenClassifier, Origin,
};
use crate::common::config::RawConfig;
use crate::diffusion::{clip_text, unet};
use crate::multimodal::blip2;
use crate::speech::whisper;
use crate::text::decoder::{bloom, chatglm, gemma, gpt_neo, gpt_neox, gpt2, gptj, llama, opt, phi3};
use crate::text::encoder::{bert, deberta, deberta_v2, modernbert, roberta};
use crate::text::seq2seq::{bart, t5};
use crate::vision::{segformer, swin, vit};

static BUILTIN: LazyLock<ArchitectureRegistry> = LazyLock::new(|| {
    ArchitectureRegistry::new()
        .with(gpt2::architecture())
        .with(llama::architecture())
        .with(gemma::architecture())
        .with(phi3::architecture())
        .with(bloom::architecture())
        .with(opt::architecture())
        .with(gpt_neo::architecture())
        .with(gptj::architecture())
        .with(gpt_neox::architecture())
        .with(chatglm::architecture())
        .with(bert::architecture())
        .with(deberta::architecture())
        .with(deberta_v2::architecture())
        .with(modernbert::architecture())
        .with(roberta::architecture())
        .with(bart::architecture())
        .with(t5::architecture())
        .with(clip_text::architecture())
        .with(unet::architecture())
        .with(vit::architecture())
        .with(swin::architecture())
        .with(segformer::architecture())
        .with(blip2::architecture())
        .with(whisper::architecture())
});

impl ArchitectureRegistry {
    /// One that knows all that this crate comes with.
    pub fn builtin() -> Self {
        BUILTIN.clone()
    }
}

impl Default for ArchitectureRegistry {
    fn default() -> Self {
        Self::builtin()
    }
}

/// Reads a causal language model, as [`ArchitectureRegistry::load_causal_lm`].
pub fn load_causal_lm(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoCausalLm, LoadReport)> {
    BUILTIN.load_causal_lm(folder, place)
}

/// Reads a sequence-to-sequence model, as [`ArchitectureRegistry::load_seq2seq_lm`].
pub fn load_seq2seq_lm(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoSeq2SeqLm, LoadReport)> {
    BUILTIN.load_seq2seq_lm(folder, place)
}

/// Reads a sequence-to-sequence model that reads recordings, as [`ArchitectureRegistry::load_speech_seq2seq`].
pub fn load_speech_seq2seq(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
) -> Result<(AutoSpeechSeq2Seq, LoadReport)> {
    BUILTIN.load_speech_seq2seq(folder, place)
}

/// Reads a sequence classifier, as [`ArchitectureRegistry::load_sequence_classifier`].
pub fn load_sequence_classifier(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    options: &ClassifierOptions,
) -> Result<(AutoSequenceClassifier, LoadReport)> {
    BUILTIN.load_sequence_classifier(folder, place, options)
}

/// Reads a token classifier, as [`ArchitectureRegistry::load_token_classifier`].
pub fn load_token_classifier(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    options: &ClassifierOptions,
) -> Result<(AutoTokenClassifier, LoadReport)> {
    BUILTIN.load_token_classifier(folder, place, options)
}

/// Reads an extractive question-answering model, as [`ArchitectureRegistry::load_question_answerer`].
pub fn load_question_answerer(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    seed: u64,
) -> Result<(AutoQuestionAnswerer, LoadReport)> {
    BUILTIN.load_question_answerer(folder, place, seed)
}

/// Reads a masked language model, as [`ArchitectureRegistry::load_masked_lm`].
pub fn load_masked_lm(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoMaskedLm, LoadReport)> {
    BUILTIN.load_masked_lm(folder, place)
}

/// Reads a model without a head, as [`ArchitectureRegistry::load_feature_extractor`].
pub fn load_feature_extractor(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
) -> Result<(AutoFeatureExtractor, LoadReport)> {
    BUILTIN.load_feature_extractor(folder, place)
}

/// Reads a noise predictor, as [`ArchitectureRegistry::load_denoiser`].
pub fn load_denoiser(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoDenoiser, LoadReport)> {
    BUILTIN.load_denoiser(folder, place)
}

/// Reads an image classifier, as [`ArchitectureRegistry::load_image_classifier`].
pub fn load_image_classifier(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    options: &ClassifierOptions,
) -> Result<(AutoImageClassifier, LoadReport)> {
    BUILTIN.load_image_classifier(folder, place, options)
}

/// Reads a semantic segmentation model, as [`ArchitectureRegistry::load_semantic_segmenter`].
pub fn load_semantic_segmenter(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    options: &ClassifierOptions,
) -> Result<(AutoSemanticSegmenter, LoadReport)> {
    BUILTIN.load_semantic_segmenter(folder, place, options)
}

/// Reads a model that writes text about a picture, as [`ArchitectureRegistry::load_image_to_text`].
pub fn load_image_to_text(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
) -> Result<(AutoImageToText, LoadReport)> {
    BUILTIN.load_image_to_text(folder, place)
}

macro_rules! auto {
    ($($(#[$doc:meta])* $model:ident: $build:ident, $load:ident($($arg:ident: $type:ty),*);)+) => {
        $(impl $model {
            /// A model of a built-in architecture whose parameters are not allocated: enough to plan and to count.
            ///
            /// # Errors
            /// If `config.json` names an architecture that is not built in, or says what cannot be computed.
            pub fn from_config(raw: &RawConfig, device: &Device) -> Result<Self> {
                BUILTIN.$build(raw, device)
            }

            $(#[$doc])*
            ///
            /// `name` is a folder or, with the feature `hub`, the id of a repository of the Hugging Face Hub, which is
            /// downloaded once. What the checkpoint holds beyond the model, and what it lacks, is logged.
            ///
            /// # Errors
            /// If there is no such model, or its files do not fit; the message says what to do.
            pub fn load(name: impl AsRef<Path>, place: impl Into<Placement> $(, $arg: $type)*) -> Result<Self> {
                let name = name.as_ref().display().to_string();
                let folder = hub::resolve(&name, hub::What::Model)?;
                let (model, report) = BUILTIN.$load(&folder, place $(, $arg)*)?;
                log(&name, &report);
                Ok(model.with_origin(Origin { folder, name, drawn: report.missing }))
            }
        })+
    };
}

auto! {
    /// Loads a causal language model of a built-in architecture.
    AutoCausalLm: causal_lm, load_causal_lm();
    /// Loads a sequence-to-sequence model of a built-in architecture.
    AutoSeq2SeqLm: seq2seq_lm, load_seq2seq_lm();
    /// Loads a sequence-to-sequence model that reads recordings, of a built-in architecture.
    AutoSpeechSeq2Seq: speech_seq2seq, load_speech_seq2seq();
    /// Loads a sequence classifier of a built-in architecture.
    AutoSequenceClassifier: sequence_classifier, load_sequence_classifier(options: &ClassifierOptions);
    /// Loads a token classifier of a built-in architecture.
    AutoTokenClassifier: token_classifier, load_token_classifier(options: &ClassifierOptions);
    /// Loads an extractive question-answering model of a built-in architecture. `seed` draws the head if the checkpoint
    /// lacks one.
    AutoQuestionAnswerer: question_answerer, load_question_answerer(seed: u64);
    /// Loads a masked language model of a built-in architecture.
    AutoMaskedLm: masked_lm, load_masked_lm();
    /// Loads a model without a head, of a built-in architecture.
    AutoFeatureExtractor: feature_extractor, load_feature_extractor();
    /// Loads a noise predictor of a built-in architecture.
    AutoDenoiser: denoiser, load_denoiser();
    /// Loads an image classifier of a built-in architecture.
    AutoImageClassifier: image_classifier, load_image_classifier(options: &ClassifierOptions);
    /// Loads a semantic segmentation model of a built-in architecture.
    AutoSemanticSegmenter: semantic_segmenter, load_semantic_segmenter(options: &ClassifierOptions);
    /// Loads a model of a built-in architecture that writes text about a picture.
    AutoImageToText: image_to_text, load_image_to_text();
}

/// Says what of a checkpoint and a model did not meet.
fn log(name: &str, report: &LoadReport) {
    for (keys, what) in [
        (&report.unexpected, "has tensors that this model does not use"),
        (&report.missing, "lacks tensors, which start anew"),
    ] {
        if !keys.is_empty() {
            let shown: Vec<&str> = keys.iter().take(6).map(String::as_str).collect();
            let more = if keys.len() > shown.len() { ", …" } else { "" };
            tracing::warn!("{name} {what} ({}): {}{more}", keys.len(), shown.join(", "));
        }
    }
}
