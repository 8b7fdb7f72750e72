//! T5, with v1.1, Flan and mT5. Source: `transformers/models/t5/modeling_t5.py` and `mt5` (5.23).

// Fields are named after checkpoint keys, and those say `SelfAttention`.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Dropout, Embedding, Projection, RmsNorm};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde::Deserialize;
use serde_json::json;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, Seq2SeqCache, SourceCache, extend_cache};
use crate::common::config::{Activation, RawConfig};
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{Encoded, Seq2SeqLm, shift_right};

/// `_keep_in_fp32_modules` of transformers: what they give overflows in half precision.
pub(crate) const FULL_PRECISION: [&str; 1] = ["wo"];

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "transformer.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["t5", "mt5"], BASE_PREFIX).seq2seq_lm(T5ForConditionalGeneration::new)
}

/// `config.json` of a T5. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct T5Config {
    /// `t5` or `mt5`.
    pub model_type: String,
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_layers: usize,
    pub num_decoder_layers: Option<usize>,
    pub num_heads: usize,
    pub relative_attention_num_buckets: usize,
    pub relative_attention_max_distance: usize,
    pub dropout_rate: f64,
    pub layer_norm_epsilon: f64,
    /// An activation, or `gated-` and one.
    pub feed_forward_proj: String,
    pub tie_word_embeddings: bool,
    pub scale_decoder_outputs: Option<bool>,
    pub pad_token_id: Option<i64>,
    pub decoder_start_token_id: Option<i64>,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            model_type: "t5".to_owned(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            pad_token_id: Some(0),
            decoder_start_token_id: None,
        }
    }
}

impl ModelConfig for T5Config {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        if raw.model_type()? == "mt5" {
            for (field, value) in [
                ("vocab_size", json!(250_112)),
                ("d_ff", json!(1024)),
                ("num_layers", json!(8)),
                ("num_heads", json!(6)),
                ("feed_forward_proj", json!("gated-gelu")),
                ("decoder_start_token_id", json!(0)),
            ] {
                raw.json.entry(field).or_insert(value);
            }
        }
        let config: Self = raw.parse_encoder_decoder(&["is_decoder"])?;
        config.act()?;
        // Half of the buckets are for either direction, and half of those for distances that have one of their own.
        if config.relative_attention_num_buckets < 4
            || config.relative_attention_max_distance <= config.relative_attention_num_buckets / 2
        {
            let reason = "needs at least 4 buckets, and `relative_attention_max_distance` above half of them";
            return Err(PeftError::config("relative_attention_num_buckets", reason));
        }
        Ok(config)
    }
}

impl T5Config {
    /// The activation, and whether a second matrix gates it.
    fn act(&self) -> Result<(Activation, bool)> {
        let unknown =
            || PeftError::unsupported(format!("feed_forward_proj `{}`", self.feed_forward_proj), "it is unknown");
        let (name, gated) = match self.feed_forward_proj.split_once('-') {
            Some(("gated", name)) => (name, true),
            Some(_) => return Err(unknown()),
            None => (self.feed_forward_proj.as_str(), false),
        };
        // The one name that does not mean what it says.
        let name = if gated && name == "gelu" { "gelu_new" } else { name };
        let act = serde_json::from_value(json!(name)).map_err(|_| unknown())?;
        Ok((act, gated))
    }

    /// The factor of the decoder's output before the head.
    ///
    /// The first T5 scaled and v1.1 did not, which its files say by an untied head. transformers 5 writes the result
    /// into a field of its own. mT5 never scales.
    fn scale_of_output(&self) -> f64 {
        let scaled = self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings);
        if scaled && self.model_type != "mt5" { (self.d_model as f64).powf(-0.5) } else { 1.0 }
    }
}

