//! The model that a folder's `config.json` names, for every task.
//!
//! An [`ArchitectureRegistry`] knows which architectures there are. The functions here, and those of the `Auto` types,
//! use the [built-in](ArchitectureRegistry::builtin) one.

mod builtin;
pub mod hub;
mod loading;
mod options;
mod registry;
mod tied;

pub use crate::architecture::{
    Architecture, AutoCausalLm, AutoFeatureExtractor, AutoMaskedLm, AutoQuestionAnswerer, AutoSeq2SeqLm,
    AutoSequenceClassifier, AutoTokenClassifier, ModelConfig,
};
pub use builtin::{
    load_causal_lm, load_feature_extractor, load_masked_lm, load_question_answerer, load_seq2seq_lm,
    load_sequence_classifier, load_token_classifier,
};
pub use options::ClassifierOptions;
pub use registry::ArchitectureRegistry;
