//! BART and mBART. Source: `transformers/models/bart/modeling_bart.py` and `mbart` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Buffer, Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{Adaptable, ModelSpec, PromptShape, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, Seq2SeqCache, SourceCache, extend_cache};
use crate::common::config::{Activation, RawConfig, heads_divide};
use crate::common::input::{ModelInput, Tokens};
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{Encoded, Seq2SeqLm, shift_right};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "model.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["bart", "mbart"], BASE_PREFIX).seq2seq_lm(BartForConditionalGeneration::new)
}

/// Rows at the start of a table of positions that no position uses.
const OFFSET: i64 = 2;

/// `config.json` of a BART. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BartConfig {
    /// `bart` or `mbart`.
    pub model_type: String,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub d_model: usize,
    pub encoder_layers: usize,
    pub encoder_ffn_dim: usize,
    pub encoder_attention_heads: usize,
    pub decoder_layers: usize,
    pub decoder_ffn_dim: usize,
    pub decoder_attention_heads: usize,
    pub activation_function: Activation,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub activation_dropout: f64,
    pub encoder_layerdrop: f64,
    pub decoder_layerdrop: f64,
    pub scale_embedding: bool,
    pub tie_word_embeddings: bool,
    pub pad_token_id: Option<i64>,
    pub decoder_start_token_id: Option<i64>,
}

impl Default for BartConfig {
    fn default() -> Self {
        Self {
            model_type: "bart".to_owned(),
            vocab_size: 50265,
            max_position_embeddings: 1024,
            d_model: 1024,
            encoder_layers: 12,
            encoder_ffn_dim: 4096,
            encoder_attention_heads: 16,
            decoder_layers: 12,
            decoder_ffn_dim: 4096,
            decoder_attention_heads: 16,
            activation_function: Activation::Gelu,
            dropout: 0.1,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            encoder_layerdrop: 0.0,
            decoder_layerdrop: 0.0,
            scale_embedding: false,
            tie_word_embeddings: true,
            pad_token_id: Some(1),
            decoder_start_token_id: Some(2),
        }
    }
}

impl ModelConfig for BartConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // Switches of models that the first BART was converted from.
        let config: Self = raw.parse_encoder_decoder(&["is_decoder", "normalize_before", "add_final_layer_norm"])?;
        for (field, heads) in [
            ("encoder_attention_heads", config.encoder_attention_heads),
            ("decoder_attention_heads", config.decoder_attention_heads),
        ] {
            heads_divide((field, heads), ("d_model", config.d_model))?;
        }
        Ok(config)
    }
}

impl BartConfig {
    /// Whether norms stand before what they norm, and one more at the end: mBART.
    fn norms_first(&self) -> bool {
        self.model_type == "mbart"
    }

    fn norm(&self, device: &Device) -> LayerNorm {
        LayerNorm::new(self.d_model, 1e-5, device)
    }
}

/// Attention of a text to itself, or to another one.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BartAttention {
    pub k_proj: Projection,
    pub v_proj: Projection,
    pub q_proj: Projection,
    pub out_proj: Projection,
    dropout: Dropout,
    heads: usize,
}

impl BartAttention {
    fn new(config: &BartConfig, heads: usize, device: &Device) -> Self {
        let projection = || Projection::new(config.d_model, config.d_model, true, device);
        Self {
            k_proj: projection(),
            v_proj: projection(),
            q_proj: projection(),
            out_proj: projection(),
            dropout: Dropout::new(config.attention_dropout),
            heads,
        }
    }

    fn split(&self, projected: Tensor<3>) -> Tensor<4> {
        let d_head = projected.dims()[2] / self.heads;
        split_heads(projected, d_head)
    }

    fn keys_and_values(&self, hidden: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        (self.split(self.k_proj.forward(hidden.clone())), self.split(self.v_proj.forward(hidden)))
    }

    fn mix(&self, hidden: Tensor<3>, (key, value): (Tensor<4>, Tensor<4>), mask: Option<&AttentionMask>) -> Tensor<3> {
        let d_model = hidden.dims()[2];
        let query = self.split(self.q_proj.forward(hidden));
        let scale = ((d_model / self.heads) as f64).powf(-0.5);
        let mixed = attention(query, key, value, mask, scale, &self.dropout);
        self.out_proj.forward(merge_heads(mixed))
    }
}