/// Attention without a scale. The first layer of a stack has the table of distances for all of them.
#[derive(Module, Debug)]
pub struct T5Attention {
    /// `[heads · d_kv, d_model]`
    pub q: Projection,
    /// `[heads · d_kv, d_model]`
    pub k: Projection,
    /// `[heads · d_kv, d_model]`
    pub v: Projection,
    /// `[d_model, heads · d_kv]`
    pub o: Projection,
    /// `[buckets, heads]`
    pub relative_attention_bias: Option<Embedding>,
    dropout: Dropout,
    heads: usize,
    buckets: usize,
    longest: usize,
}

impl T5Attention {
    fn new(config: &T5Config, with_bias: bool, device: &Device) -> Self {
        let (d_model, d_inner) = (config.d_model, config.num_heads * config.d_kv);
        let buckets = config.relative_attention_num_buckets;
        Self {
            q: Projection::new(d_model, d_inner, false, device),
            k: Projection::new(d_model, d_inner, false, device),
            v: Projection::new(d_model, d_inner, false, device),
            o: Projection::new(d_inner, d_model, false, device),
            relative_attention_bias: with_bias.then(|| Embedding::new(buckets, config.num_heads, device)),
            dropout: Dropout::new(config.dropout_rate),
            heads: config.num_heads,
            buckets,
            longest: config.relative_attention_max_distance,
        }
    }

    /// What every score gets for the distance of its tokens, `[1, heads, q_len, past + q_len]`; for every row of the batch
    /// where rows use tables of their own.
    fn position_bias(&self, q_len: usize, past: usize, bidirectional: bool, device: &Device) -> Option<Tensor<4>> {
        let table = self.relative_attention_bias.as_ref()?;
        let kv_len = past + q_len;
        let buckets: Vec<i64> = (past..kv_len)
            .flat_map(|query| (0..kv_len).map(move |key| key as i64 - query as i64))
            .map(|distance| bucket(distance, bidirectional, self.buckets, self.longest))
            .collect();
        let buckets = Tensor::<2, Int>::from_data(TensorData::new(buckets, [1, q_len * kv_len]), device);
        let bias = table.forward(buckets);
        let rows = bias.dims()[0];
        Some(bias.reshape([rows, q_len, kv_len, self.heads]).permute([0, 3, 1, 2]))
    }

    fn split(&self, projected: Tensor<3>) -> Tensor<4> {
        let d_head = projected.dims()[2] / self.heads;
        split_heads(projected, d_head)
    }

    fn keys_and_values(&self, hidden: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        (self.split(self.k.forward(hidden.clone())), self.split(self.v.forward(hidden)))
    }

    fn mix(&self, hidden: Tensor<3>, (key, value): (Tensor<4>, Tensor<4>), mask: Option<&AttentionMask>) -> Tensor<3> {
        let query = self.split(self.q.forward(hidden));
        self.o.forward(merge_heads(attention(query, key, value, mask, 1.0, &self.dropout)))
    }
}

/// The bucket of a distance `key − query`: near ones have their own, far ones share, the further the more of them.
///
/// In single precision throughout, as the reference computes it: at the edges of buckets rounding decides.
fn bucket(distance: i64, bidirectional: bool, buckets: usize, longest: usize) -> i64 {
    let (buckets, first, far) = if bidirectional {
        let half = (buckets / 2) as i64;
        (half, if distance > 0 { half } else { 0 }, distance.abs())
    } else {
        (buckets as i64, 0, (-distance).max(0))
    };
    let exact = buckets / 2;
    if far < exact {
        return first + far;
    }
    let span = (longest as f64 / exact as f64).ln() as f32;
    let beyond = (far as f32 / exact as f32).ln() / span * (buckets - exact) as f32;
    first + (exact + beyond as i64).min(buckets - 1)
}

/// Self-attention with the norm before it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct T5LayerSelfAttention {
    pub SelfAttention: T5Attention,
    pub layer_norm: RmsNorm,
    dropout: Dropout,
}

