//! ChatGLM of three generations: the first is a network of its own, the second and third are one.
//!
//! Source: the `modeling_chatglm.py` and `tokenization_chatglm.py` that lie beside the checkpoints on the hub
//! (THUDM/chatglm-6b; THUDM/chatglm2-6b and chatglm3-6b), computed in f32.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::forward::gradient_checkpointing::{Exchange, Inputs};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection, RmsNorm};
use peft_core::ops::{self, AttentionMask, Pairing, RotaryTable, attention};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::decoder::{Decoder, decoder_heads};
use crate::common::input::{KvCache, ModelInput, Target, Tokens, extend_cache};
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::rope::Rope;
use crate::common::task::CausalLm;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "transformer.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["chatglm"], BASE_PREFIX)
        .causal_lm(ChatGlmForConditionalGeneration::new)
        .feature_extractor(ChatGlmModel::new)
}

const THETA: f32 = 10_000.0;

/// The first generation scales its residuals for as many layers, whatever `num_layers` says.
const LAYERS_OF_6B: f64 = 28.0;

/// `config.json` of either kind.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum ChatGlmConfig {
    First(FirstConfig),
    Second(SecondConfig),
}

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
    fn kv_heads(&self) -> usize {
        if self.multi_query_attention { self.multi_query_group_num } else { self.num_attention_heads }
    }
}

impl ModelConfig for ChatGlmConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // Checkpoints may carry prefixes that their own code trained.
        let unknown = ["pre_seq_len", "prefix_projection", "quantization_bit"];
        // Absent and null are one.
        let mut raw = raw.clone();
        raw.json.retain(|_, value| *value != Value::Null);
        if !raw.json.contains_key("padded_vocab_size") {
            let config: FirstConfig = raw.parse(&unknown)?;
            let heads = ("num_attention_heads", config.num_attention_heads);
            heads_divide(heads, ("hidden_size", config.hidden_size))?;
            return Ok(Self::First(config));
        }
        let config: SecondConfig = raw.parse(&unknown)?;
        heads_divide(
            ("multi_query_group_num", config.kv_heads()),
            ("num_attention_heads", config.num_attention_heads),
        )?;
        if !config.rmsnorm {
            let reason = "is false, and only root mean square norms are computed; no published checkpoint has others";
            return Err(PeftError::config("rmsnorm", reason));
        }
        Ok(Self::Second(config))
    }
}

/// Two layers with an activation between them, or a gate.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GlmMlp {
    pub dense_h_to_4h: Projection,
    pub dense_4h_to_h: Projection,
    gated: bool,
}

