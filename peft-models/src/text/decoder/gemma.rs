//! Gemma 2 and Gemma 3, the part that reads text.
//!
//! Source: `transformers/models/{gemma2,gemma3}/modeling_*.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, Projection, RmsNorm};
use peft_core::ops::{AttentionMask, RotaryTable, attention, attention_capped};
use peft_core::{PeftError, PromptShape, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{
    Activation, FULL_ATTENTION, LabelConfig, RawConfig, SLIDING_ATTENTION, heads_divide, types_of, windows_of,
};
use crate::common::decoder::Decoder;
use crate::common::gated_mlp::GatedMlp;
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
    Architecture::new(["gemma2", "gemma3_text"], BASE_PREFIX)
        .causal_lm(GemmaForCausalLm::new)
        .sequence_classifier(GemmaForSequenceClassification::new)
        .token_classifier(GemmaForTokenClassification::new)
        .feature_extractor(GemmaModel::new)
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum Generation {
    #[serde(rename = "gemma2")]
    Second,
    #[serde(rename = "gemma3_text")]
    Third,
}

/// The file as it is written; [`GemmaConfig`] is what it means.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct GemmaFile {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    hidden_activation: Activation,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    attention_bias: bool,
    attention_dropout: Option<f64>,
    query_pre_attn_scalar: f64,
    sliding_window: Option<usize>,
    sliding_window_pattern: usize,
    layer_types: Option<Vec<String>>,
    #[serde(flatten)]
    labels: LabelConfig,
}

impl Default for GemmaFile {
    fn default() -> Self {
        Self {
            vocab_size: 256_000,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            hidden_activation: Activation::GeluNew,
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: false,
            attention_dropout: None,
            query_pre_attn_scalar: 256.0,
            sliding_window: Some(4096),
            sliding_window_pattern: 2,
            layer_types: None,
            labels: LabelConfig::default(),
        }
    }
}

impl GemmaFile {
    /// The window of every layer; where the file names no types, the last of every group of layers has none.
    fn windows(&self) -> Result<Vec<Option<usize>>> {
        let group = self.sliding_window_pattern.max(1);
        let default = || {
            let is_last = |layer: usize| (layer + 1).is_multiple_of(group);
            let name = |layer| if is_last(layer) { FULL_ATTENTION } else { SLIDING_ATTENTION };
            (0..self.num_hidden_layers).map(|layer| name(layer).to_owned()).collect()
        };
        let types = self.layer_types.clone().unwrap_or_else(default);
        windows_of(&types, self.num_hidden_layers, self.sliding_window)
    }
}

/// What a `config.json` of either generation means.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct GemmaConfig {
    pub generation: Generation,
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_inner: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d_head: usize,
    /// One entry for every layer: how many tokens a query sees, itself among them; `None` is no limit.
    pub windows: Vec<Option<usize>>,
    pub attention_bias: bool,
    pub attention_dropout: f64,
    pub act: Activation,
    pub rms_norm_eps: f64,
    /// Factor of the scores of attention.
    pub attention_scale: f64,
    /// What scores of attention are bent to; the third generation has none.
    pub attention_cap: Option<f64>,
    /// Soft cap of the logits over the vocabulary.
    pub logit_cap: Option<f64>,
    /// Of layers without a window.
    pub rope: Rope,
    /// Of layers with a window.
    pub local_rope: Rope,
    pub tie_word_embeddings: bool,
    pub labels: LabelConfig,
}