impl T5LayerSelfAttention {
    fn new(config: &T5Config, with_bias: bool, device: &Device) -> Self {
        Self {
            SelfAttention: T5Attention::new(config, with_bias, device),
            layer_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, device),
            dropout: Dropout::new(config.dropout_rate),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let normal = self.layer_norm.forward(hidden.clone());
        let (key, value) = self.SelfAttention.keys_and_values(normal.clone());
        let seen = extend_cache(cache, layer, key, value);
        let mixed = self.SelfAttention.mix(normal, seen, mask);
        hidden + self.dropout.forward(mixed)
    }
}

/// Attention to the source with the norm before it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct T5LayerCrossAttention {
    pub EncDecAttention: T5Attention,
    pub layer_norm: RmsNorm,
    dropout: Dropout,
}

impl T5LayerCrossAttention {
    fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            EncDecAttention: T5Attention::new(config, false, device),
            layer_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, device),
            dropout: Dropout::new(config.dropout_rate),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        (source, mask): (&Tensor<3>, Option<&AttentionMask>),
        cache: Option<&mut SourceCache>,
    ) -> Tensor<3> {
        let normal = self.layer_norm.forward(hidden.clone());
        let compute = || self.EncDecAttention.keys_and_values(source.clone());
        let seen = SourceCache::get_or(cache, layer, compute);
        hidden + self.dropout.forward(self.EncDecAttention.mix(normal, seen, mask))
    }
}

/// Two layers with an activation between them, or three where one of them is a gate.
#[derive(Module, Debug)]
pub struct T5DenseActDense {
    /// `[d_ff, d_model]`, where nothing is gated.
    pub wi: Option<Projection>,
    /// `[d_ff, d_model]`, the gate.
    pub wi_0: Option<Projection>,
    /// `[d_ff, d_model]`, what is gated.
    pub wi_1: Option<Projection>,
    /// `[d_model, d_ff]`
    pub wo: Projection,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl T5DenseActDense {
    fn new(config: &T5Config, device: &Device) -> Self {
        let (act, gated) = config.act().unwrap_or((Activation::Relu, false));
        let wide = || Projection::new(config.d_model, config.d_ff, false, device);
        Self {
            wi: (!gated).then(wide),
            wi_0: gated.then(wide),
            wi_1: gated.then(wide),
            wo: Projection::new(config.d_ff, config.d_model, false, device),
            dropout: Dropout::new(config.dropout_rate),
            act,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = match (&self.wi, &self.wi_0, &self.wi_1) {
            (_, Some(gate), Some(up)) => self.act.gate(gate.forward(hidden.clone()), up.forward(hidden)),
            (Some(up), _, _) => self.act.apply(up.forward(hidden)),
            _ => unreachable!("a layer is built gated or plain"),
        };
        self.wo.forward(self.dropout.forward(inner))
    }
}

/// The wide layers with the norm before them.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct T5LayerFF {
    pub DenseReluDense: T5DenseActDense,
    pub layer_norm: RmsNorm,
    dropout: Dropout,
}

impl T5LayerFF {
    fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            DenseReluDense: T5DenseActDense::new(config, device),
            layer_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, device),
            dropout: Dropout::new(config.dropout_rate),
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.DenseReluDense.forward(self.layer_norm.forward(hidden.clone()));
        hidden + self.dropout.forward(inner)
    }
}

/// One layer of the encoder.
#[derive(Module, Debug)]
pub struct T5EncoderBlock {
    /// `layer.0` and `layer.1`.
    pub layer: (T5LayerSelfAttention, T5LayerFF),
}

/// One layer of the decoder.
#[derive(Module, Debug)]
pub struct T5DecoderBlock {
    /// `layer.0`, `layer.1` and `layer.2`.
    pub layer: (T5LayerSelfAttention, T5LayerCrossAttention, T5LayerFF),
}

impl T5DecoderBlock {
    /// Reads a mask, the source `[batch, source, d_model]`, and the mask over that.
    fn forward(
        &self,
        hidden: Tensor<3>,
        at: usize,
        (mask, source, over_source): &(Option<AttentionMask>, Tensor<3>, Option<AttentionMask>),
        (cache, source_cache): (Option<&mut KvCache>, Option<&mut SourceCache>),
    ) -> Tensor<3> {
        let hidden = self.layer.0.forward(hidden, at, mask.as_ref(), cache);
        let hidden = self.layer.1.forward(hidden, at, (source, over_source.as_ref()), source_cache);
        self.layer.2.forward(hidden)
    }
}

