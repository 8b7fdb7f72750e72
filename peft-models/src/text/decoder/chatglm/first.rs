//! The first generation of ChatGLM.
//!
//! Source: `modeling_chatglm.py` and `tokenization_chatglm.py` beside THUDM/chatglm-6b on the hub, computed in f32.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::forward::gradient_checkpointing::{Exchange, Inputs};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{self, AttentionMask, RotaryTable, attention};
use serde::Deserialize;

use super::mlp::{GlmMlp, THETA};
use crate::common::attention_heads::merge_heads;
use crate::common::cache::{KvCache, Target, extend_cache};
use crate::common::input::{ModelInput, Tokens};
use crate::common::layers;
use crate::common::mask;
use crate::common::rope::Rope;

/// The first generation scales its residuals for as many layers, whatever `num_layers` says.
const LAYERS_OF_6B: f64 = 28.0;

/// `config.json` of the first generation. Defaults are its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct FirstConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_attention_heads: usize,
    pub layernorm_epsilon: f64,
    pub inner_hidden_size: usize,
    pub position_encoding_2d: bool,
    pub bos_token_id: i64,
    pub mask_token_id: i64,
    pub gmask_token_id: i64,
    pub tie_word_embeddings: bool,
}

impl Default for FirstConfig {
    fn default() -> Self {
        Self {
            vocab_size: 130_528,
            hidden_size: 4096,
            num_layers: 28,
            num_attention_heads: 32,
            layernorm_epsilon: 1e-5,
            inner_hidden_size: 16384,
            position_encoding_2d: true,
            bos_token_id: 130_004,
            mask_token_id: 130_000,
            gmask_token_id: 130_001,
            tie_word_embeddings: true,
        }
    }
}

/// Where tokens of the first generation stand: in their text, and in what is to be filled in.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // one on the stack of a forward
enum Places {
    /// Half of a head turns by the one, half by the other.
    Two(RotaryTable, RotaryTable),
    One(RotaryTable),
}

impl Inputs for Places {
    fn exchange(self, _: &mut Exchange) -> Self {
        self
    }
}

impl Places {
    fn rotate(&self, heads: Tensor<4>) -> Tensor<4> {
        match self {
            Self::One(table) => table.rotate(heads),
            Self::Two(text, block) => {
                let half = heads.dims()[3] / 2;
                let [first, second] = ops::split(heads, [half; 2]);
                Tensor::cat(vec![text.rotate(first), block.rotate(second)], 3)
            }
        }
    }
}

/// Self-attention of the first generation.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct FirstAttention {
    pub query_key_value: Projection,
    pub dense: Projection,
    heads: usize,
}

impl FirstAttention {
    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        places: &Places,
        mask: &AttentionMask,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [batch, seq, d_model] = hidden.dims();
        let d_head = d_model / self.heads;
        let fused = self.query_key_value.forward(hidden).reshape([batch, seq, self.heads, 3 * d_head]);
        let [query, key, value] = ops::split(fused, [d_head; 3]).map(|it| it.swap_dims(1, 2));
        let (key, value) = extend_cache(cache, layer, places.rotate(key), value);
        let mixed =
            attention(places.rotate(query), key, value, Some(mask), (d_head as f64).powf(-0.5), &Dropout::new(0.0));
        self.dense.forward(merge_heads(mixed))
    }
}

/// One layer of the first generation: residuals come from behind the norms, and are scaled.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct FirstBlock {
    pub input_layernorm: LayerNorm,
    pub attention: FirstAttention,
    pub post_attention_layernorm: LayerNorm,
    pub mlp: GlmMlp,
}

impl FirstBlock {
    fn new(config: &FirstConfig, device: &Device) -> Self {
        let d_model = config.hidden_size;
        let norm = || LayerNorm::new(d_model, config.layernorm_epsilon, device);
        Self {
            input_layernorm: norm(),
            attention: FirstAttention {
                query_key_value: Projection::new(d_model, 3 * d_model, true, device),
                dense: Projection::new(d_model, d_model, true, device),
                heads: config.num_attention_heads,
            },
            post_attention_layernorm: norm(),
            mlp: GlmMlp::new(d_model, config.inner_hidden_size, true, false, device),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        places: &Places,
        mask: &AttentionMask,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let alpha = (2.0 * LAYERS_OF_6B).sqrt();
        let normal = self.input_layernorm.forward(hidden);
        let hidden = normal.clone().mul_scalar(alpha) + self.attention.forward(normal, layer, places, mask, cache);
        let normal = self.post_attention_layernorm.forward(hidden);
        normal.clone().mul_scalar(alpha) + self.mlp.forward(normal)
    }
}

/// The first generation without a head.
///
/// A text is read in both directions up to its start token, and written from there on. What is written stands, in the
/// text, where `[gMASK]` or `[MASK]` does. Without a start token all is written; inputs without ids have none.
///
/// Virtual tokens are part of the text, at its start. A prefix has no place in it, and is seen by padding too.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct FirstModel {
    pub word_embeddings: Embedding,
    pub layers: Vec<FirstBlock>,
    pub final_layernorm: LayerNorm,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    pub(super) config: FirstConfig,
}

