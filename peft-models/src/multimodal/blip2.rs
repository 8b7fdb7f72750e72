//! BLIP-2. Source: `transformers/models/blip_2/modeling_blip_2.py` (5.23).
//!
//! A vision tower looks at the picture, the Q-Former sums it up in a few vectors, and a language model reads those in the
//! place of as many tokens. The language model is an OPT or a T5 of this crate.

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use peft_core::nn::{Conv2d, Dropout, LayerNorm, Projection, lazy};
use peft_core::ops::attention;
use peft_core::{Adaptable, ModelSpec, PeftError, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, AutoCausalLm, AutoSeq2SeqLm, ImageToText, LanguageModel, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, RawConfig, heads_divide};
use crate::common::decoder::Decoder;
use crate::common::input::{ModelInput, Tokens};
use crate::common::layers;
use crate::common::task::{CausalLm, Seq2SeqLm};
use crate::text::decoder::opt::{OptConfig, OptForCausalLm};
use crate::text::seq2seq::t5::{T5Config, T5ForConditionalGeneration};
use crate::vision::{Size, positions};

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["blip-2"], "").image_to_text(Blip2ForConditionalGeneration::new)
}

/// `vision_config` of a BLIP-2. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Blip2VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub image_size: Size,
    pub patch_size: Size,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    pub qkv_bias: bool,
}

impl Default for Blip2VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: Size::Square(224),
            patch_size: Size::Square(14),
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            attention_dropout: 0.0,
            qkv_bias: true,
        }
    }
}

/// `qformer_config` of a BLIP-2. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Blip2QFormerConfig {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub layer_norm_eps: f64,
    pub cross_attention_frequency: usize,
}

impl Default for Blip2QFormerConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            layer_norm_eps: 1e-12,
            cross_attention_frequency: 2,
        }
    }
}

/// The language model of a BLIP-2: `text_config`.
#[derive(Debug, Clone)]
pub enum Blip2TextConfig {
    /// A decoder that reads the picture and goes on writing.
    Opt(OptConfig),
    /// An encoder that reads the picture, and a decoder that writes.
    T5(T5Config),
}

impl Blip2TextConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        raw.json.entry("model_type").or_insert(json!("opt"));
        match raw.model_type()? {
            "opt" => Ok(Self::Opt(OptConfig::from_raw(&raw)?)),
            "t5" => {
                // What T5's files say by this field, besides.
                let scaled = raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
                raw.json.entry("scale_decoder_outputs").or_insert(json!(scaled));
                Ok(Self::T5(T5Config::from_raw(&raw)?))
            }
            other => Err(PeftError::unsupported(
                format!("the language model `{other}` of a BLIP-2, `model_type` of `text_config`"),
                "`opt` and `t5` are known",
            )),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Opt(config) => config.hidden_size,
            Self::T5(config) => config.d_model,
        }
    }
}

/// `config.json` of a BLIP-2. Defaults are transformers' own.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Blip2Config {
    pub vision: Blip2VisionConfig,
    pub qformer: Blip2QFormerConfig,
    pub text: Blip2TextConfig,
    pub num_query_tokens: usize,
    /// The token in whose places the picture stands.
    pub image_token_index: Option<i64>,
    /// The token that a text begins with that has nothing but a picture: `bos_token_id` of `text_config`.
    pub first_token: Option<u32>,
}

impl ModelConfig for Blip2Config {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        #[derive(Deserialize)]
        struct Top {
            #[serde(default = "thirty_two")]
            num_query_tokens: usize,
            #[serde(alias = "image_token_id")]
            image_token_index: Option<i64>,
        }
        let part = |field: &str| {
            let mut part = raw.clone();
            part.json = raw.json.get(field).and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
            part
        };
        let top: Top = raw.parse_encoder_decoder(&[])?;
        let vision: Blip2VisionConfig = part("vision_config").parse(&[])?;
        let qformer: Blip2QFormerConfig = part("qformer_config").parse(&["use_qformer_text_input"])?;
        vision.image_size.check(vision.patch_size)?;
        heads_divide(("num_attention_heads", vision.num_attention_heads), ("hidden_size", vision.hidden_size))?;
        heads_divide(("num_attention_heads", qformer.num_attention_heads), ("hidden_size", qformer.hidden_size))?;
        if qformer.cross_attention_frequency == 0 {
            return Err(PeftError::config("cross_attention_frequency", "must be at least 1"));
        }
        Ok(Self {
            vision,
            qformer,
            first_token: first_token(&part("text_config"))?,
            text: Blip2TextConfig::from_raw(&part("text_config"))?,
            num_query_tokens: top.num_query_tokens,
            image_token_index: top.image_token_index,
        })
    }
}

