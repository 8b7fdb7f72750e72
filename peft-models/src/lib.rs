//! Base models for Burn that load Hugging Face checkpoints and take adapters in.
//!
//! [`auto`] reads a folder and picks the architecture; [`gpt2`], [`llama`] and [`bert`] are the architectures, one file
//! each, with fields named after checkpoint keys. [`CausalLm`], [`SequenceClassifier`] and [`FeatureExtractor`] are what
//! a task may ask of a model.

pub mod architecture;
pub mod auto;
pub mod common;
pub mod text;

pub use common::decoder::Decoder;
pub use common::gated_mlp::GatedMlp;
pub use common::input::{KvCache, ModelInput, Seq2SeqCache, Tokens};
pub use common::pretrained::Pretrained;
pub use common::task::{
    CausalLm, Encoded, FeatureExtractor, MaskedLm, QuestionAnswerer, Seq2SeqLm, SequenceClassifier, TokenClassifier,
};
pub use common::{config, mask, prompt, rope};
pub use text::decoder::{bloom, chatglm, gemma, gpt_neo, gpt_neox, gpt2, gptj, llama, opt, phi3};
pub use text::encoder::{bert, deberta, deberta_v2, modernbert, roberta};
pub use text::seq2seq::{bart, t5};
