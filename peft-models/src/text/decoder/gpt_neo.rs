//! GPT-Neo. Source: `transformers/models/gpt_neo/modeling_gpt_neo.py` (5.23).

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{PeftError, PromptShape, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide, types_of};
use crate::common::decoder::Decoder;
use crate::common::heads::decoder::decoder_heads;
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "transformer.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["gpt_neo"], BASE_PREFIX)
        .causal_lm(GptNeoForCausalLm::new)
        .sequence_classifier(GptNeoForSequenceClassification::new)
        .token_classifier(GptNeoForTokenClassification::new)
        .feature_extractor(GptNeoModel::new)
}

/// `config.json` of a GPT-Neo. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct GptNeoConfig {
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    attention_types: Option<Vec<(Vec<AttentionType>, usize)>>,
    pub num_heads: usize,
    pub intermediate_size: Option<usize>,
    pub window_size: usize,
    pub activation_function: Activation,
    pub resid_dropout: f64,
    pub embed_dropout: f64,
    pub attention_dropout: f64,
    pub layer_norm_epsilon: f64,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
    /// One entry for every layer: how many tokens a query sees, itself among them; `None` is no limit.
    #[serde(skip)]
    pub windows: Vec<Option<usize>>,
}

/// How far a layer looks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AttentionType {
    Global,
    Local,
}

impl Default for GptNeoConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            max_position_embeddings: 2048,
            hidden_size: 2048,
            num_layers: 24,
            attention_types: None,
            num_heads: 16,
            intermediate_size: None,
            window_size: 256,
            activation_function: Activation::GeluNew,
            resid_dropout: 0.0,
            embed_dropout: 0.0,
            attention_dropout: 0.0,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
            labels: LabelConfig::default(),
            windows: Vec::new(),
        }
    }
}

impl ModelConfig for GptNeoConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let names = [("num_hidden_layers", "num_layers"), ("num_attention_heads", "num_heads")];
        let mut config: Self = raw.renamed(&names).parse(&[])?;
        heads_divide(("num_heads", config.num_heads), ("hidden_size", config.hidden_size))?;
        let groups = config.attention_types.take();
        let groups = groups.unwrap_or_else(|| vec![(vec![AttentionType::Global, AttentionType::Local], 12)]);
        let types = groups.iter().flat_map(|(types, times)| types.repeat(*times));
        config.windows = types.map(|it| (it == AttentionType::Local).then_some(config.window_size)).collect();
        if config.windows.len() != config.num_layers {
            let reason = format!("names {} layers, `num_layers` is {}", config.windows.len(), config.num_layers);
            return Err(PeftError::config("attention_types", reason));
        }
        Ok(config)
    }
}

/// Self-attention whose scores are not scaled.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptNeoSelfAttention {
    pub k_proj: Projection,
    pub v_proj: Projection,
    pub q_proj: Projection,
    pub out_proj: Projection,
    attn_dropout: Dropout,
    resid_dropout: Dropout,
    heads: usize,
}