/// `bos_token_id` of `text_config`. An OPT whose file does not speak of it has 2, as in transformers.
fn first_token(text: &RawConfig) -> Result<Option<u32>> {
    let is_opt = text.json.get("model_type").is_none_or(|it| it == "opt");
    match text.json.get("bos_token_id") {
        None => Ok(is_opt.then_some(2)),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|it| u32::try_from(it).ok()) {
            Some(token) => Ok(Some(token)),
            None => {
                Err(PeftError::config("bos_token_id", format!("of `text_config` is {value}, expected a token's id")))
            }
        },
    }
}

fn thirty_two() -> usize {
    32
}

/// Patches and positions, behind the token that stands for the whole picture.
#[derive(Module, Debug)]
pub struct Blip2VisionEmbeddings {
    /// `[1, 1, width]`
    pub class_embedding: Param<Tensor<3>>,
    /// The kernel that makes patches.
    pub patch_embedding: Conv2d,
    /// `[1, 1 + patches, width]`
    pub position_embedding: Param<Tensor<3>>,
    #[module(skip)]
    grid: [usize; 2],
}

impl Blip2VisionEmbeddings {
    fn new(config: &Blip2VisionConfig, device: &Device) -> Self {
        let (width, patch) = (config.hidden_size, config.patch_size.dims());
        let grid = config.image_size.patches(config.patch_size);
        let zeros = |rows| lazy([1, rows, width], device, move |device| Tensor::zeros([1, rows, width], device));
        Self {
            class_embedding: zeros(1),
            patch_embedding: Conv2d::new([CHANNELS, width], patch, 1, device).with_stride(patch),
            position_embedding: zeros(grid[0] * grid[1] + 1),
            grid,
        }
    }

    fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let [_, _, height, width] = pixel_values.dims();
        let grid = self.patch_embedding.output_size([height, width]);
        let patches = self.patch_embedding.tokens(pixel_values);
        positions::behind_class_token(
            patches,
            self.class_embedding.val(),
            self.position_embedding.val(),
            self.grid,
            grid,
        )
    }
}

/// Channels of a picture.
const CHANNELS: usize = 3;

/// Attention of every patch to every patch, with one matrix for queries, keys and values.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2Attention {
    pub qkv: Projection,
    pub projection: Projection,
    dropout: Dropout,
    heads: usize,
}

impl Blip2Attention {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let [_, _, width] = hidden.dims();
        let d_head = width / self.heads;
        let [query, key, value] = peft_core::ops::split(self.qkv.forward(hidden), [width; 3]);
        let [query, key, value] = [query, key, value].map(|it| split_heads(it, d_head));
        let mixed = attention(query, key, value, None, (d_head as f64).powf(-0.5), &self.dropout);
        self.projection.forward(merge_heads(mixed))
    }
}

/// The wide layer of the vision tower.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2Mlp {
    pub fc1: Projection,
    pub fc2: Projection,
    #[module(skip)]
    act: Activation,
}

/// One layer of the vision tower.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2EncoderLayer {
    pub self_attn: Blip2Attention,
    pub layer_norm1: LayerNorm,
    pub mlp: Blip2Mlp,
    pub layer_norm2: LayerNorm,
}

