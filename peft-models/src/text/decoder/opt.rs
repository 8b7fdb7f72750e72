//! OPT. Source: `transformers/models/opt/modeling_opt.py` (5.23).

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{self, AttentionMask, attention};
use peft_core::{PromptShape, Result};
use serde::Deserialize;

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

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "model.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["opt"], BASE_PREFIX)
        .causal_lm(OptForCausalLm::new)
        .sequence_classifier(OptForSequenceClassification::new)
        .token_classifier(OptForTokenClassification::new)
        .feature_extractor(OptModel::new)
}

/// The table of positions starts with rows for no position.
const POSITION_OFFSET: usize = 2;

const LAYER_NORM_EPSILON: f64 = 1e-5;

/// `config.json` of an OPT. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct OptConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub ffn_dim: usize,
    pub max_position_embeddings: usize,
    pub do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    pub remove_final_layer_norm: bool,
    word_embed_proj_dim: Option<usize>,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub num_attention_heads: usize,
    pub activation_function: Activation,
    pub enable_bias: bool,
    layer_norm_elementwise_affine: bool,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
    /// Width of the embeddings and of the output.
    #[serde(skip)]
    pub d_embed: usize,
}

impl Default for OptConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            max_position_embeddings: 2048,
            do_layer_norm_before: true,
            remove_final_layer_norm: false,
            word_embed_proj_dim: None,
            dropout: 0.1,
            attention_dropout: 0.0,
            num_attention_heads: 12,
            activation_function: Activation::Relu,
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            tie_word_embeddings: true,
            labels: LabelConfig::default(),
            d_embed: 768,
        }
    }
}

impl ModelConfig for OptConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        // A `pad_token_id` of null is none, a file that does not speak of it has 1.
        raw.json.entry("pad_token_id").or_insert(1.into());
        let mut config: Self = raw.parse(&["layerdrop"])?;
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        config.d_embed = config.word_embed_proj_dim.unwrap_or(config.hidden_size);
        Ok(config)
    }
}

impl OptConfig {
    fn norm(&self, device: &Device) -> OptNorm {
        match self.layer_norm_elementwise_affine {
            true => OptNorm::Affine(LayerNorm::new(self.hidden_size, LAYER_NORM_EPSILON, device)),
            false => OptNorm::Plain(PlainNorm { epsilon: LAYER_NORM_EPSILON }),
        }
    }
}

/// Normalisation by mean and variance, with weights or without.
#[derive(Module, Debug)]
pub enum OptNorm {
    /// With weights.
    Affine(LayerNorm),
    /// Without: `layer_norm_elementwise_affine` is false.
    Plain(PlainNorm),
}

/// Normalisation that has no weights.
#[derive(Module, Debug)]
pub struct PlainNorm {
    epsilon: f64,
}

impl OptNorm {
    fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Affine(norm) => norm.forward(input),
            Self::Plain(norm) => {
                let (width, device) = (input.dims()[2], input.device());
                ops::layer_norm(input, Tensor::ones([width], &device), Tensor::zeros([width], &device), norm.epsilon)
            }
        }
    }
}

/// Self-attention.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct OptAttention {
    pub k_proj: Projection,
    pub v_proj: Projection,
    pub q_proj: Projection,
    pub out_proj: Projection,
    dropout: Dropout,
    heads: usize,
}

