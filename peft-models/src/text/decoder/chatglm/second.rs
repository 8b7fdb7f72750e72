//! The second and third generation of ChatGLM, which are one network.
//!
//! Source: `modeling_chatglm.py` beside THUDM/chatglm2-6b and chatglm3-6b on the hub, computed in f32.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, Projection, RmsNorm};
use peft_core::ops::{self, AttentionMask, Pairing, RotaryTable, attention};
use serde::Deserialize;

use super::mlp::{GlmMlp, THETA};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::LabelConfig;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::rope::Rope;

/// `config.json` of the second and third generation. Defaults are its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SecondConfig {
    pub padded_vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_attention_heads: usize,
    pub kv_channels: usize,
    pub ffn_hidden_size: usize,
    pub layernorm_epsilon: f64,
    pub multi_query_attention: bool,
    pub multi_query_group_num: usize,
    pub add_bias_linear: bool,
    pub add_qkv_bias: bool,
    pub apply_residual_connection_post_layernorm: bool,
    pub post_layer_norm: bool,
    pub rmsnorm: bool,
    pub hidden_dropout: f64,
    pub attention_dropout: f64,
    pub rope_ratio: Option<f64>,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for SecondConfig {
    fn default() -> Self {
        Self {
            padded_vocab_size: 65024,
            hidden_size: 4096,
            num_layers: 28,
            num_attention_heads: 32,
            kv_channels: 128,
            ffn_hidden_size: 13696,
            layernorm_epsilon: 1e-5,
            multi_query_attention: false,
            multi_query_group_num: 1,
            add_bias_linear: false,
            add_qkv_bias: false,
            apply_residual_connection_post_layernorm: false,
            post_layer_norm: true,
            rmsnorm: true,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            rope_ratio: None,
            labels: LabelConfig::default(),
        }
    }
}

impl SecondConfig {
    pub(super) fn kv_heads(&self) -> usize {
        if self.multi_query_attention { self.multi_query_group_num } else { self.num_attention_heads }
    }
}

/// Self-attention of the later generations: half of every head is rotated, in neighbouring pairs.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SecondAttention {
    /// Grouped: all queries, all keys, all values. Else query, key and value of one head after the other.
    pub query_key_value: Projection,
    pub dense: Projection,
    dropout: Dropout,
    heads: usize,
    kv_heads: usize,
    d_head: usize,
    grouped: bool,
}

impl SecondAttention {
    fn new(config: &SecondConfig, device: &Device) -> Self {
        let (heads, kv_heads, d_head) = (config.num_attention_heads, config.kv_heads(), config.kv_channels);
        let bias = config.add_bias_linear || config.add_qkv_bias;
        Self {
            query_key_value: Projection::new(config.hidden_size, (heads + 2 * kv_heads) * d_head, bias, device),
            dense: Projection::new(heads * d_head, config.hidden_size, config.add_bias_linear, device),
            dropout: Dropout::new(config.attention_dropout),
            heads,
            kv_heads,
            d_head,
            grouped: config.multi_query_attention,
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
        let [batch, seq, _] = hidden.dims();
        let fused = self.query_key_value.forward(hidden);
        let [query, key, value] = if self.grouped {
            let parts = ops::split(fused, [self.heads, self.kv_heads, self.kv_heads].map(|it| it * self.d_head));
            parts.map(|it| split_heads(it, self.d_head))
        } else {
            let fused = fused.reshape([batch, seq, self.heads, 3 * self.d_head]);
            ops::split(fused, [self.d_head; 3]).map(|it| it.swap_dims(1, 2))
        };
        let (key, value) = extend_cache(cache, layer, rotary.rotate(key), value);
        let scale = (self.d_head as f64).powf(-0.5);
        let mixed = attention(rotary.rotate(query), key, value, mask, scale, &self.dropout);
        self.dense.forward(merge_heads(mixed))
    }
}

/// One layer of the later generations.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SecondBlock {
    pub input_layernorm: RmsNorm,
    pub self_attention: SecondAttention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: GlmMlp,
    dropout: Dropout,
    residual_after_norm: bool,
}

impl SecondBlock {
    fn new(config: &SecondConfig, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.layernorm_epsilon, device);
        let bias = config.add_bias_linear;
        Self {
            input_layernorm: norm(),
            self_attention: SecondAttention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: GlmMlp::new(config.hidden_size, config.ffn_hidden_size, bias, true, device),
            dropout: Dropout::new(config.hidden_dropout),
            residual_after_norm: config.apply_residual_connection_post_layernorm,
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
        let residual = if self.residual_after_norm { normal.clone() } else { hidden };
        let attended = self.self_attention.forward(normal, layer, rotary, mask, cache);
        let hidden = residual + self.dropout.forward(attended);
        let normal = self.post_attention_layernorm.forward(hidden.clone());
        let residual = if self.residual_after_norm { normal.clone() } else { hidden };
        residual + self.dropout.forward(self.mlp.forward(normal))
    }
}

/// A level of names that checkpoints have.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SecondEmbedding {
    pub word_embeddings: Embedding,
}

/// The layers of the later generations.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SecondTransformer {
    pub layers: Vec<SecondBlock>,
    pub final_layernorm: Option<RmsNorm>,
}

/// The second and third generation; their head is a part of it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SecondModel {
    pub embedding: SecondEmbedding,
    pub encoder: SecondTransformer,
    pub output_layer: Projection,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    pub(super) config: SecondConfig,
}

impl SecondModel {
    pub(super) fn new(config: &SecondConfig, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.layernorm_epsilon, device);
        let theta = THETA * config.rope_ratio.unwrap_or(1.0) as f32;
        Self {
            embedding: SecondEmbedding {
                word_embeddings: Embedding::new(config.padded_vocab_size, config.hidden_size, device),
            },
            encoder: SecondTransformer {
                layers: (0..config.num_layers).map(|_| SecondBlock::new(config, device)).collect(),
                final_layernorm: config.post_layer_norm.then(norm),
            },
            output_layer: Projection::new(config.hidden_size, config.padded_vocab_size, false, device),
            rope: Rope::plain(theta, config.kv_channels / 2).with_pairing(Pairing::Neighbours),
            config: config.clone(),
        }
    }

    pub(super) fn forward(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        // A prefix has no place in the text.
        let prefix = cache.as_ref().map_or(0, |it| it.prompt.keys());
        let rotary = self.rope.table_at(input.positions(past).sub_scalar(prefix as i64));
        let mask = mask::causal_but_padding(input, past);
        let mut hidden = input.tokens.embed(|ids| self.embedding.word_embeddings.forward(ids));
        for (at, layer) in self.encoder.layers.iter().enumerate() {
            let read = &(rotary.clone(), mask.clone());
            hidden = layers::run((layer, at), hidden, read, cache.as_deref_mut(), move |layer, hidden, read, cache| {
                layer.forward(hidden, at, &read.0, read.1.as_ref(), cache)
            });
        }
        match &self.encoder.final_layernorm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }
}
