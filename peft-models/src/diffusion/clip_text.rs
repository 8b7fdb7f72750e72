//! CLIP's text encoder. Source: `transformers/models/clip/modeling_clip.py` (5.23).
//!
//! Modules are named as in published checkpoints, with `text_model` around the stack. transformers 5 leaves that out of
//! `CLIPTextModel`.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{Adaptable, ModelSpec, PeftError, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, RawConfig, heads_divide};
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::task::FeatureExtractor;

/// Prefix that checkpoints of transformers 5 lack.
pub const BASE_PREFIX: &str = "text_model.";

/// How transformers 5 spells paths of the encoder without a projection.
pub const OTHER_NAMES: &[(&str, &str)] = &[(r"^text_model\.", "")];

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["clip_text_model"], BASE_PREFIX).feature_extractor(ClipTextModel::new)
}

/// `config.json` of a CLIP text encoder. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct ClipTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// Width of the pooled text in [`ClipTextModelWithProjection`].
    pub projection_dim: Option<usize>,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    /// The token whose hidden state stands for the text. In older files it is 2, which means the greatest id of a text.
    pub eos_token_id: Option<i64>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: Some(512),
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
            eos_token_id: Some(49407),
        }
    }
}

impl ModelConfig for ClipTextConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&[])?;
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        Ok(config)
    }
}

/// Token and position embeddings.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipTextEmbeddings {
    pub token_embedding: Embedding,
    pub position_embedding: Embedding,
}

/// Attention of a text to itself.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipAttention {
    pub k_proj: Projection,
    pub v_proj: Projection,
    pub q_proj: Projection,
    pub out_proj: Projection,
    dropout: Dropout,
    heads: usize,
}

impl ClipAttention {
    fn new(config: &ClipTextConfig, device: &Device) -> Self {
        let projection = || Projection::new(config.hidden_size, config.hidden_size, true, device);
        Self {
            k_proj: projection(),
            v_proj: projection(),
            q_proj: projection(),
            out_proj: projection(),
            dropout: Dropout::new(config.attention_dropout),
            heads: config.num_attention_heads,
        }
    }

    fn forward(&self, hidden: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let [query, key, value] = [&self.q_proj, &self.k_proj, &self.v_proj]
            .map(|projection| split_heads(projection.forward(hidden.clone()), d_head));
        let mixed = attention(query, key, value, mask, (d_head as f64).powf(-0.5), &self.dropout);
        self.out_proj.forward(merge_heads(mixed))
    }
}

/// Two layers with an activation between them.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipMlp {
    pub fc1: Projection,
    pub fc2: Projection,
    #[module(skip)]
    act: Activation,
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipEncoderLayer {
    pub self_attn: ClipAttention,
    pub layer_norm1: LayerNorm,
    pub mlp: ClipMlp,
    pub layer_norm2: LayerNorm,
}

impl ClipEncoderLayer {
    fn new(config: &ClipTextConfig, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_eps, device);
        Self {
            self_attn: ClipAttention::new(config, device),
            layer_norm1: norm(),
            mlp: ClipMlp {
                fc1: Projection::new(config.hidden_size, config.intermediate_size, true, device),
                fc2: Projection::new(config.intermediate_size, config.hidden_size, true, device),
                act: config.hidden_act,
            },
            layer_norm2: norm(),
        }
    }

    fn forward(&self, hidden: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let hidden = hidden.clone() + self.self_attn.forward(self.layer_norm1.forward(hidden), mask);
        let mlp = &self.mlp;
        let inner = mlp.act.apply(mlp.fc1.forward(self.layer_norm2.forward(hidden.clone())));
        hidden + mlp.fc2.forward(inner)
    }
}

/// The layers.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipEncoder {
    pub layers: Vec<ClipEncoderLayer>,
}

/// The stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipTextTransformer {
    pub embeddings: ClipTextEmbeddings,
    pub encoder: ClipEncoder,
    pub final_layer_norm: LayerNorm,
    eos_token_id: Option<i64>,
}

impl ClipTextTransformer {
    fn new(config: &ClipTextConfig, device: &Device) -> Self {
        let table = |rows| Embedding::new(rows, config.hidden_size, device);
        Self {
            embeddings: ClipTextEmbeddings {
                token_embedding: table(config.vocab_size),
                position_embedding: table(config.max_position_embeddings),
            },
            encoder: ClipEncoder {
                layers: (0..config.num_hidden_layers).map(|_| ClipEncoderLayer::new(config, device)).collect(),
            },
            final_layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            eos_token_id: config.eos_token_id,
        }
    }

