//! The model that a folder's `config.json` names, for every task.
//!
//! An [`ArchitectureRegistry`] knows which architectures there are. The functions here, and those of the `Auto` types,
//! use the [built-in](ArchitectureRegistry::builtin) one.
//!
//! # A model of your own
//!
//! It needs a configuration, a module whose fields are named after the keys of its checkpoints, the trait of each of its
//! tasks, and an [`Architecture`] that says all that. Loaders, tasks and tuning methods then take it as they take the
//! built-in ones.
//!
//! - Layers come from [`peft_core::nn`], so that adapters ride on them without a dense update and parameters are not
//!   allocated before a checkpoint is read. Layers of [`burn::nn`] work too.
//! - [`prompt::around`](crate::prompt::around) is where virtual tokens come in, [`KvCache`](crate::KvCache) where
//!   generation remembers and prefixes stand, and [`layers::run`](crate::common::layers::run) where gradient
//!   checkpointing comes in.
//!
//! ```
//! use burn::module::Module;
//! use burn::tensor::{Device, Tensor};
//! use peft_core::nn::{Dropout, Embedding, Projection};
//! use peft_core::ops::attention;
//! use peft_core::{Adaptable, ModelSpec, PromptShape, Result};
//! use peft_models::auto::{Architecture, ArchitectureRegistry, ModelConfig};
//! use peft_models::common::attention_heads::{merge_heads, split_heads};
//! use peft_models::common::cache::extend_cache;
//! use peft_models::common::config::RawConfig;
//! use peft_models::{CausalLm, KvCache, ModelInput, mask, prompt};
//!
//! #[derive(serde::Deserialize)]
//! struct NanoConfig {
//!     vocab_size: usize,
//!     hidden_size: usize,
//! }
//!
//! impl ModelConfig for NanoConfig {
//!     fn from_raw(raw: &RawConfig) -> Result<Self> {
//!         raw.parse(&[]) // refuses what changes numbers in other architectures, such as a quantized checkpoint
//!     }
//! }
//!
//! /// One layer of attention with one head, and a head that is the embedding matrix read the other way.
//! #[derive(Module, Debug)]
//! struct Nano {
//!     embed: Embedding,
//!     q_proj: Projection,
//!     k_proj: Projection,
//!     v_proj: Projection,
//!     lm_head: Option<Projection>,
//!     d_model: usize,
//! }
//!
//! impl Nano {
//!     fn new(config: &NanoConfig, device: &Device) -> Self {
//!         let d_model = config.hidden_size;
//!         let projection = || Projection::new(d_model, d_model, false, device);
//!         Self {
//!             embed: Embedding::new(config.vocab_size, d_model, device),
//!             q_proj: projection(),
//!             k_proj: projection(),
//!             v_proj: projection(),
//!             lm_head: None,
//!             d_model,
//!         }
//!     }
//!
//!     fn layer(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
//!         let past = cache.as_ref().map_or(0, |it| it.len());
//!         let mask = mask::causal(input, past, None);
//!         let hidden = input.tokens.embed(|ids| self.embed.forward(ids));
//!         let split = |layer: &Projection| split_heads(layer.forward(hidden.clone()), self.d_model);
//!         let (key, value) = extend_cache(cache, 0, split(&self.k_proj), split(&self.v_proj));
//!         let scale = (self.d_model as f64).powf(-0.5);
//!         let mixed = attention(split(&self.q_proj), key, value, mask.as_ref(), scale, &Dropout::new(0.0));
//!         hidden.clone() + merge_heads(mixed)
//!     }
//! }
//!
//! impl CausalLm for Nano {
//!     fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
//!         prompt::around(&self.embed, input, cache, |input, cache| self.layer(input, cache))
//!     }
//!     fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
//!         match &self.lm_head {
//!             Some(head) => head.forward(hidden),
//!             None => self.embed.attend(hidden),
//!         }
//!     }
//!     fn is_tied(&self) -> bool {
//!         self.lm_head.is_none()
//!     }
//!     fn untie(&mut self) {
//!         self.lm_head.get_or_insert_with(|| self.embed.as_head());
//!     }
//! }
//!
//! impl Adaptable for Nano {
//!     fn spec(&self) -> ModelSpec {
//!         let prompts = PromptShape::even("embed", self.d_model, 1, 1);
//!         ModelSpec::of(self).with_model_type("nano").with_heads(["lm_head"]).with_prompts("", prompts)
//!     }
//!     fn is_tied(&self) -> bool {
//!         CausalLm::is_tied(self)
//!     }
//!     fn untie_head(&mut self) {
//!         self.untie();
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let registry = ArchitectureRegistry::builtin().with(Architecture::new(["nano"], "").causal_lm(Nano::new));
//! // As `registry.load_causal_lm(folder, &device)` does, which gives the parameters the numbers of a checkpoint besides.
//! let config = RawConfig::parse_text(r#"{"model_type": "nano", "vocab_size": 100, "hidden_size": 16}"#)?;
//! let model = registry.causal_lm(&config, &Device::default())?;
//! assert_eq!(model.spec().parameters(), 100 * 16 + 3 * 16 * 16);
//! assert_eq!(model.spec().task_type.as_deref(), Some("CAUSAL_LM"));
//! assert!(model.downcast_ref::<Nano>().is_some());
//! # Ok(())
//! # }
//! ```

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
