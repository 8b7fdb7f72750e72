//! The model that a folder's `config.json` names, for every task.
//!
//! An [`ArchitectureRegistry`] knows which architectures there are. The functions here, and those of the `Auto` types,
//! use the [built-in](ArchitectureRegistry::builtin) one.
//!
//! # A model of your own
//!
//! It needs a configuration ([`ModelConfig`]), a module whose fields are named after the keys of its checkpoints, the trait
//! of each of its tasks ([`CausalLm`](crate::CausalLm), …) with [`Adaptable`](peft_core::Adaptable), and an
//! [`Architecture`] that says all that. Loaders, tasks and tuning methods then take it as they take the built-in ones.
//! `examples/custom_model.rs` is a whole one.
//!
//! - Layers come from [`peft_core::nn`], so that adapters act on them without a dense update and parameters are not
//!   allocated before a checkpoint is read. Layers of `burn::nn` work too.
//! - Virtual tokens come in by [`prompt::around`](crate::prompt::around); what generation remembers, and prefixes, are in a
//!   [`KvCache`](crate::KvCache); gradient checkpointing comes in by [`layers::run`](crate::common::layers::run).
//!
//! ```
//! use burn::tensor::Device;
//! use peft_core::{Adaptable, Result};
//! use peft_models::auto::{Architecture, ArchitectureRegistry, ModelConfig};
//! use peft_models::common::config::RawConfig;
//! use peft_models::gpt2::{Gpt2Config, Gpt2LmHeadModel};
//!
//! /// GPT-2 under names of its own.
//! struct TinyConfig {
//!     width: usize,
//! }
//!
//! impl ModelConfig for TinyConfig {
//!     fn from_raw(raw: &RawConfig) -> Result<Self> {
//!         let width = raw.json.get("width").and_then(|it| it.as_u64()).unwrap_or(48);
//!         Ok(Self { width: width as usize })
//!     }
//! }
//!
//! fn tiny(config: &TinyConfig, device: &Device) -> Gpt2LmHeadModel {
//!     Gpt2LmHeadModel::new(&Gpt2Config { n_embd: config.width, ..Gpt2Config::default() }, device)
//! }
//!
//! # fn main() -> Result<()> {
//! let architecture = Architecture::new(["tiny"], "transformer.").causal_lm(tiny);
//! let registry = ArchitectureRegistry::builtin().with(architecture);
//! // `registry.load_causal_lm(folder, &device)` reads the numbers of a checkpoint besides.
//! let config = RawConfig::parse_text(r#"{"model_type": "tiny", "width": 24}"#)?;
//! let model = registry.causal_lm(&config, &Device::default())?;
//! assert_eq!(model.spec().get("transformer.wte.weight").unwrap().shape, [50257, 24]);
//! assert!(model.downcast_ref::<Gpt2LmHeadModel>().is_some());
//! # Ok(())
//! # }
//! ```

mod builtin;
pub mod hub;
mod loading;
mod options;
mod other_names;
mod registry;
mod tied;
mod unused;

pub use crate::architecture::{
    Architecture, AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoImageToText, AutoMaskedLm,
    AutoQuestionAnswerer, AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq,
    AutoTokenClassifier, ModelConfig,
};
pub use builtin::{
    load_causal_lm, load_denoiser, load_feature_extractor, load_image_classifier, load_image_to_text, load_masked_lm,
    load_question_answerer, load_semantic_segmenter, load_seq2seq_lm, load_sequence_classifier, load_speech_seq2seq,
    load_token_classifier,
};
pub use options::ClassifierOptions;
pub use registry::ArchitectureRegistry;
pub use tied::{Copy, copies_in_file};