    /// The hidden state behind all layers but the last `skipped`, without the final norm; `[batch, seq, d_model]`.
    ///
    /// Every token sees itself and what came before, padding included unless there is a mask.
    pub fn hidden(&self, input: &ModelInput, skipped: usize) -> Tensor<3> {
        let tables = &self.embeddings;
        let words = input.tokens.embed(|ids| tables.token_embedding.forward(ids));
        let hidden = words + tables.position_embedding.forward(input.positions(0));
        let mask = mask::causal(input, 0, None);
        let layers = &self.encoder.layers;
        layers.iter().take(layers.len() - skipped.min(layers.len())).enumerate().fold(hidden, |hidden, (at, layer)| {
            layers::run((layer, at), hidden, &mask, None, |layer, hidden, mask, _| layer.forward(hidden, mask.as_ref()))
        })
    }

    /// The last hidden state, normalised; `[batch, seq, d_model]`.
    pub fn forward(&self, input: &ModelInput) -> Tensor<3> {
        self.final_layer_norm.forward(self.hidden(input, 0))
    }

    /// Of each row the hidden state of the token that ends the text.
    ///
    /// # Shapes
    /// - hidden: `[batch, seq, d_model]`
    /// - ids: `[batch, seq]`
    /// - output: `[batch, d_model]`
    pub fn pool(&self, hidden: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<2> {
        let [batch, seq, d_model] = hidden.dims();
        let device = ids.device().without_autodiff();
        // Of equals the first counts, and without an end the first token.
        let value = match self.eos_token_id {
            // Before transformers' #24773 files had another number here than the tokenizer.
            None | Some(2) => ids,
            Some(eos) => ids.equal_elem(eos).int(),
        };
        let place = Tensor::<1, Int>::arange(0..seq as i64, &device).unsqueeze::<2>();
        let first = (value.mul_scalar(seq as i64) - place).argmax(1);
        hidden.gather(1, first.reshape([batch, 1, 1]).expand([batch, 1, d_model])).squeeze_dim(1)
    }

    fn spec(&self, spec: ModelSpec) -> ModelSpec {
        let positions = self.embeddings.position_embedding.rows() as i64;
        spec.with_model_type("clip_text_model").with_positions(0..positions)
    }
}

/// CLIP's text encoder without a head.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    /// The stack.
    pub text_model: ClipTextTransformer,
}

impl ClipTextModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ClipTextConfig, device: &Device) -> Self {
        Self { text_model: ClipTextTransformer::new(config, device) }
    }
}

impl Adaptable for ClipTextModel {
    fn spec(&self) -> ModelSpec {
        self.text_model.spec(ModelSpec::of(self)).with_other_names(OTHER_NAMES)
    }
}

impl FeatureExtractor for ClipTextModel {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.text_model.forward(input)
    }
}

/// CLIP's text encoder with a projection of the pooled text: the second encoder of SDXL.
#[derive(Module, Debug)]
pub struct ClipTextModelWithProjection {
    /// The stack.
    pub text_model: ClipTextTransformer,
    /// `[projection_dim, d_model]`
    pub text_projection: Projection,
}

impl ClipTextModelWithProjection {
    /// A model whose parameters are not allocated yet.
    ///
    /// # Errors
    /// If the configuration has no `projection_dim`.
    pub fn new(config: &ClipTextConfig, device: &Device) -> Result<Self> {
        let width = config.projection_dim.ok_or_else(|| PeftError::config("projection_dim", "is not set"))?;
        Ok(Self {
            text_model: ClipTextTransformer::new(config, device),
            text_projection: Projection::new(config.hidden_size, width, false, device),
        })
    }

    /// The pooled text, projected; `[batch, projection_dim]`.
    ///
    /// # Shapes
    /// - hidden: the last hidden state, `[batch, seq, d_model]`
    /// - ids: `[batch, seq]`
    pub fn text_embeds(&self, hidden: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<2> {
        self.text_projection.forward(self.text_model.pool(hidden, ids))
    }
}

impl Adaptable for ClipTextModelWithProjection {
    fn spec(&self) -> ModelSpec {
        self.text_model.spec(ModelSpec::of(self))
    }
}

impl FeatureExtractor for ClipTextModelWithProjection {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.text_model.forward(input)
    }
}
