//! Bloom. Source: `transformers/models/bloom/modeling_bloom.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{self, AttentionMask, attention, split};
use peft_core::{PeftError, PromptShape, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::merge_heads;
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{LabelConfig, RawConfig, heads_divide};
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
    Architecture::new(["bloom"], BASE_PREFIX)
        .causal_lm(BloomForCausalLm::new)
        .sequence_classifier(BloomForSequenceClassification::new)
        .token_classifier(BloomForTokenClassification::new)
        .feature_extractor(BloomModel::new)
}

/// `config.json` of a Bloom. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BloomConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub layer_norm_epsilon: f64,
    pub apply_residual_connection_post_layernorm: bool,
    pub hidden_dropout: f64,
    pub attention_dropout: f64,
    pub pretraining_tp: usize,
    pub slow_but_exact: bool,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for BloomConfig {
    fn default() -> Self {
        Self {
            vocab_size: 250_880,
            hidden_size: 64,
            n_layer: 2,
            n_head: 8,
            layer_norm_epsilon: 1e-5,
            apply_residual_connection_post_layernorm: false,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            pretraining_tp: 1,
            slow_but_exact: false,
            tie_word_embeddings: true,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for BloomConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let names = [("n_embed", "hidden_size"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head")];
        let config: Self = raw.renamed(&names).parse(&[])?;
        heads_divide(("n_head", config.n_head), ("hidden_size", config.hidden_size))?;
        if config.slow_but_exact && config.pretraining_tp > 1 {
            // The reference leaves biases out there.
            let reason = "is not computed together with `pretraining_tp` above 1; set it to false";
            return Err(PeftError::config("slow_but_exact", reason));
        }
        Ok(config)
    }
}

/// Self-attention; where a key stands is said by ALiBi alone.
#[derive(Module, Debug)]
pub struct BloomAttention {
    /// Query, key and value of one head after the other, `[heads · 3 · d_head, d_model]`.
    pub query_key_value: Projection,
    /// Output, `[d_model, d_model]`.
    pub dense: Projection,
    attention_dropout: Dropout,
    hidden_dropout: Dropout,
    heads: usize,
}

impl BloomAttention {
    fn new(config: &BloomConfig, device: &Device) -> Self {
        let d_model = config.hidden_size;
        Self {
            query_key_value: Projection::new(d_model, 3 * d_model, true, device),
            dense: Projection::new(d_model, d_model, true, device),
            attention_dropout: Dropout::new(config.attention_dropout),
            hidden_dropout: Dropout::new(config.hidden_dropout),
            heads: config.n_head,
        }
    }

    fn forward(&self, hidden: Tensor<3>, layer: usize, mask: &AttentionMask, cache: Option<&mut KvCache>) -> Tensor<3> {
        let [batch, seq, d_model] = hidden.dims();
        let d_head = d_model / self.heads;
        let fused = self.query_key_value.forward(hidden).reshape([batch, seq, self.heads, 3 * d_head]);
        let [query, key, value] = split(fused, [d_head; 3]).map(|it| it.swap_dims(1, 2));
        let (key, value) = extend_cache(cache, layer, key, value);
        let scale = (d_head as f64).powf(-0.5);
        let mixed = attention(query, key, value, Some(mask), scale, &self.attention_dropout);
        let mixed = merge_heads(mixed);
        self.hidden_dropout.forward(self.dense.forward(mixed))
    }
}

/// Two layers with a GELU between them.
#[derive(Module, Debug)]
pub struct BloomMlp {
    /// `[4 · d_model, d_model]`
    pub dense_h_to_4h: Projection,
    /// `[d_model, 4 · d_model]`
    pub dense_4h_to_h: Projection,
    hidden_dropout: Dropout,
}

impl BloomMlp {
    fn new(config: &BloomConfig, device: &Device) -> Self {
        let d_model = config.hidden_size;
        Self {
            dense_h_to_4h: Projection::new(d_model, 4 * d_model, true, device),
            dense_4h_to_h: Projection::new(4 * d_model, d_model, true, device),
            hidden_dropout: Dropout::new(config.hidden_dropout),
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = ops::gelu_tanh(self.dense_h_to_4h.forward(hidden));
        self.hidden_dropout.forward(self.dense_4h_to_h.forward(inner))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BloomBlock {
    pub input_layernorm: LayerNorm,
    pub self_attention: BloomAttention,
    pub post_attention_layernorm: LayerNorm,
    pub mlp: BloomMlp,
    residual_after_norm: bool,
}

impl BloomBlock {
    fn new(config: &BloomConfig, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_epsilon, device);
        Self {
            input_layernorm: norm(),
            self_attention: BloomAttention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: BloomMlp::new(config, device),
            residual_after_norm: config.apply_residual_connection_post_layernorm,
        }
    }

    fn forward(&self, hidden: Tensor<3>, layer: usize, mask: &AttentionMask, cache: Option<&mut KvCache>) -> Tensor<3> {
        let normal = self.input_layernorm.forward(hidden.clone());
        let residual = if self.residual_after_norm { normal.clone() } else { hidden };
        let hidden = residual + self.self_attention.forward(normal, layer, mask, cache);
        let normal = self.post_attention_layernorm.forward(hidden.clone());
        let residual = if self.residual_after_norm { normal.clone() } else { hidden };
        residual + self.mlp.forward(normal)
    }
}

/// Bloom without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BloomModel {
    pub word_embeddings: Embedding,
    pub word_embeddings_layernorm: LayerNorm,
    pub h: Vec<BloomBlock>,
    pub ln_f: LayerNorm,
    heads: usize,
    #[module(skip)]
    prompts: PromptShape,
}

impl BloomModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &BloomConfig, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_epsilon, device);
        Self {
            word_embeddings: Embedding::new(config.vocab_size, config.hidden_size, device),
            word_embeddings_layernorm: norm(),
            h: (0..config.n_layer).map(|_| BloomBlock::new(config, device)).collect(),
            ln_f: norm(),
            heads: config.n_head,
            prompts: PromptShape::even("word_embeddings", config.hidden_size, config.n_layer, config.n_head),
        }
    }
}

impl Decoder for BloomModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let embedded = input.tokens.embed(|ids| self.word_embeddings.forward(ids));
        let mut hidden = self.word_embeddings_layernorm.forward(embedded);
        let mask = mask::causal_added(input, past, None).unwrap_or_default();
        let mask = mask.with_bias(mask::alibi(input, past, self.heads));
        for (layer, block) in self.h.iter().enumerate() {
            hidden =
                layers::run((block, layer), hidden, &mask, cache.as_deref_mut(), move |block, hidden, mask, cache| {
                    block.forward(hidden, layer, mask, cache)
                });
        }
        self.ln_f.forward(hidden)
    }

    fn embedding(&self) -> &Embedding {
        &self.word_embeddings
    }

    fn prompts(&self) -> PromptShape {
        self.prompts.clone()
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.h, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }

    fn model_type(&self) -> &'static str {
        "bloom"
    }
}

decoder_heads! {
    BloomModel, BloomConfig, transformer: hidden_size,
    causal: BloomForCausalLm,
    classifier: BloomForSequenceClassification,
}

token_heads! {
    BloomModel, BloomConfig, transformer: BloomModel::new,
    width: |it| it.hidden_size,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(Some(it.hidden_dropout)),
    tokens: BloomForTokenClassification(classifier),
}
