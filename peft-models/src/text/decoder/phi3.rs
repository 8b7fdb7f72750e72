//! Phi-3 and Phi-4. Source: `transformers/models/phi3/modeling_phi3.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, Projection, RmsNorm};
use peft_core::ops::{AttentionMask, RotaryTable, attention, split};
use peft_core::{PromptShape, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
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
pub const BASE_PREFIX: &str = "model.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["phi3"], BASE_PREFIX)
        .causal_lm(Phi3ForCausalLm::new)
        .sequence_classifier(Phi3ForSequenceClassification::new)
        .token_classifier(Phi3ForTokenClassification::new)
        .feature_extractor(Phi3Model::new)
}

/// `config.json` of a Phi-3. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Phi3Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    pub resid_pdrop: f64,
    pub attention_dropout: f64,
    pub hidden_act: Activation,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub sliding_window: Option<usize>,
    #[serde(flatten)]
    pub labels: LabelConfig,
    /// Frequencies of the rotation; `longrope` has others for long texts.
    #[serde(skip)]
    pub rope: Option<Rope>,
}

impl Default for Phi3Config {
    fn default() -> Self {
        Self {
            vocab_size: 32064,
            hidden_size: 3072,
            intermediate_size: 8192,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            resid_pdrop: 0.0,
            attention_dropout: 0.0,
            hidden_act: Activation::Silu,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            sliding_window: None,
            labels: LabelConfig::default(),
            rope: None,
        }
    }
}

impl ModelConfig for Phi3Config {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        raw.json.entry("pad_token_id").or_insert(json!(32000));
        raw.json.entry("original_max_position_embeddings").or_insert(json!(4096));
        // Old names of what `longrope` is.
        for dictionary in ["rope_scaling", "rope_parameters"] {
            for field in ["rope_type", "type"] {
                let kind = raw.json.get_mut(dictionary).and_then(|it| it.get_mut(field));
                if let Some(kind) = kind.filter(|it| it.as_str().is_some_and(|it| ["su", "yarn"].contains(&it))) {
                    *kind = Value::from("longrope");
                }
            }
        }
        let mut config: Self = raw.parse(&[])?;
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        heads_divide(("num_key_value_heads", config.kv_heads()), ("num_attention_heads", config.num_attention_heads))?;
        config.rope = Some(Rope::from_raw(&raw, config.d_head(), config.max_position_embeddings)?);
        Ok(config)
    }
}

impl Phi3Config {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn d_head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }
}

/// Self-attention with rotary positions; several query heads may share a key head.
#[derive(Module, Debug)]
pub struct Phi3Attention {
    /// All queries, all keys, all values: `[(heads + 2 · kv_heads) · d_head, d_model]`.
    pub qkv_proj: Projection,
    /// `[d_model, heads · d_head]`
    pub o_proj: Projection,
    dropout: Dropout,
    heads: usize,
    kv_heads: usize,
    d_head: usize,
}

impl Phi3Attention {
    fn new(config: &Phi3Config, device: &Device) -> Self {
        let (heads, kv_heads, d_head) = (config.num_attention_heads, config.kv_heads(), config.d_head());
        Self {
            qkv_proj: Projection::new(config.hidden_size, (heads + 2 * kv_heads) * d_head, false, device),
            o_proj: Projection::new(heads * d_head, config.hidden_size, false, device),
            dropout: Dropout::new(config.attention_dropout),
            heads,
            kv_heads,
            d_head,
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
        let sizes = [self.heads, self.kv_heads, self.kv_heads].map(|it| it * self.d_head);
        let parts = split(self.qkv_proj.forward(hidden), sizes);
        let [query, key, value] = parts.map(|it| split_heads(it, self.d_head));
        let (key, value) = extend_cache(cache, layer, rotary.rotate(key), value);
        let mixed = attention(rotary.rotate(query), key, value, mask, (self.d_head as f64).powf(-0.5), &self.dropout);
        self.o_proj.forward(merge_heads(mixed))
    }
}

/// `down(act(gate) · up)`, where one layer gives gate and up.
#[derive(Module, Debug)]
pub struct Phi3Mlp {
    /// `[2 · d_inner, d_model]`
    pub gate_up_proj: Projection,
    /// `[d_model, d_inner]`
    pub down_proj: Projection,
    #[module(skip)]
    act: Activation,
}

impl Phi3Mlp {
    fn new(config: &Phi3Config, device: &Device) -> Self {
        let (d_model, d_inner) = (config.hidden_size, config.intermediate_size);
        Self {
            gate_up_proj: Projection::new(d_model, 2 * d_inner, false, device),
            down_proj: Projection::new(d_inner, d_model, false, device),
            act: config.hidden_act,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let fused = self.gate_up_proj.forward(hidden);
        let half = fused.dims()[2] / 2;
        let [gate, up] = split(fused, [half; 2]);
        self.down_proj.forward(self.act.gate(gate, up))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Phi3Layer {
    pub input_layernorm: RmsNorm,
    pub self_attn: Phi3Attention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: Phi3Mlp,
    dropout: Dropout,
}

impl Phi3Layer {
    fn new(config: &Phi3Config, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: Phi3Attention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: Phi3Mlp::new(config, device),
            dropout: Dropout::new(config.resid_pdrop),
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
        let attended = self.self_attn.forward(self.input_layernorm.forward(hidden.clone()), layer, rotary, mask, cache);
        let hidden = hidden + self.dropout.forward(attended);
        let inner = self.mlp.forward(self.post_attention_layernorm.forward(hidden.clone()));
        hidden + self.dropout.forward(inner)
    }
}

/// The stack without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Phi3Model {
    pub embed_tokens: Embedding,
    pub layers: Vec<Phi3Layer>,
    pub norm: RmsNorm,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    config: Phi3Config,
}

impl Phi3Model {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &Phi3Config, device: &Device) -> Self {
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_hidden_layers).map(|_| Phi3Layer::new(config, device)).collect(),
            norm: RmsNorm::new(config.hidden_size, config.rms_norm_eps, device),
            rope: config.rope.clone().unwrap_or_else(|| Rope::plain(10_000.0, config.d_head())),
            config: config.clone(),
        }
    }
}

impl Decoder for Phi3Model {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let rotary = self.rope.table(input, past);
        let mask = mask::causal(input, past, self.config.sliding_window);
        let mut hidden = input.tokens.embed(|ids| self.embed_tokens.forward(ids));
        for (at, layer) in self.layers.iter().enumerate() {
            let read = &(rotary.clone(), mask.clone());
            hidden = layers::run((layer, at), hidden, read, cache.as_deref_mut(), move |layer, hidden, read, cache| {
                layer.forward(hidden, at, &read.0, read.1.as_ref(), cache)
            });
        }
        self.norm.forward(hidden)
    }

    fn embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn prompts(&self) -> PromptShape {
        PromptShape {
            table: "embed_tokens".into(),
            d_model: self.config.hidden_size,
            layers: self.layers.len(),
            heads: self.config.num_attention_heads,
            kv_heads: self.config.kv_heads(),
            d_head: self.config.d_head(),
        }
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.layers, order)
    }

    fn model_type(&self) -> &'static str {
        "phi3"
    }

    fn cache_limit(&self) -> Option<usize> {
        self.rope.short_texts()
    }
}

decoder_heads! {
    Phi3Model, Phi3Config, model: hidden_size,
    causal: Phi3ForCausalLm,
    classifier: Phi3ForSequenceClassification,
}

token_heads! {
    Phi3Model, Phi3Config, model: Phi3Model::new,
    width: |it| it.hidden_size,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: Phi3ForTokenClassification(score),
}
