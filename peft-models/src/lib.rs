//! Base models for Burn that load Hugging Face checkpoints and take adapters in.
//!
//! [`auto`] reads a folder, or a repository of the Hugging Face Hub, and picks the architecture; it also says how a model
//! of your own joins. [`text`] and [`speech`] hold the architectures, one file each, with fields named after checkpoint keys.
//! [`CausalLm`], [`SequenceClassifier`] and their like are what a task needs of a model, and [`common`] is what
//! architectures share.

pub mod architecture;
pub mod auto;
pub mod common;
pub mod diffusion;
pub mod multimodal;
pub mod speech;
pub mod text;
pub mod vision;

pub use architecture::{ImageToText, LanguageModel};
pub use common::cache::{KvCache, Seq2SeqCache};
pub use common::decoder::Decoder;
pub use common::denoiser::{AddedConditions, Denoiser, DenoiserInput};
pub use common::gated_mlp::GatedMlp;
pub use common::input::{AudioInput, EncoderInput, ModelInput, Tokens};
pub use common::pretrained::Pretrained;
pub use common::task::{
    CausalLm, Encoded, FeatureExtractor, ImageClassifier, MaskedLm, QuestionAnswerer, SemanticSegmenter, Seq2SeqLm,
    SequenceClassifier, TokenClassifier,
};
pub use common::{config, mask, prompt, rope};
pub use multimodal::blip2;
pub use speech::whisper;
pub use text::decoder::{bloom, chatglm, gemma, gpt_neo, gpt_neox, gpt2, gptj, llama, opt, phi3};
pub use text::encoder::{bert, deberta, deberta_v2, modernbert, roberta};
pub use text::seq2seq::{bart, t5};
pub use vision::{segformer, swin, vit};
