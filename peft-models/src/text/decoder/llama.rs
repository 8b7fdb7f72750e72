//! LLaMA, and its relatives Mistral, Qwen2 and Qwen3, which are the same network with other switches.
//!
//! Source: `transformers/models/{llama,mistral,qwen2,qwen3}/modeling_*.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, Projection, RmsNorm};
use peft_core::ops::{AttentionMask, RotaryTable, attention};
use peft_core::{PeftError, PromptShape, Result, forward};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide, types_of, windows_of};
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
    Architecture::new(["llama", "mistral", "qwen2", "qwen3"], BASE_PREFIX)
        .causal_lm(LlamaForCausalLm::new)
        .sequence_classifier(LlamaForSequenceClassification::new)
        .token_classifier(LlamaForTokenClassification::new)
        .feature_extractor(LlamaModel::new)
}

/// Whose `config.json` it is: the families differ in their defaults and in what they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    /// `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// What holds where a file is silent: transformers' own defaults, as far as they differ between the families.
    fn defaults(self) -> [(&'static str, Value); 6] {
        let [inner, kv_heads, positions, window] = match self {
            Self::Llama => [json!(11008), Value::Null, json!(2048), Value::Null],
            Self::Mistral => [json!(14336), json!(8), json!(4096 * 32), json!(4096)],
            Self::Qwen2 | Self::Qwen3 => [json!(22016), json!(32), json!(32768), json!(4096)],
        };
        let is_qwen = matches!(self, Self::Qwen2 | Self::Qwen3);
        [
            ("vocab_size", json!(if is_qwen { 151_936 } else { 32_000 })),
            ("head_dim", if self == Self::Qwen3 { json!(128) } else { Value::Null }),
            ("intermediate_size", inner),
            ("num_key_value_heads", kv_heads),
            ("max_position_embeddings", positions),
            ("sliding_window", window),
        ]
    }
}

/// The file as it is written; [`LlamaConfig`] is what it means.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct LlamaFile {
    model_type: Family,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Activation,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    attention_bias: bool,
    attention_dropout: f64,
    mlp_bias: bool,
    sliding_window: Option<usize>,
    use_sliding_window: bool,
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
    #[serde(flatten)]
    labels: LabelConfig,
}

impl Default for LlamaFile {
    fn default() -> Self {
        Self {
            model_type: Family::Llama,
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            attention_bias: false,
            attention_dropout: 0.0,
            mlp_bias: false,
            sliding_window: None,
            use_sliding_window: false,
            max_window_layers: 28,
            layer_types: None,
            labels: LabelConfig::default(),
        }
    }
}

impl LlamaFile {
    /// The window of every layer.
    fn windows(&self) -> Result<Vec<Option<usize>>> {
        match self.model_type {
            Family::Llama => Ok(vec![None; self.num_hidden_layers]),
            Family::Mistral => Ok(vec![self.sliding_window; self.num_hidden_layers]),
            Family::Qwen2 | Family::Qwen3 => self.windows_of_qwen(),
        }
    }

    fn windows_of_qwen(&self) -> Result<Vec<Option<usize>>> {
        let window = self.sliding_window.filter(|_| self.use_sliding_window);
        match &self.layer_types {
            Some(types) => windows_of(types, self.num_hidden_layers, window),
            None => Ok((0..self.num_hidden_layers).map(|at| window.filter(|_| at >= self.max_window_layers)).collect()),
        }
    }
}

/// What a `config.json` of the family means.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct LlamaConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_inner: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d_head: usize,
    /// One entry for every layer: how many tokens a query sees, itself among them; `None` is no limit.
    pub windows: Vec<Option<usize>>,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised, head by head.
    pub qk_norm: bool,
    pub act: Activation,
    pub rms_norm_eps: f64,
    pub attention_dropout: f64,
    pub rope: Rope,
    pub tie_word_embeddings: bool,
    pub labels: LabelConfig,
}

impl ModelConfig for LlamaConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        let family = Family::deserialize(raw.json.get("model_type").unwrap_or(&Value::Null))
            .map_err(|error| PeftError::config("model_type", error))?;
        for (field, value) in family.defaults() {
            raw.json.entry(field).or_insert(value);
        }
        let file: LlamaFile = raw.parse(&[])?;

        let heads = file.num_attention_heads;
        if file.head_dim.is_none() {
            heads_divide(("num_attention_heads", heads), ("hidden_size", file.hidden_size))?;
        }
        let kv_heads = file.num_key_value_heads.unwrap_or(heads);
        heads_divide(("num_key_value_heads", kv_heads), ("num_attention_heads", heads))?;
        let d_head = file.head_dim.unwrap_or_else(|| file.hidden_size / heads);
        let rope = Rope::from_raw(&raw, d_head, file.max_position_embeddings)?;
        if rope.rotary() != d_head {
            // The reference's own LLaMA ignores the factor or fails on it, as the type of rotation goes.
            let reason = "models of this family rotate whole heads; set it to 1";
            return Err(PeftError::unsupported("partial_rotary_factor", reason));
        }
        Ok(Self {
            family,
            vocab_size: file.vocab_size,
            d_model: file.hidden_size,
            d_inner: file.intermediate_size,
            heads,
            kv_heads,
            d_head,
            windows: file.windows()?,
            qkv_bias: match family {
                Family::Llama | Family::Qwen3 => file.attention_bias,
                Family::Mistral => false,
                Family::Qwen2 => true,
            },
            o_bias: matches!(family, Family::Llama | Family::Qwen3) && file.attention_bias,
            mlp_bias: family == Family::Llama && file.mlp_bias,
            qk_norm: family == Family::Qwen3,
            act: file.hidden_act,
            rms_norm_eps: file.rms_norm_eps,
            attention_dropout: file.attention_dropout,
            rope,
            tie_word_embeddings: file.tie_word_embeddings,
            labels: file.labels,
        })
    }
}