/// A mask as T5 applies it, by addition: a query that may see nothing sees all alike.
fn with_bias(mask: Option<AttentionMask>, bias: Option<Tensor<4>>) -> Option<AttentionMask> {
    let mask = mask.map(AttentionMask::never_blind);
    match bias {
        Some(bias) => Some(mask.unwrap_or_default().with_bias(bias)),
        None => mask,
    }
}

/// The encoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct T5Encoder {
    pub block: Vec<T5EncoderBlock>,
    pub final_layer_norm: RmsNorm,
    dropout: Dropout,
}

impl T5Encoder {
    fn new(config: &T5Config, device: &Device) -> Self {
        let block = |at| T5EncoderBlock {
            layer: (T5LayerSelfAttention::new(config, at == 0, device), T5LayerFF::new(config, device)),
        };
        Self {
            block: (0..config.num_layers).map(block).collect(),
            final_layer_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, device),
            dropout: Dropout::new(config.dropout_rate),
        }
    }

    fn forward(&self, input: &ModelInput, table: &Embedding) -> Tensor<3> {
        let [_, seq] = input.dims();
        let bias = self.block.first().and_then(|it| {
            let attention = &it.layer.0.SelfAttention;
            attention.position_bias(seq, 0, true, &input.device())
        });
        let mask = with_bias(mask::bidirectional(input, 0), bias);
        let mut hidden = self.dropout.forward(input.tokens.embed(|ids| table.forward(ids)));
        for (at, block) in self.block.iter().enumerate() {
            hidden = gradient_checkpointing::layer(block, hidden, &mask, move |block, hidden, mask| {
                let hidden = block.layer.0.forward(hidden, at, mask.as_ref(), None);
                block.layer.1.forward(hidden)
            });
        }
        self.dropout.forward(self.final_layer_norm.forward(hidden))
    }
}

/// The decoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct T5Decoder {
    pub block: Vec<T5DecoderBlock>,
    pub final_layer_norm: RmsNorm,
    dropout: Dropout,
}

impl T5Decoder {
    fn new(config: &T5Config, device: &Device) -> Self {
        let block = |at| T5DecoderBlock {
            layer: (
                T5LayerSelfAttention::new(config, at == 0, device),
                T5LayerCrossAttention::new(config, device),
                T5LayerFF::new(config, device),
            ),
        };
        Self {
            block: (0..config.num_decoder_layers.unwrap_or(config.num_layers)).map(block).collect(),
            final_layer_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, device),
            dropout: Dropout::new(config.dropout_rate),
        }
    }

    fn forward(
        &self,
        input: &ModelInput,
        table: &Embedding,
        source: &Encoded,
        mut cache: Option<&mut KvCache>,
        mut source_cache: Option<&mut SourceCache>,
    ) -> Tensor<3> {
        let [_, seq] = input.dims();
        let past = cache.as_ref().map_or(0, |it| it.len());
        let bias = self.block.first().and_then(|it| {
            let attention = &it.layer.0.SelfAttention;
            attention.position_bias(seq, past, false, &input.device())
        });
        let mask = with_bias(mask::causal(input, past, None), bias);
        let over_source = with_bias(mask::across(source.attention_mask.as_ref()), None);
        let read = &(mask, source.hidden.clone(), over_source);
        let mut hidden = self.dropout.forward(input.tokens.embed(|ids| table.forward(ids)));
        for (at, block) in self.block.iter().enumerate() {
            let caches = (cache.as_deref_mut(), source_cache.as_deref_mut());
            hidden = layers::run_decoder((block, at), hidden, read, caches, move |block, hidden, read, caches| {
                block.forward(hidden, at, read, caches)
            });
        }
        self.dropout.forward(self.final_layer_norm.forward(hidden))
    }
}

