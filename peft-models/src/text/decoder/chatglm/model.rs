//! ChatGLM of any generation, as `config.json` tells them apart.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Embedding, Projection};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde_json::Value;

use super::first::{FirstConfig, FirstModel};
use super::second::{SecondConfig, SecondModel};
use crate::architecture::{Architecture, ModelConfig};
use crate::common::cache::KvCache;
use crate::common::config::{RawConfig, heads_divide};
use crate::common::decoder::Decoder;
use crate::common::heads::decoder::decoder_heads;
use crate::common::input::{ModelInput, Tokens};
use crate::common::layers;
use crate::common::prompt;
use crate::common::task::CausalLm;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "transformer.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["chatglm"], BASE_PREFIX)
        .causal_lm(ChatGlmForConditionalGeneration::new)
        .feature_extractor(ChatGlmModel::new)
}

/// `config.json` of either kind.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum ChatGlmConfig {
    First(FirstConfig),
    Second(SecondConfig),
}

impl ModelConfig for ChatGlmConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // Checkpoints may carry prefixes that their own code trained.
        let unknown = ["pre_seq_len", "prefix_projection", "quantization_bit"];
        // Absent and null are one.
        let mut raw = raw.clone();
        raw.json.retain(|_, value| *value != Value::Null);
        if !raw.json.contains_key("padded_vocab_size") {
            let config: FirstConfig = raw.parse(&unknown)?;
            let heads = ("num_attention_heads", config.num_attention_heads);
            heads_divide(heads, ("hidden_size", config.hidden_size))?;
            return Ok(Self::First(config));
        }
        let config: SecondConfig = raw.parse(&unknown)?;
        heads_divide(
            ("multi_query_group_num", config.kv_heads()),
            ("num_attention_heads", config.num_attention_heads),
        )?;
        if !config.rmsnorm {
            let reason = "is false, and only root mean square norms are computed; no published checkpoint has others";
            return Err(PeftError::config("rmsnorm", reason));
        }
        Ok(Self::Second(config))
    }
}

/// ChatGLM, with what is called the model in its checkpoints.
#[derive(Module, Debug)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum ChatGlmModel {
    First(FirstModel),
    Second(SecondModel),
}

impl ChatGlmModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ChatGlmConfig, device: &Device) -> Self {
        match config {
            ChatGlmConfig::First(config) => Self::First(FirstModel::new(config, device)),
            ChatGlmConfig::Second(config) => Self::Second(SecondModel::new(config, device)),
        }
    }
}

impl ChatGlmModel {
    fn layers(&self, input: &ModelInput, words: &Tokens, cache: Option<&mut KvCache>) -> Tensor<3> {
        match self {
            Self::First(it) => it.forward(input, words, cache),
            Self::Second(it) => it.forward(input, cache),
        }
    }
}

impl Decoder for ChatGlmModel {
    fn stack(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.layers(input, &input.tokens, cache)
    }

    fn forward(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        // Behind virtual tokens there are no ids any more.
        let words = &input.tokens;
        prompt::around(self.embedding(), input, cache, |input, cache| self.layers(input, words, cache))
    }

    fn embedding(&self) -> &Embedding {
        match self {
            Self::First(it) => &it.word_embeddings,
            Self::Second(it) => &it.embedding.word_embeddings,
        }
    }

    fn prompts(&self) -> PromptShape {
        match self {
            Self::First(FirstModel { config: it, .. }) => {
                PromptShape::even("word_embeddings", it.hidden_size, it.num_layers, it.num_attention_heads)
            }
            Self::Second(SecondModel { config: it, .. }) => PromptShape {
                table: "embedding.word_embeddings".into(),
                d_model: it.hidden_size,
                layers: it.num_layers,
                heads: it.num_attention_heads,
                kv_heads: it.kv_heads(),
                d_head: it.kv_channels,
            },
        }
    }

    fn model_type(&self) -> &'static str {
        "chatglm"
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        match self {
            Self::First(it) => {
                layers::reorder(&mut it.layers, order)?;
                it.config.num_layers = order.len();
            }
            Self::Second(it) => {
                layers::reorder(&mut it.encoder.layers, order)?;
                it.config.num_layers = order.len();
            }
        }
        Ok(())
    }
}

decoder_heads! { @base ChatGlmModel }

/// ChatGLM with a language-model head.
#[derive(Module, Debug)]
pub struct ChatGlmForConditionalGeneration {
    /// The stack.
    pub transformer: ChatGlmModel,
    /// The head of the first generation, unless it is the embedding matrix read the other way.
    pub lm_head: Option<Projection>,
}

impl ChatGlmForConditionalGeneration {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ChatGlmConfig, device: &Device) -> Self {
        let lm_head = match config {
            ChatGlmConfig::First(it) if !it.tie_word_embeddings => {
                Some(Projection::new(it.hidden_size, it.vocab_size, false, device))
            }
            _ => None,
        };
        Self { transformer: ChatGlmModel::new(config, device), lm_head }
    }
}

impl Adaptable for ChatGlmForConditionalGeneration {
    // The head of the later generations is not declared as one there: `all-linear` takes it in.
    fn spec(&self) -> ModelSpec {
        self.transformer.spec_within(ModelSpec::of(self), "transformer").with_heads(["lm_head"])
    }

    fn is_tied(&self) -> bool {
        CausalLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        CausalLm::untie(self);
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        Decoder::repeat_layers(&mut self.transformer, order)
    }
}

impl CausalLm for ChatGlmForConditionalGeneration {
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.transformer.forward(input, cache)
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match (&self.lm_head, &self.transformer) {
            (Some(head), _) => head.forward(hidden),
            (None, ChatGlmModel::First(it)) => it.word_embeddings.attend(hidden),
            (None, ChatGlmModel::Second(it)) => it.output_layer.forward(hidden),
        }
    }

    fn head_weight(&self) -> Option<Tensor<2>> {
        match (&self.lm_head, &self.transformer) {
            (Some(head), _) => head.bare_weight(),
            (None, ChatGlmModel::First(it)) => it.word_embeddings.bare_weight(),
            (None, ChatGlmModel::Second(it)) => it.output_layer.bare_weight(),
        }
    }

    /// The first generation finds in a row what it has to write, and where that belongs, once.
    fn supports_packing(&self) -> bool {
        matches!(self.transformer, ChatGlmModel::Second(_))
    }

    fn is_tied(&self) -> bool {
        self.lm_head.is_none() && matches!(self.transformer, ChatGlmModel::First(_))
    }

    fn untie(&mut self) {
        if let ChatGlmModel::First(it) = &self.transformer {
            self.lm_head.get_or_insert_with(|| it.word_embeddings.as_head());
        }
    }
}