/// Two layers with an activation between them.
///
/// They lie in their block without a name of their own.
fn feed_forward(
    hidden: Tensor<3>,
    (fc1, fc2): (&Projection, &Projection),
    act: Activation,
    dropout: &Dropout,
) -> Tensor<3> {
    fc2.forward(dropout.forward(act.apply(fc1.forward(hidden))))
}

/// `x + f(x)`, with the norm after the sum or, where `first`, before `f`.
fn residual(
    hidden: Tensor<3>,
    norm: &LayerNorm,
    first: bool,
    dropout: &Dropout,
    f: impl FnOnce(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    if first {
        hidden.clone() + dropout.forward(f(norm.forward(hidden)))
    } else {
        norm.forward(hidden.clone() + dropout.forward(f(hidden)))
    }
}

/// One layer of the encoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BartEncoderLayer {
    pub self_attn: BartAttention,
    pub self_attn_layer_norm: LayerNorm,
    pub fc1: Projection,
    pub fc2: Projection,
    pub final_layer_norm: LayerNorm,
    dropout: Dropout,
    activation_dropout: Dropout,
    #[module(skip)]
    act: Activation,
    norms_first: bool,
}

impl BartEncoderLayer {
    fn new(config: &BartConfig, device: &Device) -> Self {
        Self {
            self_attn: BartAttention::new(config, config.encoder_attention_heads, device),
            self_attn_layer_norm: config.norm(device),
            fc1: Projection::new(config.d_model, config.encoder_ffn_dim, true, device),
            fc2: Projection::new(config.encoder_ffn_dim, config.d_model, true, device),
            final_layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
            activation_dropout: Dropout::new(config.activation_dropout),
            act: config.activation_function,
            norms_first: config.norms_first(),
        }
    }

    fn forward(&self, hidden: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let (first, dropout) = (self.norms_first, &self.dropout);
        let hidden = residual(hidden, &self.self_attn_layer_norm, first, dropout, |it| {
            let seen = self.self_attn.keys_and_values(it.clone());
            self.self_attn.mix(it, seen, mask)
        });
        residual(hidden, &self.final_layer_norm, first, dropout, |it| {
            feed_forward(it, (&self.fc1, &self.fc2), self.act, &self.activation_dropout)
        })
    }
}

/// One layer of the decoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BartDecoderLayer {
    pub self_attn: BartAttention,
    pub self_attn_layer_norm: LayerNorm,
    pub encoder_attn: BartAttention,
    pub encoder_attn_layer_norm: LayerNorm,
    pub fc1: Projection,
    pub fc2: Projection,
    pub final_layer_norm: LayerNorm,
    dropout: Dropout,
    activation_dropout: Dropout,
    #[module(skip)]
    act: Activation,
    norms_first: bool,
}

impl BartDecoderLayer {
    fn new(config: &BartConfig, device: &Device) -> Self {
        Self {
            self_attn: BartAttention::new(config, config.decoder_attention_heads, device),
            self_attn_layer_norm: config.norm(device),
            encoder_attn: BartAttention::new(config, config.decoder_attention_heads, device),
            encoder_attn_layer_norm: config.norm(device),
            fc1: Projection::new(config.d_model, config.decoder_ffn_dim, true, device),
            fc2: Projection::new(config.decoder_ffn_dim, config.d_model, true, device),
            final_layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
            activation_dropout: Dropout::new(config.activation_dropout),
            act: config.activation_function,
            norms_first: config.norms_first(),
        }
    }

    /// Reads a mask, the source `[batch, source, d_model]`, and the mask over that.
    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        (mask, source, over_source): &(Option<AttentionMask>, Tensor<3>, Option<AttentionMask>),
        (cache, source_cache): (Option<&mut KvCache>, Option<&mut SourceCache>),
    ) -> Tensor<3> {
        let (first, dropout) = (self.norms_first, &self.dropout);
        let hidden = residual(hidden, &self.self_attn_layer_norm, first, dropout, |it| {
            let (key, value) = self.self_attn.keys_and_values(it.clone());
            let seen = extend_cache(cache, layer, key, value);
            self.self_attn.mix(it, seen, mask.as_ref())
        });
        let hidden = residual(hidden, &self.encoder_attn_layer_norm, first, dropout, |it| {
            let compute = || self.encoder_attn.keys_and_values(source.clone());
            let seen = SourceCache::get_or(source_cache, layer, compute);
            self.encoder_attn.mix(it, seen, over_source.as_ref())
        });
        residual(hidden, &self.final_layer_norm, first, dropout, |it| {
            feed_forward(it, (&self.fc1, &self.fc2), self.act, &self.activation_dropout)
        })
    }
}

