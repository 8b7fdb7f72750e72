//! What a model file says of its architecture.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use burn::module::ModuleDisplay;
use burn::tensor::Device;
use peft_core::{Adaptable, Result};

use super::image_to_text::{AutoImageToText, ImageToText};
use super::models::{
    AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoMaskedLm, AutoQuestionAnswerer,
    AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq, AutoTokenClassifier,
};
use crate::common::config::RawConfig;
use crate::common::denoiser::Denoiser;
use crate::common::input::AudioInput;
use crate::common::task::{
    CausalLm, FeatureExtractor, ImageClassifier, MaskedLm, QuestionAnswerer, SemanticSegmenter, Seq2SeqLm,
    SequenceClassifier, TokenClassifier,
};

/// What a `config.json` means to an architecture.
pub trait ModelConfig: Sized {
    /// Understands a `config.json`. [`RawConfig::parse`] does most of it.
    ///
    /// Loading may have changed the fields: `tie_word_embeddings` says whether the checkpoint has a head of its own, and for
    /// classifiers `num_labels`, `id2label`, `problem_type` and `pad_token_id` say what the caller asked for. A model that may
    /// be tied must read `tie_word_embeddings`, or the head of such a checkpoint is left out.
    ///
    /// # Errors
    /// If a field has a value that cannot be computed; the message names the field. An architecture must refuse what it
    /// does not know rather than compute something else.
    fn from_raw(raw: &RawConfig) -> Result<Self>;
}

/// Builds the model of a task whose parameters are not allocated yet.
pub(crate) type Constructor<T> = Arc<dyn Fn(&RawConfig, &Device) -> Result<T> + Send + Sync>;

/// An architecture: which `config.json` it is for, and its model for every task that it has one for.
///
/// A model file declares one in a function `architecture()`, and the list in `auto/builtin.rs` has a line for it. A crate
/// of yours adds its own with [`ArchitectureRegistry::with`](crate::auto::ArchitectureRegistry::with).
///
/// Every task takes the function that builds its model from the configuration. That must not allocate parameters:
/// layers of [`peft_core::nn`] are lazy, and loading gives them the numbers of the checkpoint. Paths of parameters are
/// the checkpoint's keys.
///
/// Whether a checkpoint holds a head that is not the embedding matrix is told by names (`auto/tied.rs`): a head is
/// `lm_head.weight`, `embed_out.weight`, `proj_out.weight` or `decoder.weight`; the matrix is the weight of `wte`, `shared`, `embed_tokens`,
/// `word_embeddings`, `embed_in` or `tok_embeddings`, or for causal models of the table that
/// [`PromptShape`](peft_core::PromptShape) names. If there is such a head, loading sets `tie_word_embeddings` to false before
/// the [`ModelConfig`] reads it. A tied model with other names is loaded as tied.
#[derive(Clone)]
pub struct Architecture {
    pub(crate) model_types: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) causal_lm: Option<Constructor<AutoCausalLm>>,
    pub(crate) seq2seq_lm: Option<Constructor<AutoSeq2SeqLm>>,
    pub(crate) speech_seq2seq: Option<Constructor<AutoSpeechSeq2Seq>>,
    pub(crate) sequence_classifier: Option<Constructor<AutoSequenceClassifier>>,
    pub(crate) token_classifier: Option<Constructor<AutoTokenClassifier>>,
    pub(crate) question_answerer: Option<Constructor<AutoQuestionAnswerer>>,
    pub(crate) masked_lm: Option<Constructor<AutoMaskedLm>>,
    pub(crate) feature_extractor: Option<Constructor<AutoFeatureExtractor>>,
    pub(crate) denoiser: Option<Constructor<AutoDenoiser>>,
    pub(crate) image_classifier: Option<Constructor<AutoImageClassifier>>,
    pub(crate) semantic_segmenter: Option<Constructor<AutoSemanticSegmenter>>,
    pub(crate) image_to_text: Option<Constructor<AutoImageToText>>,
}

