//! Whisper. Source: `transformers/models/whisper/modeling_whisper.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Conv1d, Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, attention, gelu};
use peft_core::{Adaptable, ModelSpec, PeftError, Result, is_off};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, Seq2SeqCache, SourceCache, extend_cache};
use crate::common::config::{Activation, RawConfig, heads_divide};
use crate::common::input::{AudioInput, ModelInput};
use crate::common::layers;
use crate::common::mask;
use crate::common::task::{Encoded, Seq2SeqLm, shift_right};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "model.";

/// Frames of the spectrogram that become one position of the encoder: the stride of its second convolution.
pub const FRAMES_PER_POSITION: usize = 2;

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["whisper"], BASE_PREFIX).speech_seq2seq(WhisperForConditionalGeneration::new)
}

/// `config.json` of a Whisper. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct WhisperConfig {
    pub vocab_size: usize,
    pub num_mel_bins: usize,
    pub d_model: usize,
    pub encoder_layers: usize,
    pub encoder_attention_heads: usize,
    pub encoder_ffn_dim: usize,
    pub decoder_layers: usize,
    pub decoder_attention_heads: usize,
    pub decoder_ffn_dim: usize,
    pub activation_function: Activation,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub activation_dropout: f64,
    /// Positions of the encoder: half as many as there are frames in its window.
    pub max_source_positions: usize,
    pub max_target_positions: usize,
    pub tie_word_embeddings: bool,
    pub pad_token_id: Option<i64>,
    pub decoder_start_token_id: Option<i64>,
}

impl Default for WhisperConfig {
    fn default() -> Self {
        Self {
            vocab_size: 51865,
            num_mel_bins: 80,
            d_model: 384,
            encoder_layers: 4,
            encoder_attention_heads: 6,
            encoder_ffn_dim: 1536,
            decoder_layers: 4,
            decoder_attention_heads: 6,
            decoder_ffn_dim: 1536,
            activation_function: Activation::Gelu,
            dropout: 0.0,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            max_source_positions: 1500,
            max_target_positions: 448,
            tie_word_embeddings: true,
            pad_token_id: Some(50256),
            decoder_start_token_id: Some(50257),
        }
    }
}

impl ModelConfig for WhisperConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // A forward of the reference passes over `scale_embedding`, and so does this one.
        let config: Self = raw.parse_encoder_decoder(&[])?;
        for field in ["apply_spec_augment", "encoder_layerdrop", "decoder_layerdrop"] {
            if raw.json.get(field).is_some_and(|it| !is_off(it)) {
                tracing::warn!("`{field}` of {} is not computed: training goes without it", raw.path().display());
            }
        }
        for (field, heads) in [
            ("encoder_attention_heads", config.encoder_attention_heads),
            ("decoder_attention_heads", config.decoder_attention_heads),
        ] {
            heads_divide((field, heads), ("d_model", config.d_model))?;
        }
        Ok(config)
    }
}

impl WhisperConfig {
    /// Frames of the spectrogram that the encoder reads, neither more nor fewer.
    pub fn frames(&self) -> usize {
        FRAMES_PER_POSITION * self.max_source_positions
    }

    fn norm(&self, device: &Device) -> LayerNorm {
        LayerNorm::new(self.d_model, 1e-5, device)
    }
}

/// Attention to the positions of the same stack, or of the encoder. Keys have no bias.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct WhisperAttention {
    pub k_proj: Projection,
    pub v_proj: Projection,
    pub q_proj: Projection,
    pub out_proj: Projection,
    dropout: Dropout,
    heads: usize,
}