/// Vectors and positions, added up and normalised. `past` tokens stand before the first.
fn embed(input: &ModelInput, words: Tensor<3>, past: usize, positions: &Embedding, norm: &LayerNorm) -> Tensor<3> {
    norm.forward(words + positions.forward(input.positions(past).add_scalar(OFFSET)))
}

/// The encoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BartEncoder {
    /// `[positions + 2, d_model]`
    pub embed_positions: Embedding,
    pub layers: Vec<BartEncoderLayer>,
    pub layernorm_embedding: LayerNorm,
    /// mBART's last norm.
    pub layer_norm: Option<LayerNorm>,
    dropout: Dropout,
}

impl BartEncoder {
    fn new(config: &BartConfig, device: &Device) -> Self {
        let positions = config.max_position_embeddings + OFFSET as usize;
        Self {
            embed_positions: Embedding::new(positions, config.d_model, device),
            layers: (0..config.encoder_layers).map(|_| BartEncoderLayer::new(config, device)).collect(),
            layernorm_embedding: config.norm(device),
            layer_norm: config.norms_first().then(|| config.norm(device)),
            dropout: Dropout::new(config.dropout),
        }
    }

    fn forward(&self, input: &ModelInput, words: Tensor<3>) -> Tensor<3> {
        let mask = mask::bidirectional(input, 0);
        let embedded = embed(input, words, 0, &self.embed_positions, &self.layernorm_embedding);
        let embedded = self.dropout.forward(embedded);
        let hidden = self.layers.iter().fold(embedded, |hidden, layer| {
            gradient_checkpointing::layer(layer, hidden, &mask, |layer, hidden, mask| {
                layer.forward(hidden, mask.as_ref())
            })
        });
        match &self.layer_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }
}

/// The decoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BartDecoder {
    /// `[positions + 2, d_model]`
    pub embed_positions: Embedding,
    pub layers: Vec<BartDecoderLayer>,
    pub layernorm_embedding: LayerNorm,
    /// mBART's last norm.
    pub layer_norm: Option<LayerNorm>,
    dropout: Dropout,
}

impl BartDecoder {
    fn new(config: &BartConfig, device: &Device) -> Self {
        let positions = config.max_position_embeddings + OFFSET as usize;
        Self {
            embed_positions: Embedding::new(positions, config.d_model, device),
            layers: (0..config.decoder_layers).map(|_| BartDecoderLayer::new(config, device)).collect(),
            layernorm_embedding: config.norm(device),
            layer_norm: config.norms_first().then(|| config.norm(device)),
            dropout: Dropout::new(config.dropout),
        }
    }

    fn forward(
        &self,
        input: &ModelInput,
        words: Tensor<3>,
        source: &Encoded,
        mut cache: Option<&mut KvCache>,
        mut source_cache: Option<&mut SourceCache>,
    ) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let mask = mask::causal(input, past, None);
        let over_source = mask::across(source.attention_mask.as_ref());
        let read = &(mask, source.hidden.clone(), over_source);
        let embedded = embed(input, words, past, &self.embed_positions, &self.layernorm_embedding);
        let mut hidden = self.dropout.forward(embedded);
        for (at, layer) in self.layers.iter().enumerate() {
            let caches = (cache.as_deref_mut(), source_cache.as_deref_mut());
            hidden = layers::run_decoder((layer, at), hidden, read, caches, move |layer, hidden, read, caches| {
                layer.forward(hidden, at, read, caches)
            });
        }
        match &self.layer_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }
}

/// BART without a head.
#[derive(Module, Debug)]
pub struct BartModel {
    /// The embedding matrix of both stacks, `[vocab, d_model]`.
    pub shared: Embedding,
    /// The encoder.
    pub encoder: BartEncoder,
    /// The decoder.
    pub decoder: BartDecoder,
    scale: f64,
}