impl ModelConfig for GemmaConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        let generation = Generation::deserialize(raw.json.get("model_type").unwrap_or(&Value::Null))
            .map_err(|error| PeftError::config("model_type", error))?;
        // Other architectures refuse both fields. A cap of null is none, a file that does not speak of it has the default.
        let mut cap = |field: &str, default: Option<f64>| match raw.json.remove(field) {
            Some(given) => given.as_f64(),
            None => default,
        };
        let is_second = generation == Generation::Second;
        let attention_cap = cap("attn_logit_softcapping", Some(50.0)).filter(|_| is_second);
        let logit_cap = cap("final_logit_softcapping", is_second.then_some(30.0));
        let mut default = |field: &str, value: Value| {
            raw.json.entry(field).or_insert(value);
        };
        default("pad_token_id", json!(0));
        if !is_second {
            default("vocab_size", json!(262_208));
            default("max_position_embeddings", json!(131_072));
            default("sliding_window_pattern", json!(6));
        }
        let file: GemmaFile = raw.parse(&["use_bidirectional_attention"])?;
        heads_divide(
            ("num_key_value_heads", file.num_key_value_heads),
            ("num_attention_heads", file.num_attention_heads),
        )?;

        let (d_head, positions) = (file.head_dim, file.max_position_embeddings);
        let (rope, local_rope) = if is_second {
            let rope = Rope::from_raw(&raw, d_head, positions)?;
            (rope.clone(), rope)
        } else {
            let mut local = raw.clone();
            local.json.remove("rope_scaling");
            let theta = local.json.remove("rope_local_base_freq").unwrap_or(json!(10_000.0));
            local.json.insert("rope_theta".to_owned(), theta);
            (
                Rope::of_layers(&raw, FULL_ATTENTION, 1_000_000.0, d_head, positions)?,
                Rope::of_layers(&local, SLIDING_ATTENTION, 10_000.0, d_head, positions)?,
            )
        };
        if [&rope, &local_rope].iter().any(|it| it.rotary() != d_head) {
            let reason = "models of this family turn whole heads; set it to 1";
            return Err(PeftError::unsupported("partial_rotary_factor", reason));
        }
        Ok(Self {
            generation,
            vocab_size: file.vocab_size,
            d_model: file.hidden_size,
            d_inner: file.intermediate_size,
            heads: file.num_attention_heads,
            kv_heads: file.num_key_value_heads,
            d_head,
            windows: file.windows()?,
            attention_bias: file.attention_bias,
            attention_dropout: file.attention_dropout.unwrap_or(0.0),
            act: file.hidden_activation,
            rms_norm_eps: file.rms_norm_eps,
            attention_scale: file.query_pre_attn_scalar.powf(-0.5),
            attention_cap,
            logit_cap,
            rope,
            local_rope,
            tie_word_embeddings: file.tie_word_embeddings,
            labels: file.labels,
        })
    }
}

/// Self-attention with rotary positions; several query heads may share a key head.
#[derive(Module, Debug)]
pub struct GemmaAttention {
    /// `[heads · d_head, d_model]`
    pub q_proj: Projection,
    /// `[kv_heads · d_head, d_model]`
    pub k_proj: Projection,
    /// `[kv_heads · d_head, d_model]`
    pub v_proj: Projection,
    /// `[d_model, heads · d_head]`
    pub o_proj: Projection,
    /// Over a head, `[d_head]`; in the third generation.
    pub q_norm: Option<RmsNorm>,
    /// Over a head, `[d_head]`; in the third generation.
    pub k_norm: Option<RmsNorm>,
    dropout: Dropout,
    d_head: usize,
    scale: f64,
    cap: Option<f64>,
}

