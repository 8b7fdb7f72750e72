//! GPT-NeoX, and Pythia, which is the same. Source: `transformers/models/gpt_neox/modeling_gpt_neox.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, RotaryTable, attention, split};
use peft_core::{PromptShape, Result};
use serde::Deserialize;
use serde_json::json;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::merge_heads;
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::decoder::Decoder;
use crate::common::heads::decoder::decoder_heads;
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::rope::Rope;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "gpt_neox.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["gpt_neox"], BASE_PREFIX)
        .causal_lm(GptNeoXForCausalLm::new)
        .sequence_classifier(GptNeoXForSequenceClassification::new)
        .token_classifier(GptNeoXForTokenClassification::new)
        .feature_extractor(GptNeoXModel::new)
}

/// What of a head is rotated where `config.json` is silent.
const DEFAULT_ROTARY_SHARE: f64 = 0.25;

/// A quarter of the 96 coordinates that a head has by default.
fn default_rope() -> Rope {
    Rope::plain(10_000.0, 24)
}

/// `config.json` of a GPT-NeoX. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct GptNeoXConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub attention_dropout: f64,
    pub hidden_dropout: f64,
    max_position_embeddings: usize,
    pub layer_norm_eps: f64,
    pub use_parallel_residual: bool,
    pub attention_bias: bool,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
    #[serde(skip, default = "default_rope")]
    pub rope: Rope,
}

impl Default for GptNeoXConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50432,
            hidden_size: 6144,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            intermediate_size: 24576,
            hidden_act: Activation::Gelu,
            attention_dropout: 0.0,
            hidden_dropout: 0.0,
            max_position_embeddings: 2048,
            layer_norm_eps: 1e-5,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
            labels: LabelConfig::default(),
            rope: default_rope(),
        }
    }
}

impl ModelConfig for GptNeoXConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.renamed(&[("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")]);
        raw.json.entry("partial_rotary_factor").or_insert(json!(DEFAULT_ROTARY_SHARE));
        let mut config: Self = raw.parse(&[])?;
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        let d_head = config.hidden_size / config.num_attention_heads;
        config.rope = Rope::from_raw(&raw, d_head, config.max_position_embeddings)?;
        Ok(config)
    }
}

/// Self-attention; the first coordinates of a head are rotated.
#[derive(Module, Debug)]
pub struct GptNeoXAttention {
    /// Query, key and value of one head after the other, `[heads · 3 · d_head, d_model]`.
    pub query_key_value: Projection,
    /// Output, `[d_model, d_model]`.
    pub dense: Projection,
    dropout: Dropout,
    heads: usize,
}

impl GptNeoXAttention {
    fn new(config: &GptNeoXConfig, device: &Device) -> Self {
        let (d_model, bias) = (config.hidden_size, config.attention_bias);
        Self {
            query_key_value: Projection::new(d_model, 3 * d_model, bias, device),
            dense: Projection::new(d_model, d_model, bias, device),
            dropout: Dropout::new(config.attention_dropout),
            heads: config.num_attention_heads,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        rotary: &RotaryTable,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [batch, seq, d_model] = hidden.dims();
        let d_head = d_model / self.heads;
        let fused = self.query_key_value.forward(hidden).reshape([batch, seq, self.heads, 3 * d_head]);
        let [query, key, value] = split(fused, [d_head; 3]).map(|it| it.swap_dims(1, 2));
        let (key, value) = extend_cache(cache, layer, rotary.rotate(key), value);
        let mixed = attention(rotary.rotate(query), key, value, mask, (d_head as f64).powf(-0.5), &self.dropout);
        self.dense.forward(merge_heads(mixed))
    }
}

/// Two layers with an activation between them.
#[derive(Module, Debug)]
pub struct GptNeoXMlp {
    /// `[d_inner, d_model]`
    pub dense_h_to_4h: Projection,
    /// `[d_model, d_inner]`
    pub dense_4h_to_h: Projection,
    #[module(skip)]
    act: Activation,
}

impl GptNeoXMlp {
    fn new(config: &GptNeoXConfig, device: &Device) -> Self {
        Self {
            dense_h_to_4h: Projection::new(config.hidden_size, config.intermediate_size, true, device),
            dense_4h_to_h: Projection::new(config.intermediate_size, config.hidden_size, true, device),
            act: config.hidden_act,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.dense_4h_to_h.forward(self.act.apply(self.dense_h_to_4h.forward(hidden)))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptNeoXLayer {
    pub input_layernorm: LayerNorm,
    pub post_attention_layernorm: LayerNorm,
    pub attention: GptNeoXAttention,
    pub mlp: GptNeoXMlp,
    dropout: Dropout,
    parallel: bool,
}

impl GptNeoXLayer {
    fn new(config: &GptNeoXConfig, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_eps, device);
        Self {
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
            attention: GptNeoXAttention::new(config, device),
            mlp: GptNeoXMlp::new(config, device),
            dropout: Dropout::new(config.hidden_dropout),
            parallel: config.use_parallel_residual,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        rotary: &RotaryTable,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let attended = self.attention.forward(self.input_layernorm.forward(hidden.clone()), layer, rotary, mask, cache);
        let sum = hidden.clone() + self.dropout.forward(attended);
        // In parallel, the MLP reads what the attention has read.
        let read = if self.parallel { hidden } else { sum.clone() };
        sum + self.dropout.forward(self.mlp.forward(self.post_attention_layernorm.forward(read)))
    }
}

/// GPT-NeoX without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptNeoXModel {
    pub embed_in: Embedding,
    pub layers: Vec<GptNeoXLayer>,
    pub final_layer_norm: LayerNorm,
    emb_dropout: Dropout,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    prompts: PromptShape,
}

impl GptNeoXModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &GptNeoXConfig, device: &Device) -> Self {
        Self {
            embed_in: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_hidden_layers).map(|_| GptNeoXLayer::new(config, device)).collect(),
            final_layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            emb_dropout: Dropout::new(config.hidden_dropout),
            rope: config.rope.clone(),
            prompts: PromptShape::even(
                "embed_in",
                config.hidden_size,
                config.num_hidden_layers,
                config.num_attention_heads,
            ),
        }
    }
}

impl Decoder for GptNeoXModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let rotary = self.rope.table(input, past);
        let mask = mask::causal(input, past, None);
        let mut hidden = self.emb_dropout.forward(input.tokens.embed(|ids| self.embed_in.forward(ids)));
        for (at, layer) in self.layers.iter().enumerate() {
            let read = &(rotary.clone(), mask.clone());
            hidden = layers::run((layer, at), hidden, read, cache.as_deref_mut(), move |layer, hidden, read, cache| {
                layer.forward(hidden, at, &read.0, read.1.as_ref(), cache)
            });
        }
        self.final_layer_norm.forward(hidden)
    }

    fn embedding(&self) -> &Embedding {
        &self.embed_in
    }

    fn prompts(&self) -> PromptShape {
        self.prompts.clone()
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.layers, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }

    fn model_type(&self) -> &'static str {
        "gpt_neox"
    }
}

decoder_heads! {
    GptNeoXModel, GptNeoXConfig, gpt_neox: hidden_size,
    causal: GptNeoXForCausalLm,
    classifier: GptNeoXForSequenceClassification,
}

token_heads! {
    GptNeoXModel, GptNeoXConfig, gpt_neox: GptNeoXModel::new,
    width: |it| it.hidden_size,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: GptNeoXForTokenClassification(classifier),
}