impl WhisperAttention {
    fn new(config: &WhisperConfig, heads: usize, device: &Device) -> Self {
        let projection = |bias| Projection::new(config.d_model, config.d_model, bias, device);
        Self {
            k_proj: projection(false),
            v_proj: projection(true),
            q_proj: projection(true),
            out_proj: projection(true),
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

/// `x + f(norm(x))`
fn residual(
    hidden: Tensor<3>,
    norm: &LayerNorm,
    dropout: &Dropout,
    f: impl FnOnce(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    hidden.clone() + dropout.forward(f(norm.forward(hidden)))
}

/// One layer of the encoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct WhisperEncoderLayer {
    pub self_attn: WhisperAttention,
    pub self_attn_layer_norm: LayerNorm,
    pub fc1: Projection,
    pub fc2: Projection,
    pub final_layer_norm: LayerNorm,
    dropout: Dropout,
    activation_dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl WhisperEncoderLayer {
    fn new(config: &WhisperConfig, device: &Device) -> Self {
        Self {
            self_attn: WhisperAttention::new(config, config.encoder_attention_heads, device),
            self_attn_layer_norm: config.norm(device),
            fc1: Projection::new(config.d_model, config.encoder_ffn_dim, true, device),
            fc2: Projection::new(config.encoder_ffn_dim, config.d_model, true, device),
            final_layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
            activation_dropout: Dropout::new(config.activation_dropout),
            act: config.activation_function,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let hidden = residual(hidden, &self.self_attn_layer_norm, &self.dropout, |it| {
            let seen = self.self_attn.keys_and_values(it.clone());
            self.self_attn.mix(it, seen, None)
        });
        residual(hidden, &self.final_layer_norm, &self.dropout, |it| {
            self.fc2.forward(self.activation_dropout.forward(self.act.apply(self.fc1.forward(it))))
        })
    }
}

/// One layer of the decoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct WhisperDecoderLayer {
    pub self_attn: WhisperAttention,
    pub self_attn_layer_norm: LayerNorm,
    pub encoder_attn: WhisperAttention,
    pub encoder_attn_layer_norm: LayerNorm,
    pub fc1: Projection,
    pub fc2: Projection,
    pub final_layer_norm: LayerNorm,
    dropout: Dropout,
    activation_dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl WhisperDecoderLayer {
    fn new(config: &WhisperConfig, device: &Device) -> Self {
        Self {
            self_attn: WhisperAttention::new(config, config.decoder_attention_heads, device),
            self_attn_layer_norm: config.norm(device),
            encoder_attn: WhisperAttention::new(config, config.decoder_attention_heads, device),
            encoder_attn_layer_norm: config.norm(device),
            fc1: Projection::new(config.d_model, config.decoder_ffn_dim, true, device),
            fc2: Projection::new(config.decoder_ffn_dim, config.d_model, true, device),
            final_layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
            activation_dropout: Dropout::new(config.activation_dropout),
            act: config.activation_function,
        }
    }

    /// Reads a mask, and what the encoder gave, `[batch, source, d_model]`.
    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        (mask, source): &(Option<AttentionMask>, Tensor<3>),
        (cache, source_cache): (Option<&mut KvCache>, Option<&mut SourceCache>),
    ) -> Tensor<3> {
        let hidden = residual(hidden, &self.self_attn_layer_norm, &self.dropout, |it| {
            let (key, value) = self.self_attn.keys_and_values(it.clone());
            let seen = extend_cache(cache, layer, key, value);
            self.self_attn.mix(it, seen, mask.as_ref())
        });
        let hidden = residual(hidden, &self.encoder_attn_layer_norm, &self.dropout, |it| {
            let compute = || self.encoder_attn.keys_and_values(source.clone());
            let seen = SourceCache::get_or(source_cache, layer, compute);
            self.encoder_attn.mix(it, seen, None)
        });
        residual(hidden, &self.final_layer_norm, &self.dropout, |it| {
            self.fc2.forward(self.activation_dropout.forward(self.act.apply(self.fc1.forward(it))))
        })
    }
}

/// The encoder: two convolutions over the frames, then layers.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct WhisperEncoder {
    pub conv1: Conv1d,
    /// Halves the number of frames.
    pub conv2: Conv1d,
    /// `[max_source_positions, d_model]`: sinusoids, as the files have them.
    pub embed_positions: Embedding,
    pub layers: Vec<WhisperEncoderLayer>,
    pub layer_norm: LayerNorm,
    dropout: Dropout,
}

impl WhisperEncoder {
    fn new(config: &WhisperConfig, device: &Device) -> Self {
        let d_model = config.d_model;
        Self {
            conv1: Conv1d::new([config.num_mel_bins, d_model], 3, 1, device).with_padding(1),
            conv2: Conv1d::new([d_model, d_model], 3, 1, device).with_padding(1).with_stride(FRAMES_PER_POSITION),
            embed_positions: Embedding::new(config.max_source_positions, d_model, device),
            layers: (0..config.encoder_layers).map(|_| WhisperEncoderLayer::new(config, device)).collect(),
            layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
        }
    }

    /// # Shapes
    /// - features: `[batch, mels, frames]`
    /// - output: `[batch, frames / 2, d_model]`
    fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        let heard = gelu(self.conv2.forward(gelu(self.conv1.forward(features)))).swap_dims(1, 2);
        let places = Tensor::<1, Int>::arange(0..heard.dims()[1] as i64, &heard.device()).unsqueeze();
        let hidden = self.dropout.forward(heard + self.embed_positions.forward(places));
        let hidden = self.layers.iter().fold(hidden, |hidden, layer| {
            gradient_checkpointing::layer(layer, hidden, &None::<AttentionMask>, |layer, hidden, _| {
                layer.forward(hidden)
            })
        });
        self.layer_norm.forward(hidden)
    }
}

/// The decoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct WhisperDecoder {
    /// `[vocab, d_model]`
    pub embed_tokens: Embedding,
    /// `[max_target_positions, d_model]`
    pub embed_positions: Embedding,
    pub layers: Vec<WhisperDecoderLayer>,
    pub layer_norm: LayerNorm,
    dropout: Dropout,
}

impl WhisperDecoder {
    fn new(config: &WhisperConfig, device: &Device) -> Self {
        let padding = config.pad_token_id.and_then(|it| usize::try_from(it).ok());
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.d_model, device).with_padding(padding),
            embed_positions: Embedding::new(config.max_target_positions, config.d_model, device),
            layers: (0..config.decoder_layers).map(|_| WhisperDecoderLayer::new(config, device)).collect(),
            layer_norm: config.norm(device),
            dropout: Dropout::new(config.dropout),
        }
    }

    fn forward(
        &self,
        input: &ModelInput,
        source: &Encoded,
        mut cache: Option<&mut KvCache>,
        mut source_cache: Option<&mut SourceCache>,
    ) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let read = &(mask::causal(input, past, None), source.hidden.clone());
        let words = input.tokens.embed(|ids| self.embed_tokens.forward(ids));
        let mut hidden = self.dropout.forward(words + self.embed_positions.forward(input.positions(past)));
        for (at, layer) in self.layers.iter().enumerate() {
            let caches = (cache.as_deref_mut(), source_cache.as_deref_mut());
            hidden = layers::run_decoder((layer, at), hidden, read, caches, move |layer, hidden, read, caches| {
                layer.forward(hidden, at, read, caches)
            });
        }
        self.layer_norm.forward(hidden)
    }
}