impl OptAttention {
    fn new(config: &OptConfig, device: &Device) -> Self {
        let projection = || Projection::new(config.hidden_size, config.hidden_size, config.enable_bias, device);
        Self {
            k_proj: projection(),
            v_proj: projection(),
            q_proj: projection(),
            out_proj: projection(),
            dropout: Dropout::new(config.attention_dropout),
            heads: config.num_attention_heads,
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
        let mixed = attention(query, key, value, mask, (d_head as f64).powf(-0.5), &self.dropout);
        self.out_proj.forward(merge_heads(mixed))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct OptDecoderLayer {
    pub self_attn: OptAttention,
    pub self_attn_layer_norm: OptNorm,
    pub fc1: Projection,
    pub fc2: Projection,
    pub final_layer_norm: OptNorm,
    dropout: Dropout,
    norm_first: bool,
    #[module(skip)]
    act: Activation,
}

impl OptDecoderLayer {
    fn new(config: &OptConfig, device: &Device) -> Self {
        Self {
            self_attn: OptAttention::new(config, device),
            self_attn_layer_norm: config.norm(device),
            fc1: Projection::new(config.hidden_size, config.ffn_dim, config.enable_bias, device),
            fc2: Projection::new(config.ffn_dim, config.hidden_size, config.enable_bias, device),
            final_layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
            norm_first: config.do_layer_norm_before,
            act: config.activation_function,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let hidden = self.add(hidden, &self.self_attn_layer_norm, |it| self.self_attn.forward(it, layer, mask, cache));
        self.add(hidden, &self.final_layer_norm, |it| self.fc2.forward(self.act.apply(self.fc1.forward(it))))
    }

    /// Adds a block to its input, with the norm before the block or after the sum (the 350m checkpoint).
    fn add(&self, hidden: Tensor<3>, norm: &OptNorm, block: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        if self.norm_first {
            hidden.clone() + self.dropout.forward(block(norm.forward(hidden)))
        } else {
            norm.forward(hidden.clone() + self.dropout.forward(block(hidden)))
        }
    }
}

/// The stack.
#[derive(Module, Debug)]
pub struct OptDecoder {
    /// `[vocab, d_embed]`
    pub embed_tokens: Embedding,
    /// `[positions + 2, d_model]`
    pub embed_positions: Embedding,
    /// `[d_embed, d_model]`, where the two widths differ.
    pub project_out: Option<Projection>,
    /// `[d_model, d_embed]`, where the two widths differ.
    pub project_in: Option<Projection>,
    /// Absent where layers end with a norm themselves.
    pub final_layer_norm: Option<OptNorm>,
    /// The layers.
    pub layers: Vec<OptDecoderLayer>,
}

/// OPT without a head.
#[derive(Module, Debug)]
pub struct OptModel {
    /// The stack.
    pub decoder: OptDecoder,
    #[module(skip)]
    prompts: PromptShape,
}

impl OptModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &OptConfig, device: &Device) -> Self {
        let (d_model, d_embed) = (config.hidden_size, config.d_embed);
        let padding = config.labels.pad_token_id.and_then(|it| usize::try_from(it).ok());
        let project = |d_in, d_out| (d_in != d_out).then(|| Projection::new(d_in, d_out, false, device));
        let ends_with_norm = config.do_layer_norm_before && !config.remove_final_layer_norm;
        let decoder = OptDecoder {
            embed_tokens: Embedding::new(config.vocab_size, d_embed, device).with_padding(padding),
            embed_positions: Embedding::new(config.max_position_embeddings + POSITION_OFFSET, d_model, device),
            project_out: project(d_model, d_embed),
            project_in: project(d_embed, d_model),
            final_layer_norm: ends_with_norm.then(|| config.norm(device)),
            layers: (0..config.num_hidden_layers).map(|_| OptDecoderLayer::new(config, device)).collect(),
        };
        let heads = config.num_attention_heads;
        let prompts = PromptShape {
            table: "decoder.embed_tokens".into(),
            d_model: d_embed,
            layers: config.num_hidden_layers,
            heads,
            kv_heads: heads,
            d_head: d_model / heads,
        };
        Self { decoder, prompts }
    }
}

impl Decoder for OptModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let it = &self.decoder;
        let past = cache.as_ref().map_or(0, |it| it.len());
        let mut hidden = input.tokens.embed(|ids| it.embed_tokens.forward(ids));
        if let Some(project) = &it.project_in {
            hidden = project.forward(hidden);
        }
        let positions = input.positions_without_padding(past).add_scalar(POSITION_OFFSET as i64);
        hidden = hidden + it.embed_positions.forward(positions);
        let mask = mask::causal(input, past, None);
        for (at, layer) in it.layers.iter().enumerate() {
            hidden =
                layers::run((layer, at), hidden, &mask, cache.as_deref_mut(), move |layer, hidden, mask, cache| {
                    layer.forward(hidden, at, mask.as_ref(), cache)
                });
        }
        if let Some(norm) = &it.final_layer_norm {
            hidden = norm.forward(hidden);
        }
        match &it.project_out {
            Some(project) => project.forward(hidden),
            None => hidden,
        }
    }

    fn embedding(&self) -> &Embedding {
        &self.decoder.embed_tokens
    }

    fn prompts(&self) -> PromptShape {
        self.prompts.clone()
    }

    fn positions(&self) -> Option<Range<i64>> {
        // Padding is at -1.
        Some(-1..(self.decoder.embed_positions.rows() - POSITION_OFFSET) as i64)
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.decoder.layers, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }

    fn model_type(&self) -> &'static str {
        "opt"
    }
}

decoder_heads! {
    OptModel, OptConfig, model: d_embed,
    causal: OptForCausalLm,
    classifier: OptForSequenceClassification,
}

token_heads! {
    OptModel, OptConfig, model: OptModel::new,
    width: |it| it.d_embed,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: OptForTokenClassification(score),
}