/// Self-attention with rotary positions; several query heads may share a key head.
#[derive(Module, Debug)]
pub struct LlamaAttention {
    /// `[heads · d_head, d_model]`
    pub q_proj: Projection,
    /// `[kv_heads · d_head, d_model]`
    pub k_proj: Projection,
    /// `[kv_heads · d_head, d_model]`
    pub v_proj: Projection,
    /// `[d_model, heads · d_head]`
    pub o_proj: Projection,
    /// Over a head, `[d_head]`.
    pub q_norm: Option<RmsNorm>,
    /// Over a head, `[d_head]`.
    pub k_norm: Option<RmsNorm>,
    dropout: Dropout,
    d_head: usize,
}

impl LlamaAttention {
    fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (d_query, d_key) = (config.heads * config.d_head, config.kv_heads * config.d_head);
        let norm = || config.qk_norm.then(|| RmsNorm::new(config.d_head, config.rms_norm_eps, device));
        Self {
            q_proj: Projection::new(config.d_model, d_query, config.qkv_bias, device),
            k_proj: Projection::new(config.d_model, d_key, config.qkv_bias, device),
            v_proj: Projection::new(config.d_model, d_key, config.qkv_bias, device),
            o_proj: Projection::new(d_query, config.d_model, config.o_bias, device),
            q_norm: norm(),
            k_norm: norm(),
            dropout: Dropout::new(config.attention_dropout),
            d_head: config.d_head,
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
        let prompted = forward::gated(&self.o_proj.weight, &query, |tokens| {
            (split(self.k_proj.forward(tokens.clone())), split(self.v_proj.forward(tokens)))
        });
        let (key, value) = extend_cache(cache, layer, key, value);
        let scale = (self.d_head as f64).powf(-0.5);
        let mixed = attention(query, key, value, mask, scale, &self.dropout);
        let project = |mixed| self.o_proj.forward(merge_heads(mixed));
        match prompted {
            Some(prompted) => project(mixed) + project(prompted),
            None => project(mixed),
        }
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LlamaLayer {
    pub input_layernorm: RmsNorm,
    pub self_attn: LlamaAttention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: GatedMlp,
}

impl LlamaLayer {
    fn new(config: &LlamaConfig, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.d_model, config.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: LlamaAttention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: GatedMlp::new(config.d_model, config.d_inner, config.mlp_bias, config.act, device),
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
        let normal = self.input_layernorm.forward(hidden.clone());
        let hidden = hidden + self.self_attn.forward(normal, layer, rotary, mask, cache);
        hidden.clone() + self.mlp.forward(self.post_attention_layernorm.forward(hidden))
    }
}

/// The stack without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LlamaModel {
    pub embed_tokens: Embedding,
    pub layers: Vec<LlamaLayer>,
    pub norm: RmsNorm,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    windows: Vec<Option<usize>>,
    #[module(skip)]
    family: Family,
    #[module(skip)]
    prompts: PromptShape,
}

impl LlamaModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &LlamaConfig, device: &Device) -> Self {
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.d_model, device),
            layers: config.windows.iter().map(|_| LlamaLayer::new(config, device)).collect(),
            norm: RmsNorm::new(config.d_model, config.rms_norm_eps, device),
            rope: config.rope.clone(),
            windows: config.windows.clone(),
            family: config.family,
            prompts: PromptShape {
                table: "embed_tokens".into(),
                d_model: config.d_model,
                layers: config.windows.len(),
                heads: config.heads,
                kv_heads: config.kv_heads,
                d_head: config.d_head,
            },
        }
    }
}

impl Decoder for LlamaModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let rotary = self.rope.table(input, past);
        let masks = mask::per_window(&self.windows, |window| mask::causal(input, past, window));
        let mut hidden = input.tokens.embed(|ids| self.embed_tokens.forward(ids));
        for (at, (layer, window)) in self.layers.iter().zip(&self.windows).enumerate() {
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
        self.prompts.clone()
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.layers, order)?;
        self.prompts.layers = order.len();
        layers::reorder(&mut self.windows, order)
    }

    fn layer_types(&self) -> Option<Vec<String>> {
        // The others have one window for all.
        matches!(self.family, Family::Qwen2 | Family::Qwen3).then(|| types_of(&self.windows))
    }

    fn model_type(&self) -> &'static str {
        self.family.model_type()
    }
}

decoder_heads! {
    LlamaModel, LlamaConfig, model: d_model,
    causal: LlamaForCausalLm,
    classifier: LlamaForSequenceClassification,
}

token_heads! {
    LlamaModel, LlamaConfig, model: LlamaModel::new,
    width: |it| it.d_model,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: LlamaForTokenClassification(score),
}