impl Blip2EncoderLayer {
    fn new(config: &Blip2VisionConfig, device: &Device) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            self_attn: Blip2Attention {
                qkv: Projection::new(width, 3 * width, config.qkv_bias, device),
                projection: Projection::new(width, width, true, device),
                dropout: Dropout::new(config.attention_dropout),
                heads: config.num_attention_heads,
            },
            layer_norm1: LayerNorm::new(width, config.layer_norm_eps, device),
            mlp: Blip2Mlp {
                fc1: Projection::new(width, inner, true, device),
                fc2: Projection::new(inner, width, true, device),
                act: config.hidden_act,
            },
            layer_norm2: LayerNorm::new(width, config.layer_norm_eps, device),
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let hidden = self.self_attn.forward(self.layer_norm1.forward(hidden.clone())) + hidden;
        let inner = self.mlp.fc1.forward(self.layer_norm2.forward(hidden.clone()));
        self.mlp.fc2.forward(self.mlp.act.apply(inner)) + hidden
    }
}

/// The layers of the vision tower.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2Encoder {
    pub layers: Vec<Blip2EncoderLayer>,
}

/// The vision tower.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2VisionModel {
    pub embeddings: Blip2VisionEmbeddings,
    pub encoder: Blip2Encoder,
    pub post_layernorm: LayerNorm,
}

impl Blip2VisionModel {
    fn new(config: &Blip2VisionConfig, device: &Device) -> Self {
        let layer = |_| Blip2EncoderLayer::new(config, device);
        Self {
            embeddings: Blip2VisionEmbeddings::new(config, device),
            encoder: Blip2Encoder { layers: (0..config.num_hidden_layers).map(layer).collect() },
            post_layernorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
        }
    }

    /// # Shapes
    /// - pixel_values: `[batch, 3, height, width]`
    /// - output: `[batch, 1 + patches, width]`
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let mut hidden = self.embeddings.forward(pixel_values);
        for (at, layer) in self.encoder.layers.iter().enumerate() {
            hidden = layers::run((layer, at), hidden, &(), None, |layer, hidden, (), _| layer.forward(hidden));
        }
        self.post_layernorm.forward(hidden)
    }
}

/// Attention of the queries, to each other or to the picture.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerMultiHeadAttention {
    pub query: Projection,
    pub key: Projection,
    pub value: Projection,
    dropout: Dropout,
    heads: usize,
}

/// A projection, the residual, and the norm after both.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerOutput {
    pub dense: Projection,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
}

impl Blip2QFormerOutput {
    fn new(config: &Blip2QFormerConfig, d_input: usize, device: &Device) -> Self {
        Self {
            dense: Projection::new(d_input, config.hidden_size, true, device),
            LayerNorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
        }
    }

    fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.LayerNorm.forward(self.dropout.forward(self.dense.forward(inner)) + residual)
    }
}

/// Attention and what follows it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerAttention {
    pub attention: Blip2QFormerMultiHeadAttention,
    pub output: Blip2QFormerOutput,
}

impl Blip2QFormerAttention {
    /// `seen` is the width of what is looked at.
    fn new(config: &Blip2QFormerConfig, seen: usize, device: &Device) -> Self {
        let width = config.hidden_size;
        Self {
            attention: Blip2QFormerMultiHeadAttention {
                query: Projection::new(width, width, true, device),
                key: Projection::new(seen, width, true, device),
                value: Projection::new(seen, width, true, device),
                dropout: Dropout::new(config.attention_probs_dropout_prob),
                heads: config.num_attention_heads,
            },
            output: Blip2QFormerOutput::new(config, width, device),
        }
    }

    fn forward(&self, hidden: Tensor<3>, seen: Tensor<3>) -> Tensor<3> {
        let it = &self.attention;
        let d_head = hidden.dims()[2] / it.heads;
        let split = |projected| split_heads(projected, d_head);
        let query = split(it.query.forward(hidden.clone()));
        let key = split(it.key.forward(seen.clone()));
        let value = split(it.value.forward(seen));
        let mixed = attention(query, key, value, None, (d_head as f64).powf(-0.5), &it.dropout);
        self.output.forward(merge_heads(mixed), hidden)
    }
}

/// The wide layer of the Q-Former.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerIntermediate {
    pub dense: Projection,
    #[module(skip)]
    act: Activation,
}

/// One layer of the Q-Former; some look at the picture.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerLayer {
    pub attention: Blip2QFormerAttention,
    pub crossattention: Option<Blip2QFormerAttention>,
    pub intermediate_query: Blip2QFormerIntermediate,
    pub output_query: Blip2QFormerOutput,
}