/// T5 with a language-model head.
#[derive(Module, Debug)]
pub struct T5ForConditionalGeneration {
    /// The embedding matrix of both stacks, `[vocab, d_model]`.
    pub shared: Embedding,
    /// The encoder.
    pub encoder: T5Encoder,
    /// The decoder.
    pub decoder: T5Decoder,
    /// The head, unless it is the embedding matrix read the other way.
    pub lm_head: Option<Projection>,
    scale: f64,
    #[module(skip)]
    config: T5Config,
}

impl T5ForConditionalGeneration {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &T5Config, device: &Device) -> Self {
        let head = || Projection::new(config.d_model, config.vocab_size, false, device);
        Self {
            shared: Embedding::new(config.vocab_size, config.d_model, device),
            encoder: T5Encoder::new(config, device),
            decoder: T5Decoder::new(config, device),
            lm_head: (!config.tie_word_embeddings).then(head),
            scale: config.scale_of_output(),
            config: config.clone(),
        }
    }
}

impl Adaptable for T5ForConditionalGeneration {
    fn spec(&self) -> ModelSpec {
        let config = &self.config;
        let prompts = PromptShape {
            table: "shared".into(),
            d_model: config.d_model,
            // The reference counts the encoder's, and leaves over what the decoder has no layer for.
            layers: config.num_layers,
            heads: config.num_heads,
            kv_heads: config.num_heads,
            d_head: config.d_kv,
        };
        ModelSpec::of(self)
            .with_model_type(&config.model_type)
            .with_heads(["lm_head"])
            .with_full_precision(FULL_PRECISION)
            .with_prompts("", prompts)
    }

    fn is_tied(&self) -> bool {
        Seq2SeqLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        Seq2SeqLm::untie(self);
    }
}

impl Seq2SeqLm for T5ForConditionalGeneration {
    fn encode(&self, source: &ModelInput) -> Encoded {
        let source = prompt::before_encoder(&self.shared, source);
        let hidden = self.encoder.forward(&source, &self.shared);
        Encoded { hidden, attention_mask: source.attention_mask }
    }

    fn decode(&self, target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3> {
        let (cache, source_cache) = Seq2SeqCache::parts(cache);
        let hidden = prompt::around_decoder(&self.shared, target, cache, |target, cache| {
            self.decoder.forward(target, &self.shared, source, cache, source_cache)
        });
        if self.scale == 1.0 { hidden } else { hidden.mul_scalar(self.scale) }
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.shared.attend(hidden),
        }
    }

    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>> {
        shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
    }

    fn decoder_start(&self) -> Option<u32> {
        self.config.decoder_start_token_id.and_then(|it| u32::try_from(it).ok())
    }

    fn is_tied(&self) -> bool {
        self.lm_head.is_none()
    }

    fn untie(&mut self) {
        self.lm_head.get_or_insert_with(|| self.shared.as_head());
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// `T5Attention._relative_position_bucket` of transformers 5.23 with 32 buckets and a longest distance of 128.
    #[test]
    fn far_distances_share_buckets() {
        let places = |bidirectional| DISTANCES.map(|it| bucket(it, bidirectional, 32, 128));
        assert_eq!(places(true), BIDIRECTIONAL);
        assert_eq!(places(false), CAUSAL);
    }

    const DISTANCES: [i64; 22] =
        [0, 1, -1, 7, 8, -8, 11, 12, -15, 16, -16, 23, -31, 32, -46, 64, 90, -91, 127, -128, 300, -400];
    const BIDIRECTIONAL: [i64; 22] =
        [0, 17, 1, 23, 24, 8, 24, 25, 9, 26, 10, 27, 11, 28, 13, 30, 30, 15, 31, 15, 31, 15];
    const CAUSAL: [i64; 22] = [0, 0, 1, 0, 0, 8, 0, 0, 15, 0, 16, 0, 21, 0, 24, 0, 0, 29, 0, 31, 0, 31];
}