impl Debug for Architecture {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let tasks: Vec<&str> = [
            ("causal_lm", self.causal_lm.is_some()),
            ("seq2seq_lm", self.seq2seq_lm.is_some()),
            ("speech_seq2seq", self.speech_seq2seq.is_some()),
            ("sequence_classifier", self.sequence_classifier.is_some()),
            ("token_classifier", self.token_classifier.is_some()),
            ("question_answerer", self.question_answerer.is_some()),
            ("masked_lm", self.masked_lm.is_some()),
            ("feature_extractor", self.feature_extractor.is_some()),
            ("denoiser", self.denoiser.is_some()),
            ("image_classifier", self.image_classifier.is_some()),
            ("semantic_segmenter", self.semantic_segmenter.is_some()),
            ("image_to_text", self.image_to_text.is_some()),
        ]
        .into_iter()
        .filter_map(|(task, is_there)| is_there.then_some(task))
        .collect();
        f.debug_struct("Architecture")
            .field("model_types", &self.model_types)
            .field("prefix", &self.prefix)
            .field("tasks", &tasks)
            .finish()
    }
}

/// The method of a task: the function that builds its model.
macro_rules! tasks {
    ($($(#[$doc:meta])* $method:ident: $task:path as $auto:ident;)+) => {
        $(
            $(#[$doc])*
            pub fn $method<C, M>(mut self, new: impl Fn(&C, &Device) -> M + Send + Sync + 'static) -> Self
            where
                C: ModelConfig,
                M: $task + Adaptable + ModuleDisplay + Sync + 'static,
            {
                let build = move |raw: &RawConfig, device: &Device| {
                    let config = C::from_raw(raw).map_err(|error| error.in_file(raw.path()))?;
                    Ok($auto::from_model(new(&config, device)))
                };
                self.$method = Some(Arc::new(build));
                self
            }
        )+
    };
}

impl Architecture {
    /// An architecture without models.
    ///
    /// - `model_types`: what `config.json` calls it, `model_type`; in files of diffusers `_class_name`.
    /// - `prefix`: what the keys of a whole checkpoint have before those of a headless one: `"model."`, with the dot.
    ///   Loading takes either. Empty if they do not differ.
    pub fn new<S: Into<String>>(model_types: impl IntoIterator<Item = S>, prefix: impl Into<String>) -> Self {
        Self {
            model_types: model_types.into_iter().map(Into::into).collect(),
            prefix: prefix.into(),
            causal_lm: None,
            seq2seq_lm: None,
            speech_seq2seq: None,
            sequence_classifier: None,
            token_classifier: None,
            question_answerer: None,
            masked_lm: None,
            feature_extractor: None,
            denoiser: None,
            image_classifier: None,
            semantic_segmenter: None,
            image_to_text: None,
        }
    }

    tasks! {
        /// With a causal language model.
        causal_lm: CausalLm as AutoCausalLm;
        /// With a sequence-to-sequence model.
        seq2seq_lm: Seq2SeqLm as AutoSeq2SeqLm;
        /// With a sequence-to-sequence model that reads recordings.
        speech_seq2seq: Seq2SeqLm<AudioInput> as AutoSpeechSeq2Seq;
        /// With a sequence classifier.
        sequence_classifier: SequenceClassifier as AutoSequenceClassifier;
        /// With a token classifier.
        token_classifier: TokenClassifier as AutoTokenClassifier;
        /// With an extractive question-answering model.
        question_answerer: QuestionAnswerer as AutoQuestionAnswerer;
        /// With a masked language model.
        masked_lm: MaskedLm as AutoMaskedLm;
        /// With a model without a head.
        feature_extractor: FeatureExtractor as AutoFeatureExtractor;
        /// With a noise predictor.
        denoiser: Denoiser as AutoDenoiser;
        /// With an image classifier.
        image_classifier: ImageClassifier as AutoImageClassifier;
        /// With a semantic segmentation model.
        semantic_segmenter: SemanticSegmenter as AutoSemanticSegmenter;
        /// With a model that writes text about a picture.
        image_to_text: ImageToText as AutoImageToText;
    }
}