impl Blip2QFormerLayer {
    fn new(config: &Blip2QFormerConfig, at: usize, d_picture: usize, device: &Device) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let looks = at.is_multiple_of(config.cross_attention_frequency);
        Self {
            attention: Blip2QFormerAttention::new(config, width, device),
            crossattention: looks.then(|| Blip2QFormerAttention::new(config, d_picture, device)),
            intermediate_query: Blip2QFormerIntermediate {
                dense: Projection::new(width, inner, true, device),
                act: config.hidden_act,
            },
            output_query: Blip2QFormerOutput::new(config, inner, device),
        }
    }

    fn forward(&self, hidden: Tensor<3>, picture: &Tensor<3>) -> Tensor<3> {
        let hidden = self.attention.forward(hidden.clone(), hidden);
        let hidden = match &self.crossattention {
            Some(attention) => attention.forward(hidden, picture.clone()),
            None => hidden,
        };
        let inner = self.intermediate_query.dense.forward(hidden.clone());
        self.output_query.forward(self.intermediate_query.act.apply(inner), hidden)
    }
}

/// The layers of the Q-Former.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerEncoder {
    pub layer: Vec<Blip2QFormerLayer>,
}

/// The Q-Former: a few queries that look at a picture.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Blip2QFormerModel {
    pub layernorm: LayerNorm,
    pub encoder: Blip2QFormerEncoder,
    dropout: Dropout,
}

impl Blip2QFormerModel {
    fn new(config: &Blip2QFormerConfig, d_picture: usize, device: &Device) -> Self {
        let layer = |at| Blip2QFormerLayer::new(config, at, d_picture, device);
        Self {
            layernorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            encoder: Blip2QFormerEncoder { layer: (0..config.num_hidden_layers).map(layer).collect() },
            dropout: Dropout::new(config.hidden_dropout_prob),
        }
    }

    /// # Shapes
    /// - queries, output: `[batch, queries, width]`
    /// - picture: `[batch, patches, d_picture]`
    pub fn forward(&self, queries: Tensor<3>, picture: Tensor<3>) -> Tensor<3> {
        let mut hidden = self.dropout.forward(self.layernorm.forward(queries));
        for (at, layer) in self.encoder.layer.iter().enumerate() {
            hidden = layers::run((layer, at), hidden, &picture, None, |layer, hidden, picture, _| {
                layer.forward(hidden, picture)
            });
        }
        hidden
    }
}

/// The language model.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Blip2LanguageModel {
    /// A decoder.
    Opt(OptForCausalLm),
    /// An encoder and a decoder.
    T5(T5ForConditionalGeneration),
}

impl Blip2LanguageModel {
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match self {
            Self::Opt(model) => model.model.embedding().forward(ids),
            Self::T5(model) => model.shared.forward(ids),
        }
    }
}

/// BLIP-2 that writes text about a picture.
#[derive(Module, Debug)]
pub struct Blip2ForConditionalGeneration {
    /// The vision tower.
    pub vision_model: Blip2VisionModel,
    /// `[1, queries, width of the Q-Former]`
    pub query_tokens: Param<Tensor<3>>,
    /// The Q-Former.
    pub qformer: Blip2QFormerModel,
    /// From the width of the Q-Former to that of the language model.
    pub language_projection: Projection,
    /// The language model.
    pub language_model: Blip2LanguageModel,
    #[module(skip)]
    image_token: Option<i64>,
    #[module(skip)]
    first_token: Option<u32>,
    #[module(skip)]
    patch: [usize; 2],
}

impl Blip2ForConditionalGeneration {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &Blip2Config, device: &Device) -> Self {
        let (queries, width) = (config.num_query_tokens, config.qformer.hidden_size);
        let shape = [1, queries, width];
        Self {
            vision_model: Blip2VisionModel::new(&config.vision, device),
            query_tokens: lazy(shape, device, move |device| Tensor::zeros(shape, device)),
            qformer: Blip2QFormerModel::new(&config.qformer, config.vision.hidden_size, device),
            language_projection: Projection::new(width, config.text.width(), true, device),
            language_model: match &config.text {
                Blip2TextConfig::Opt(config) => Blip2LanguageModel::Opt(OptForCausalLm::new(config, device)),
                Blip2TextConfig::T5(config) => Blip2LanguageModel::T5(T5ForConditionalGeneration::new(config, device)),
            },
            image_token: config.image_token_index,
            first_token: config.first_token,
            patch: config.vision.patch_size.dims(),
        }
    }
}