impl GptNeoSelfAttention {
    fn new(config: &GptNeoConfig, device: &Device) -> Self {
        let projection = |bias| Projection::new(config.hidden_size, config.hidden_size, bias, device);
        Self {
            k_proj: projection(false),
            v_proj: projection(false),
            q_proj: projection(false),
            out_proj: projection(true),
            attn_dropout: Dropout::new(config.attention_dropout),
            resid_dropout: Dropout::new(config.resid_dropout),
            heads: config.num_heads,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let split = |projected| split_heads(projected, d_head);
        let query = split(self.q_proj.forward(hidden.clone()));
        let key = split(self.k_proj.forward(hidden.clone()));
        let value = split(self.v_proj.forward(hidden));
        let (key, value) = extend_cache(cache, layer, key, value);
        let mixed = attention(query, key, value, mask, 1.0, &self.attn_dropout);
        let mixed = merge_heads(mixed);
        self.resid_dropout.forward(self.out_proj.forward(mixed))
    }
}

/// A level of names that checkpoints have.
#[derive(Module, Debug)]
pub struct GptNeoAttention {
    /// The attention itself.
    pub attention: GptNeoSelfAttention,
}

/// Two layers with an activation between them.
#[derive(Module, Debug)]
pub struct GptNeoMlp {
    /// `[d_inner, d_model]`
    pub c_fc: Projection,
    /// `[d_model, d_inner]`
    pub c_proj: Projection,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl GptNeoMlp {
    fn new(config: &GptNeoConfig, device: &Device) -> Self {
        let d_inner = config.intermediate_size.unwrap_or(4 * config.hidden_size);
        Self {
            c_fc: Projection::new(config.hidden_size, d_inner, true, device),
            c_proj: Projection::new(d_inner, config.hidden_size, true, device),
            dropout: Dropout::new(config.resid_dropout),
            act: config.activation_function,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.dropout.forward(self.c_proj.forward(self.act.apply(self.c_fc.forward(hidden))))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptNeoBlock {
    pub ln_1: LayerNorm,
    pub attn: GptNeoAttention,
    pub ln_2: LayerNorm,
    pub mlp: GptNeoMlp,
}

impl GptNeoBlock {
    fn new(config: &GptNeoConfig, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_epsilon, device);
        Self {
            ln_1: norm(),
            attn: GptNeoAttention { attention: GptNeoSelfAttention::new(config, device) },
            ln_2: norm(),
            mlp: GptNeoMlp::new(config, device),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let normal = self.ln_1.forward(hidden.clone());
        let hidden = hidden + self.attn.attention.forward(normal, layer, mask, cache);
        hidden.clone() + self.mlp.forward(self.ln_2.forward(hidden))
    }
}

/// GPT-Neo without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptNeoModel {
    pub wte: Embedding,
    pub wpe: Embedding,
    pub h: Vec<GptNeoBlock>,
    pub ln_f: LayerNorm,
    drop: Dropout,
    #[module(skip)]
    windows: Vec<Option<usize>>,
    #[module(skip)]
    prompts: PromptShape,
}

impl GptNeoModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &GptNeoConfig, device: &Device) -> Self {
        Self {
            wte: Embedding::new(config.vocab_size, config.hidden_size, device),
            wpe: Embedding::new(config.max_position_embeddings, config.hidden_size, device),
            h: config.windows.iter().map(|_| GptNeoBlock::new(config, device)).collect(),
            ln_f: LayerNorm::new(config.hidden_size, config.layer_norm_epsilon, device),
            drop: Dropout::new(config.embed_dropout),
            windows: config.windows.clone(),
            prompts: PromptShape::even("wte", config.hidden_size, config.windows.len(), config.num_heads),
        }
    }
}

impl Decoder for GptNeoModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let mut hidden = input.tokens.embed(|ids| self.wte.forward(ids)) + self.wpe.forward(input.positions(past));
        if let Some(types) = &input.token_type_ids {
            hidden = hidden + self.wte.forward(types.clone());
        }
        hidden = self.drop.forward(hidden);
        let masks = mask::per_window(&self.windows, |window| mask::causal_twice(input, past, window));
        for (layer, (block, window)) in self.h.iter().zip(&self.windows).enumerate() {
            let mask = &masks[window];
            hidden =
                layers::run((block, layer), hidden, mask, cache.as_deref_mut(), move |block, hidden, mask, cache| {
                    block.forward(hidden, layer, mask.as_ref(), cache)
                });
        }
        self.ln_f.forward(hidden)
    }

    fn embedding(&self) -> &Embedding {
        &self.wte
    }

    fn prompts(&self) -> PromptShape {
        self.prompts.clone()
    }

    fn positions(&self) -> Option<Range<i64>> {
        Some(0..self.wpe.rows() as i64)
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.h, order)?;
        self.prompts.layers = order.len();
        layers::reorder(&mut self.windows, order)
    }

    fn layer_types(&self) -> Option<Vec<String>> {
        Some(types_of(&self.windows))
    }

    fn model_type(&self) -> &'static str {
        "gpt_neo"
    }
}

decoder_heads! {
    GptNeoModel, GptNeoConfig, transformer: hidden_size,
    causal: GptNeoForCausalLm,
    classifier: GptNeoForSequenceClassification,
}

token_heads! {
    GptNeoModel, GptNeoConfig, transformer: GptNeoModel::new,
    width: |it| it.hidden_size,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: GptNeoForTokenClassification(classifier),
}