/// Whisper without a head.
#[derive(Module, Debug)]
pub struct WhisperModel {
    /// The encoder.
    pub encoder: WhisperEncoder,
    /// The decoder.
    pub decoder: WhisperDecoder,
}

/// Whisper with a language-model head.
#[derive(Module, Debug)]
pub struct WhisperForConditionalGeneration {
    /// Both stacks.
    pub model: WhisperModel,
    /// The head, unless it is the decoder's embedding matrix read the other way.
    pub proj_out: Option<Projection>,
    #[module(skip)]
    config: WhisperConfig,
}

impl WhisperForConditionalGeneration {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &WhisperConfig, device: &Device) -> Self {
        let head = || Projection::new(config.d_model, config.vocab_size, false, device);
        Self {
            model: WhisperModel {
                encoder: WhisperEncoder::new(config, device),
                decoder: WhisperDecoder::new(config, device),
            },
            proj_out: (!config.tie_word_embeddings).then(head),
            config: config.clone(),
        }
    }
}

impl Adaptable for WhisperForConditionalGeneration {
    /// Prompts have no place in it: the encoder reads no tokens, and the reference's prompt methods put their virtual tokens
    /// before those of an encoder.
    fn spec(&self) -> ModelSpec {
        ModelSpec::of(self)
            .with_model_type("whisper")
            .with_heads(["proj_out"])
            .with_token_table("model.decoder.embed_tokens")
            .with_positions(0..self.config.max_target_positions as i64)
    }

    fn is_tied(&self) -> bool {
        Seq2SeqLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        Seq2SeqLm::untie(self);
    }
}

impl Seq2SeqLm<AudioInput> for WhisperForConditionalGeneration {
    /// The encoder takes no mask, in the reference either: silence fills up a short recording.
    fn encode(&self, source: &AudioInput) -> Encoded {
        Encoded { hidden: self.model.encoder.forward(source.input_features.clone()), attention_mask: None }
    }

    fn decode(&self, target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3> {
        let (cache, source_cache) = Seq2SeqCache::parts(cache);
        self.model.decoder.forward(target, source, cache, source_cache)
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.proj_out {
            Some(head) => head.forward(hidden),
            None => self.model.decoder.embed_tokens.attend(hidden),
        }
    }

    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>> {
        shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
    }

    fn decoder_start(&self) -> Option<u32> {
        self.config.decoder_start_token_id.and_then(|it| u32::try_from(it).ok())
    }

    fn check_source(&self, source: &AudioInput) -> Result<()> {
        let [_, mels, frames] = source.input_features.dims();
        let (wanted_mels, wanted_frames) = (self.config.num_mel_bins, self.config.frames());
        if (mels, frames) == (wanted_mels, wanted_frames) {
            return Ok(());
        }
        Err(PeftError::Invalid(format!(
            "`input_features` are {frames} frames of {mels} mel bands, and this model reads {wanted_frames} of {wanted_mels}: \
             its `preprocessor_config.json` and `config.json` must go together, and recordings be cut or filled up to the \
             window"
        )))
    }

    fn is_tied(&self) -> bool {
        self.proj_out.is_none()
    }

    fn untie(&mut self) {
        self.proj_out.get_or_insert_with(|| self.model.decoder.embed_tokens.as_head());
    }
}
