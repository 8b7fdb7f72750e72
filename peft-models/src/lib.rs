//! Base models for Burn that load Hugging Face checkpoints and take adapters in.
//!
//! [`auto`] reads a folder and picks the architecture; [`gpt2`], [`llama`] and [`bert`] are the architectures, one file
//! each, with fields named after checkpoint keys. [`CausalLm`], [`SequenceClassifier`] and [`FeatureExtractor`] are what
//! a task may ask of a model.

pub mod auto;
pub mod bart;
pub mod bert;
pub mod bloom;
pub mod chatglm;
pub mod config;
pub mod deberta;
pub mod deberta_v2;
mod decoder;
mod disentangled;
mod gated;
pub mod gemma;
pub mod gpt2;
pub mod gpt_neo;
pub mod gpt_neox;
pub mod gptj;
mod input;
mod layers;
pub mod llama;
pub mod mask;
mod masked_heads;
pub mod modernbert;
pub mod opt;
pub mod phi3;
pub mod prompt;
pub mod roberta;
pub mod rope;
pub mod t5;
mod task;
mod word_heads;

pub use decoder::Decoder;
pub use gated::GatedMlp;
pub use input::{KvCache, ModelInput, Seq2SeqCache, Tokens};
pub use task::{
    CausalLm, Encoded, FeatureExtractor, MaskedLm, QuestionAnswerer, Seq2SeqLm, SequenceClassifier, TokenClassifier,
};