impl GlmMlp {
    fn new(d_model: usize, d_inner: usize, bias: bool, gated: bool, device: &Device) -> Self {
        let widened = if gated { 2 * d_inner } else { d_inner };
        Self {
            dense_h_to_4h: Projection::new(d_model, widened, bias, device),
            dense_4h_to_h: Projection::new(d_inner, d_model, bias, device),
            gated,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.dense_h_to_4h.forward(hidden);
        if !self.gated {
            return self.dense_4h_to_h.forward(ops::gelu_tanh(inner));
        }
        let half = inner.dims()[2] / 2;
        let [gate, up] = ops::split(inner, [half; 2]);
        self.dense_4h_to_h.forward(Activation::Silu.gate(gate, up))
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
        self.dense.forward(mixed.swap_dims(1, 2).reshape([batch, seq, d_model]))
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
/// Virtual tokens are words before the text. A prefix has no place in it, and is seen by padding too.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct FirstModel {
    pub word_embeddings: Embedding,
    pub layers: Vec<FirstBlock>,
    pub final_layernorm: LayerNorm,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    config: FirstConfig,
}

impl FirstModel {
    fn new(config: &FirstConfig, device: &Device) -> Self {
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
    fn forward(&self, input: &ModelInput, words: &Tokens, mut cache: Option<&mut KvCache>) -> Tensor<3> {
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
            parts.map(|it| {
                let heads = it.dims()[2] / self.d_head;
                it.reshape([batch, seq, heads, self.d_head]).swap_dims(1, 2)
            })
        } else {
            let fused = fused.reshape([batch, seq, self.heads, 3 * self.d_head]);
            ops::split(fused, [self.d_head; 3]).map(|it| it.swap_dims(1, 2))
        };
        let (key, value) = extend_cache(cache, layer, rotary.rotate(key), value);
        let scale = (self.d_head as f64).powf(-0.5);
        let mixed = attention(rotary.rotate(query), key, value, mask, scale, &self.dropout);
        self.dense.forward(mixed.swap_dims(1, 2).reshape([batch, seq, self.heads * self.d_head]))
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
    config: SecondConfig,
}

impl SecondModel {
    fn new(config: &SecondConfig, device: &Device) -> Self {
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

    fn forward(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
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

/// ChatGLM, with what is called the model in its checkpoints.
#[derive(Module, Debug)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum ChatGlmModel {
    First(FirstModel),
    Second(SecondModel),
}

impl ChatGlmModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ChatGlmConfig, device: &Device) -> Self {
        match config {
            ChatGlmConfig::First(config) => Self::First(FirstModel::new(config, device)),
            ChatGlmConfig::Second(config) => Self::Second(SecondModel::new(config, device)),
        }
    }
}

impl ChatGlmModel {
    fn layers(&self, input: &ModelInput, words: &Tokens, cache: Option<&mut KvCache>) -> Tensor<3> {
        match self {
            Self::First(it) => it.forward(input, words, cache),
            Self::Second(it) => it.forward(input, cache),
        }
    }
}

impl Decoder for ChatGlmModel {
    fn stack(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.layers(input, &input.tokens, cache)
    }

    fn forward(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        // Behind virtual tokens there are no ids any more.
        let words = &input.tokens;
        prompt::around(self.embedding(), input, cache, |input, cache| self.layers(input, words, cache))
    }

    fn embedding(&self) -> &Embedding {
        match self {
            Self::First(it) => &it.word_embeddings,
            Self::Second(it) => &it.embedding.word_embeddings,
        }
    }

    fn prompts(&self) -> PromptShape {
        match self {
            Self::First(FirstModel { config: it, .. }) => {
                PromptShape::even("word_embeddings", it.hidden_size, it.num_layers, it.num_attention_heads)
            }
            Self::Second(SecondModel { config: it, .. }) => PromptShape {
                table: "embedding.word_embeddings".into(),
                d_model: it.hidden_size,
                layers: it.num_layers,
                heads: it.num_attention_heads,
                kv_heads: it.kv_heads(),
                d_head: it.kv_channels,
            },
        }
    }

    fn model_type(&self) -> &'static str {
        "chatglm"
    }
}

decoder_heads! { @base ChatGlmModel }

/// ChatGLM that writes.
#[derive(Module, Debug)]
pub struct ChatGlmForConditionalGeneration {
    /// The stack.
    pub transformer: ChatGlmModel,
    /// The head of the first generation, unless it is the embedding table read the other way.
    pub lm_head: Option<Projection>,
}

impl ChatGlmForConditionalGeneration {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ChatGlmConfig, device: &Device) -> Self {
        let lm_head = match config {
            ChatGlmConfig::First(it) if !it.tie_word_embeddings => {
                Some(Projection::new(it.hidden_size, it.vocab_size, false, device))
            }
            _ => None,
        };
        Self { transformer: ChatGlmModel::new(config, device), lm_head }
    }
}

impl Adaptable for ChatGlmForConditionalGeneration {
    // The head of the later generations is not declared as one there: `all-linear` takes it in.
    fn spec(&self) -> ModelSpec {
        self.transformer.spec_within(ModelSpec::of(self), "transformer").with_heads(["lm_head"])
    }

    fn is_tied(&self) -> bool {
        CausalLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        CausalLm::untie(self);
    }
}

impl CausalLm for ChatGlmForConditionalGeneration {
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.transformer.forward(input, cache)
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match (&self.lm_head, &self.transformer) {
            (Some(head), _) => head.forward(hidden),
            (None, ChatGlmModel::First(it)) => it.word_embeddings.attend(hidden),
            (None, ChatGlmModel::Second(it)) => it.output_layer.forward(hidden),
        }
    }

    fn head_weight(&self) -> Option<Tensor<2>> {
        match (&self.lm_head, &self.transformer) {
            (Some(head), _) => head.bare_weight(),
            (None, ChatGlmModel::First(it)) => it.word_embeddings.bare_weight(),
            (None, ChatGlmModel::Second(it)) => it.output_layer.bare_weight(),
        }
    }

    /// The first generation finds in a row what it has to write, and where that belongs, once.
    fn supports_packing(&self) -> bool {
        matches!(self.transformer, ChatGlmModel::Second(_))
    }

    fn is_tied(&self) -> bool {
        self.lm_head.is_none() && matches!(self.transformer, ChatGlmModel::First(_))
    }

    fn untie(&mut self) {
        if let ChatGlmModel::First(it) = &self.transformer {
            self.lm_head.get_or_insert_with(|| it.word_embeddings.as_head());
        }
    }
}