impl Adaptable for Blip2ForConditionalGeneration {
    fn spec(&self) -> ModelSpec {
        ModelSpec::of(self).with_model_type("blip-2").with_heads(["language_model.lm_head"])
    }

    fn is_tied(&self) -> bool {
        match &self.language_model {
            Blip2LanguageModel::Opt(model) => CausalLm::is_tied(model),
            Blip2LanguageModel::T5(model) => Seq2SeqLm::is_tied(model),
        }
    }

    fn untie_head(&mut self) {
        match &mut self.language_model {
            Blip2LanguageModel::Opt(model) => CausalLm::untie(model),
            Blip2LanguageModel::T5(model) => Seq2SeqLm::untie(model),
        }
    }
}

impl ImageToText for Blip2ForConditionalGeneration {
    fn image_features(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let picture = self.vision_model.forward(pixel_values);
        let [batch, _, _] = picture.dims();
        let queries = self.query_tokens.val();
        let [_, count, width] = queries.dims();
        let summed_up = self.qformer.forward(queries.expand([batch, count, width]), picture);
        self.language_projection.forward(summed_up)
    }

    fn place(&self, features: Tensor<3>, text: &ModelInput) -> ModelInput {
        let Tokens::Ids(ids) = &text.tokens else { return text.clone() };
        let words = self.language_model.embed(ids.clone());
        let [batch, seq, d_model] = words.dims();
        let count = features.dims()[1];
        let is_picture = ids.clone().equal_elem(self.image_token.unwrap_or(-1));
        let place = is_picture.clone().int().cumsum(1).sub_scalar(1).clamp(0, count as i64 - 1);
        let place = place.unsqueeze_dim::<3>(2).expand([batch, seq, d_model]);
        let is_picture = is_picture.unsqueeze_dim::<3>(2).expand([batch, seq, d_model]);
        let embeddings = words.mask_where(is_picture, features.gather(1, place));
        ModelInput { tokens: Tokens::Embeddings(embeddings), ..text.clone() }
    }

    fn language_model(&self) -> LanguageModel {
        match &self.language_model {
            Blip2LanguageModel::Opt(model) => LanguageModel::Decoder(AutoCausalLm::from_model(model.clone())),
            Blip2LanguageModel::T5(model) => LanguageModel::EncoderDecoder(AutoSeq2SeqLm::from_model(model.clone())),
        }
    }

    fn logits(&self, read: &ModelInput, target: Option<&ModelInput>) -> Tensor<3> {
        match (&self.language_model, target) {
            (Blip2LanguageModel::Opt(model), _) => CausalLm::logits(model, read, None),
            (Blip2LanguageModel::T5(model), Some(target)) => Seq2SeqLm::logits(model, read, target),
            // Nothing is written yet.
            (Blip2LanguageModel::T5(model), None) => {
                let [batch, _] = read.dims();
                let start = i64::from(model.decoder_start().unwrap_or_default());
                let target = ModelInput::ids(Tensor::full([batch, 1], start, &read.device()));
                Seq2SeqLm::logits(model, read, &target)
            }
        }
    }

    fn has_encoder(&self) -> bool {
        matches!(self.language_model, Blip2LanguageModel::T5(_))
    }

    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>> {
        match &self.language_model {
            Blip2LanguageModel::Opt(_) => {
                Err(PeftError::unsupported("what a decoder reads behind an encoder", "this model has no encoder"))
            }
            Blip2LanguageModel::T5(model) => Seq2SeqLm::shift_right(model, labels),
        }
    }

    fn image_token(&self) -> Option<i64> {
        self.image_token
    }

    fn first_token(&self) -> Option<u32> {
        self.first_token
    }

    fn image_tokens(&self) -> usize {
        self.query_tokens.lazy_shape().as_slice()[1]
    }

    fn smallest_picture(&self) -> [usize; 2] {
        self.patch
    }
}