impl BartModel {
    fn new(config: &BartConfig, device: &Device) -> Self {
        let padding = config.pad_token_id.and_then(|it| usize::try_from(it).ok());
        Self {
            shared: Embedding::new(config.vocab_size, config.d_model, device).with_padding(padding),
            encoder: BartEncoder::new(config, device),
            decoder: BartDecoder::new(config, device),
            scale: if config.scale_embedding { (config.d_model as f64).sqrt() } else { 1.0 },
        }
    }
}

/// BART with a language-model head.
#[derive(Module, Debug)]
pub struct BartForConditionalGeneration {
    /// Both stacks.
    pub model: BartModel,
    /// Added to the scores, `[1, vocab]`.
    pub final_logits_bias: Buffer,
    /// The head, unless it is the embedding matrix read the other way.
    pub lm_head: Option<Projection>,
    #[module(skip)]
    config: BartConfig,
}

impl BartForConditionalGeneration {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &BartConfig, device: &Device) -> Self {
        let head = || Projection::new(config.d_model, config.vocab_size, false, device);
        Self {
            model: BartModel::new(config, device),
            final_logits_bias: Buffer::zeros([1, config.vocab_size], device),
            lm_head: (!config.tie_word_embeddings).then(head),
            config: config.clone(),
        }
    }

    /// The input with vectors for ids: what the table holds, scaled. Virtual tokens come as they are.
    fn embedded(&self, input: &ModelInput) -> ModelInput {
        let words = input.tokens.embed(|ids| self.model.shared.forward(ids).mul_scalar(self.model.scale));
        ModelInput { tokens: Tokens::Embeddings(words), ..input.clone() }
    }
}

impl Adaptable for BartForConditionalGeneration {
    fn spec(&self) -> ModelSpec {
        let config = &self.config;
        // The reference counts the encoder's layers, and leaves over what the decoder has no layer for.
        let prompts =
            PromptShape::even("shared", config.d_model, config.encoder_layers, config.decoder_attention_heads);
        let spec = ModelSpec::of(self).with_model_type(&config.model_type).with_heads(["lm_head"]);
        spec.with_prompts("model", prompts).with_positions(0..config.max_position_embeddings as i64)
    }

    fn is_tied(&self) -> bool {
        Seq2SeqLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        Seq2SeqLm::untie(self);
    }
}

impl Seq2SeqLm for BartForConditionalGeneration {
    fn encode(&self, source: &ModelInput) -> Encoded {
        let source = prompt::before_encoder(&self.model.shared, &self.embedded(source));
        let words = source.tokens.embed(|ids| self.model.shared.forward(ids));
        Encoded { hidden: self.model.encoder.forward(&source, words), attention_mask: source.attention_mask }
    }

    fn decode(&self, target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3> {
        let (cache, source_cache) = Seq2SeqCache::parts(cache);
        prompt::around_decoder(&self.model.shared, &self.embedded(target), cache, |target, cache| {
            let words = target.tokens.embed(|ids| self.model.shared.forward(ids));
            self.model.decoder.forward(target, words, source, cache, source_cache)
        })
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        let scores = match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.model.shared.attend(hidden),
        };
        scores + self.final_logits_bias.value.val()
    }

    /// mBART starts a target with its last token, which names the language.
    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>> {
        let pad = self.config.pad_token_id;
        if self.config.model_type != "mbart" {
            return shift_right(labels, pad, self.config.decoder_start_token_id);
        }
        let [batch, seq] = labels.dims();
        let shifted = shift_right(labels.clone(), pad, Some(0))?;
        let pad = pad.unwrap_or_default();
        let kept = labels.clone().equal_elem(peft_core::ops::IGNORE_INDEX);
        let words = labels.mask_fill(kept, pad);
        let last = words.clone().not_equal_elem(pad).int().sum_dim(1).sub_scalar(1).clamp_min(0);
        Ok(Tensor::cat(vec![words.gather(1, last), shifted.narrow(1, 1, seq - 1)], 1).reshape([batch, seq]))
    }

    fn decoder_start(&self) -> Option<u32> {
        self.config.decoder_start_token_id.and_then(|it| u32::try_from(it).ok())
    }

    fn is_tied(&self) -> bool {
        self.lm_head.is_none()
    }

    fn untie(&mut self) {
        self.lm_head.get_or_insert_with(|| self.model.shared.as_head());
    }
}