impl GemmaAttention {
    fn new(config: &GemmaConfig, device: &Device) -> Self {
        let (d_query, d_key) = (config.heads * config.d_head, config.kv_heads * config.d_head);
        let project = |d_input, d_output| Projection::new(d_input, d_output, config.attention_bias, device);
        let has_norms = config.generation == Generation::Third;
        let norm = || has_norms.then(|| RmsNorm::around_one(config.d_head, config.rms_norm_eps, device));
        Self {
            q_proj: project(config.d_model, d_query),
            k_proj: project(config.d_model, d_key),
            v_proj: project(config.d_model, d_key),
            o_proj: project(d_query, config.d_model),
            q_norm: norm(),
            k_norm: norm(),
            dropout: Dropout::new(config.attention_dropout),
            d_head: config.d_head,
            scale: config.attention_scale,
            cap: config.attention_cap,
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
        let split = |projected| split_heads(projected, self.d_head);
        let normal = |norm: &Option<RmsNorm>, heads: Tensor<4>| match norm {
            Some(norm) => norm.forward(heads),
            None => heads,
        };
        let query = rotary.rotate(normal(&self.q_norm, split(self.q_proj.forward(hidden.clone()))));
        let key = rotary.rotate(normal(&self.k_norm, split(self.k_proj.forward(hidden.clone()))));
        let value = split(self.v_proj.forward(hidden));
        let (key, value) = extend_cache(cache, layer, key, value);
        let mixed = match self.cap {
            Some(cap) => attention_capped(query, key, value, mask, self.scale, cap, &self.dropout),
            None => attention(query, key, value, mask, self.scale, &self.dropout),
        };
        self.o_proj.forward(merge_heads(mixed))
    }
}

/// One layer of the stack: a norm before and a norm behind each of its halves.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GemmaLayer {
    pub input_layernorm: RmsNorm,
    pub self_attn: GemmaAttention,
    pub post_attention_layernorm: RmsNorm,
    pub pre_feedforward_layernorm: RmsNorm,
    pub mlp: GatedMlp,
    pub post_feedforward_layernorm: RmsNorm,
}

impl GemmaLayer {
    fn new(config: &GemmaConfig, device: &Device) -> Self {
        let norm = || RmsNorm::around_one(config.d_model, config.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: GemmaAttention::new(config, device),
            post_attention_layernorm: norm(),
            pre_feedforward_layernorm: norm(),
            mlp: GatedMlp::new(config.d_model, config.d_inner, false, config.act, device),
            post_feedforward_layernorm: norm(),
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
        let hidden = hidden + self.post_attention_layernorm.forward(attended);
        let inner = self.mlp.forward(self.pre_feedforward_layernorm.forward(hidden.clone()));
        hidden + self.post_feedforward_layernorm.forward(inner)
    }
}

/// The stack without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GemmaModel {
    pub embed_tokens: Embedding,
    pub layers: Vec<GemmaLayer>,
    pub norm: RmsNorm,
    #[module(skip)]
    config: GemmaConfig,
}

impl GemmaModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &GemmaConfig, device: &Device) -> Self {
        let table = Embedding::new(config.vocab_size, config.d_model, device);
        Self {
            embed_tokens: table.with_scale((config.d_model as f64).sqrt()),
            layers: config.windows.iter().map(|_| GemmaLayer::new(config, device)).collect(),
            norm: RmsNorm::around_one(config.d_model, config.rms_norm_eps, device),
            config: config.clone(),
        }
    }
}

impl Decoder for GemmaModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let (whole, local) = (self.config.rope.table(input, past), self.config.local_rope.table(input, past));
        let masks = mask::per_window(&self.config.windows, |window| match self.config.generation {
            Generation::Second => mask::causal_added(input, past, window),
            Generation::Third => mask::causal(input, past, window),
        });
        let mut hidden = input.tokens.embed(|ids| self.embed_tokens.forward(ids));
        for (at, (layer, window)) in self.layers.iter().zip(&self.config.windows).enumerate() {
            let rotary = if window.is_some() { &local } else { &whole };
            let read = &(rotary.clone(), masks[window].clone());
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
            d_model: self.config.d_model,
            layers: self.layers.len(),
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            d_head: self.config.d_head,
        }
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.layers, order)?;
        layers::reorder(&mut self.config.windows, order)
    }

    fn layer_types(&self) -> Option<Vec<String>> {
        Some(types_of(&self.config.windows))
    }

    fn model_type(&self) -> &'static str {
        match self.config.generation {
            Generation::Second => "gemma2",
            Generation::Third => "gemma3_text",
        }
    }

    fn logit_cap(&self) -> Option<f64> {
        self.config.logit_cap
    }
}

decoder_heads! {
    GemmaModel, GemmaConfig, model: d_model,
    causal: GemmaForCausalLm,
    classifier: GemmaForSequenceClassification,
}

token_heads! {
    GemmaModel, GemmaConfig, model: GemmaModel::new,
    width: |it| it.d_model,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: GemmaForTokenClassification(score),
}