impl FirstModel {
    pub(super) fn new(config: &FirstConfig, device: &Device) -> Self {
        let d_head = config.hidden_size / config.num_attention_heads;
        let rotary = if config.position_encoding_2d { d_head / 2 } else { d_head };
        Self {
            word_embeddings: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_layers).map(|_| FirstBlock::new(config, device)).collect(),
            final_layernorm: LayerNorm::new(config.hidden_size, config.layernorm_epsilon, device),
            rope: Rope::plain(THETA, rotary).in_half_precision(),
            config: config.clone(),
        }
    }

    /// `words` are the ids of the text without what active prompts put before it.
    pub(super) fn forward(&self, input: &ModelInput, words: &Tokens, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let targets = match cache.as_deref_mut() {
            Some(cache) if past > 0 && !cache.targets.is_empty() => cache.targets.clone(),
            Some(cache) => {
                cache.targets = self.targets(input, words, past);
                cache.targets.clone()
            }
            None => self.targets(input, words, past),
        };
        let places = self.places(input, past, &targets);
        let begins = Tensor::from_data(
            TensorData::new(targets.iter().map(|it| it.begin as i64).collect(), [targets.len()]),
            &input.device(),
        );
        let mask = mask::causal_behind(input, past, begins);
        let mut hidden = input.tokens.embed(|ids| self.word_embeddings.forward(ids));
        for (at, layer) in self.layers.iter().enumerate() {
            let read = &(places.clone(), mask.clone());
            hidden = layers::run((layer, at), hidden, read, cache.as_deref_mut(), move |layer, hidden, read, cache| {
                layer.forward(hidden, at, &read.0, &read.1, cache)
            });
        }
        self.final_layernorm.forward(hidden)
    }

    /// What is to be written in every row; `past` columns are a prefix.
    fn targets(&self, input: &ModelInput, words: &Tokens, past: usize) -> Vec<Target> {
        let ([batch, seq], [_, length]) = (input.dims(), words.dims());
        let virtual_tokens = seq - length;
        let ids: Vec<i64> = match words {
            Tokens::Ids(ids) => ids.to_data().iter::<i64>().collect(),
            Tokens::Embeddings(_) => vec![-1; batch * length],
        };
        let kept: Option<Vec<i64>> = input.attention_mask.as_ref().map(|it| it.to_data().iter::<i64>().collect());
        let row = |row: usize| {
            let words = &ids[row * length..(row + 1) * length];
            let find = |token: i64| Some(virtual_tokens + words.iter().position(|it| *it == token)?);
            let kept = kept.as_ref().map(|it| &it[row * (past + seq) + past..(row + 1) * (past + seq)]);
            let first = kept.and_then(|it| it.iter().position(|it| *it != 0)).unwrap_or(0);
            let global = find(self.config.gmask_token_id);
            let sign = global.or_else(|| find(self.config.mask_token_id)).unwrap_or(first);
            let begin = find(self.config.bos_token_id).unwrap_or(0);
            // With one dimension, what fills a [gMASK] simply goes on.
            let goes_on = !self.config.position_encoding_2d && global.is_some();
            Target { first, begin: past + begin, prefix: past, mark: sign.saturating_sub(first), goes_on }
        };
        (0..batch).map(row).collect()
    }

    fn places(&self, input: &ModelInput, past: usize, targets: &[Target]) -> Places {
        let [_, seq] = input.dims();
        let columns = |place: &dyn Fn(&Target, usize) -> usize| {
            let rows = targets.iter();
            let places = rows.flat_map(|row| (past..past + seq).map(move |at| place(row, at) as i64)).collect();
            Tensor::<2, Int>::from_data(TensorData::new(places, [targets.len(), seq]), &input.device())
        };
        let text = self.rope.table_at(columns(&|row, at| row.in_text(at)));
        if self.config.position_encoding_2d {
            Places::Two(text, self.rope.table_at(columns(&|row, at| row.in_block(at))))
        } else {
            Places::One(text)
        }
    }
}
