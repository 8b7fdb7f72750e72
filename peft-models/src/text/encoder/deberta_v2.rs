//! DeBERTa v2 and v3. Source: `transformers/models/deberta_v2/modeling_deberta_v2.py` (5.23).
//!
//! Beside [`deberta`](crate::text::encoder::deberta): queries, keys and values have matrices of their own, which distances may share;
//! far distances fall into buckets; the table of distances may be normalised; and a convolution may follow the first
//! layer.

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use peft_core::forward;
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Conv1d, Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::AttentionMask;
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde::Deserialize;
use serde_json::json;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, LabelConfig, RawConfig};
use crate::common::heads::masked_lm::{LmPredictions, MaskedHead, masked_lm};
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{FeatureExtractor, SequenceClassifier};
use crate::text::encoder::deberta::{
    ContextPooler, DebertaConfig, DebertaEmbeddings, DebertaIntermediate, DebertaOutput,
};
use crate::text::encoder::disentangled::{Distances, Positions, disentangled_attention};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "deberta.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["deberta-v2"], BASE_PREFIX)
        .sequence_classifier(DebertaV2ForSequenceClassification::new)
        .token_classifier(DebertaV2ForTokenClassification::new)
        .question_answerer(DebertaV2ForQuestionAnswering::new)
        .masked_lm(DebertaV2ForMaskedLm::new)
        .feature_extractor(DebertaV2Model::new)
}

/// `config.json` of a DeBERTa v2: that of the first generation, with other defaults and more fields.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct DebertaV2Config {
    pub base: DebertaConfig,
    /// Distances that have a row of their own or share one; none where `max_relative_positions` counts.
    pub position_buckets: Option<usize>,
    /// Whether distances use the matrices of tokens.
    pub share_att_key: bool,
    /// Whether the table of distances is normalised.
    pub norm_rel_ebd: bool,
    /// Width of the convolution, 0 for none.
    pub conv_kernel_size: usize,
    pub conv_groups: usize,
    pub conv_act: Activation,
}

/// The fields that the first generation lacks, as they are written.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct More {
    position_buckets: i64,
    share_att_key: bool,
    norm_rel_ebd: String,
    conv_kernel_size: usize,
    conv_groups: usize,
    conv_act: Activation,
    attention_head_size: Option<usize>,
}

impl Default for More {
    fn default() -> Self {
        Self {
            position_buckets: -1,
            share_att_key: false,
            norm_rel_ebd: "none".to_owned(),
            conv_kernel_size: 0,
            conv_groups: 1,
            conv_act: Activation::Tanh,
            attention_head_size: None,
        }
    }
}

impl ModelConfig for DebertaV2Config {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut raw = raw.clone();
        for (field, value) in [
            ("vocab_size", 128_100),
            ("hidden_size", 1536),
            ("num_hidden_layers", 24),
            ("num_attention_heads", 24),
            ("intermediate_size", 6144),
        ] {
            raw.json.entry(field).or_insert(json!(value));
        }
        let base: DebertaConfig = raw.parse(&[])?;
        base.check()?;
        let more: More = raw.parse(&[])?;
        if let Some(d_head) = more.attention_head_size.filter(|it| it * base.num_attention_heads != base.hidden_size) {
            let reason = format!("is {d_head}, which times `num_attention_heads` is not `hidden_size`");
            return Err(PeftError::config("attention_head_size", reason));
        }
        if more.conv_kernel_size > 0 && more.conv_kernel_size.is_multiple_of(2) {
            let reason = format!("is {}, but only odd ones keep the length", more.conv_kernel_size);
            return Err(PeftError::config("conv_kernel_size", reason));
        }
        if !base.hidden_size.is_multiple_of(more.conv_groups.max(1)) || more.conv_groups == 0 {
            let reason = format!("is {}, which does not divide `hidden_size`", more.conv_groups);
            return Err(PeftError::config("conv_groups", reason));
        }
        let normalised = more.norm_rel_ebd.to_lowercase().split('|').any(|it| it.trim() == "layer_norm");
        Ok(Self {
            base,
            position_buckets: usize::try_from(more.position_buckets).ok().filter(|it| *it > 0),
            share_att_key: more.share_att_key,
            norm_rel_ebd: normalised,
            conv_kernel_size: more.conv_kernel_size,
            conv_groups: more.conv_groups,
            conv_act: more.conv_act,
        })
    }
}

impl DebertaV2Config {
    /// Half the rows of the table of distances.
    fn span(&self) -> usize {
        self.position_buckets.unwrap_or_else(|| self.base.span())
    }
}

/// The bucket of a distance: near ones have their own, far ones share, the further the more of them.
///
/// In single precision throughout, as the reference computes it: at the edges of buckets rounding decides.
fn bucket(distance: i64, buckets: usize, longest: usize) -> i64 {
    let mid = (buckets / 2) as i64;
    let far = distance.abs();
    if far <= mid {
        return distance;
    }
    let steps = (mid - 1) as f32;
    let edge = ((longest as f64 - 1.0) / mid as f64) as f32;
    let beyond = ((far as f32 / mid as f32).ln() / edge.ln() * steps).ceil();
    (beyond as i64 + mid) * distance.signum()
}

/// Disentangled self-attention.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaV2SelfAttention {
    pub query_proj: Projection,
    pub key_proj: Projection,
    pub value_proj: Projection,
    /// Keys of distances, unless tokens lend theirs.
    pub pos_key_proj: Option<Projection>,
    /// Queries of distances, unless tokens lend theirs.
    pub pos_query_proj: Option<Projection>,
    pos_dropout: Dropout,
    dropout: Dropout,
    heads: usize,
    scale: f64,
    c2p: bool,
    p2c: bool,
}

impl DebertaV2SelfAttention {
    fn new(config: &DebertaV2Config, device: &Device) -> Self {
        let (base, d_model) = (&config.base, config.base.hidden_size);
        let (c2p, p2c) = (base.pos_att_type.content_to_position(), base.pos_att_type.position_to_content());
        let projection = || Projection::new(d_model, d_model, true, device);
        let own = base.relative_attention && !config.share_att_key;
        let terms = 1 + usize::from(c2p) + usize::from(p2c);
        Self {
            query_proj: projection(),
            key_proj: projection(),
            value_proj: projection(),
            pos_key_proj: (own && c2p).then(projection),
            pos_query_proj: (own && p2c).then(projection),
            pos_dropout: Dropout::new(base.hidden_dropout_prob),
            dropout: Dropout::new(base.attention_probs_dropout_prob),
            heads: base.num_attention_heads,
            scale: ((d_model / base.num_attention_heads * terms) as f64).powf(-0.5),
            c2p,
            p2c,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        relative: Option<&(Tensor<3>, Distances)>,
        mask: Option<&AttentionMask>,
    ) -> Tensor<3> {
        let split = |it: Tensor<3>| {
            let d_head = it.dims()[2] / self.heads;
            split_heads(it, d_head)
        };
        let query = split(self.query_proj.forward(hidden.clone()));
        let key = split(self.key_proj.forward(hidden.clone()));
        let value = split(self.value_proj.forward(hidden));
        let positions = relative.map(|(table, distances)| {
            let table = self.pos_dropout.forward(table.clone());
            let by = |own: &Option<Projection>, lent: &Projection| {
                split(own.as_ref().unwrap_or(lent).forward(table.clone()))
            };
            let key = self.c2p.then(|| by(&self.pos_key_proj, &self.key_proj));
            let query = self.p2c.then(|| by(&self.pos_query_proj, &self.query_proj));
            (Positions { key, query }, distances)
        });
        let mixed = disentangled_attention(query, key, value, positions, mask, self.scale, &self.dropout);
        merge_heads(mixed)
    }
}

/// Attention and what follows it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaV2Attention {
    /// `self` in the checkpoint.
    pub self_: DebertaV2SelfAttention,
    pub output: DebertaOutput,
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaV2Layer {
    pub attention: DebertaV2Attention,
    pub intermediate: DebertaIntermediate,
    pub output: DebertaOutput,
}

impl DebertaV2Layer {
    fn new(config: &DebertaV2Config, device: &Device) -> Self {
        let base = &config.base;
        Self {
            attention: DebertaV2Attention {
                self_: DebertaV2SelfAttention::new(config, device),
                output: DebertaOutput::new(base, base.hidden_size, device),
            },
            intermediate: DebertaIntermediate::new(base, device),
            output: DebertaOutput::new(base, base.intermediate_size, device),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        relative: Option<&(Tensor<3>, Distances)>,
        mask: Option<&AttentionMask>,
    ) -> Tensor<3> {
        let mixed = self.attention.self_.forward(hidden.clone(), relative, mask);
        let hidden = self.attention.output.forward(mixed, hidden);
        self.output.forward(self.intermediate.forward(hidden.clone()), hidden)
    }
}

/// A convolution over the embedded tokens, added to what the first layer made of them.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ConvLayer {
    /// Kernel `[d_model, d_model / groups, width]`.
    pub conv: Conv1d,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl ConvLayer {
    fn new(config: &DebertaV2Config, device: &Device) -> Self {
        let d_model = config.base.hidden_size;
        let (width, groups) = (config.conv_kernel_size, config.conv_groups);
        Self {
            conv: Conv1d::new([d_model, d_model], width, groups, device).with_padding(width / 2),
            LayerNorm: LayerNorm::new(d_model, config.base.layer_norm_eps, device),
            dropout: Dropout::new(config.base.hidden_dropout_prob),
            act: config.conv_act,
        }
    }

    /// `keep` is 1 for tokens, 0 for padding, `[batch, seq, 1]`.
    fn forward(&self, embedded: Tensor<3>, hidden: Tensor<3>, keep: Option<Tensor<3>>) -> Tensor<3> {
        let kept = |it: Tensor<3>| match &keep {
            Some(keep) => it * keep.clone(),
            None => it,
        };
        let out = kept(self.conv.forward(embedded.swap_dims(1, 2)).swap_dims(1, 2));
        let out = self.act.apply(self.dropout.forward(out));
        kept(self.LayerNorm.forward(hidden + out))
    }
}

/// The stack, with the table of distances that all layers share.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaV2Encoder {
    pub layer: Vec<DebertaV2Layer>,
    /// `[2 · span, d_model]`
    pub rel_embeddings: Option<Embedding>,
    pub LayerNorm: Option<LayerNorm>,
    pub conv: Option<ConvLayer>,
    span: usize,
    buckets: Option<usize>,
    longest: usize,
}

impl DebertaV2Encoder {
    fn new(config: &DebertaV2Config, device: &Device) -> Self {
        let (base, span) = (&config.base, config.span());
        let table = || Embedding::new(2 * span, base.hidden_size, device);
        let norm = || LayerNorm::new(base.hidden_size, base.layer_norm_eps, device);
        Self {
            layer: (0..base.num_hidden_layers).map(|_| DebertaV2Layer::new(config, device)).collect(),
            rel_embeddings: base.relative_attention.then(table),
            LayerNorm: config.norm_rel_ebd.then(norm),
            conv: (config.conv_kernel_size > 0).then(|| ConvLayer::new(config, device)),
            span,
            buckets: config.position_buckets,
            longest: base.span(),
        }
    }

    /// The table of distances, `[1 or rows, 2 · span, d_model]`, and the row of it for every pair of tokens.
    fn relative(&self, seq: usize, device: &Device) -> Option<(Tensor<3>, Distances)> {
        let table = forward::for_each_row(self.rel_embeddings.as_ref()?.table().unsqueeze::<3>());
        let table = match &self.LayerNorm {
            Some(norm) => norm.forward(table),
            None => table,
        };
        let place = |distance| match self.buckets {
            Some(buckets) => bucket(distance, buckets, self.longest),
            None => distance,
        };
        Some((table, Distances::new(seq, self.span, place, device)))
    }

    fn forward(
        &self,
        embedded: Tensor<3>,
        padding: Option<&Tensor<2, Int>>,
        mask: Option<&AttentionMask>,
    ) -> Tensor<3> {
        let [batch, seq, _] = embedded.dims();
        let relative = self.relative(seq, &embedded.device().without_autodiff());
        let mut hidden = embedded.clone();
        for (at, layer) in self.layer.iter().enumerate() {
            let read = &(relative.clone(), mask.cloned());
            hidden = gradient_checkpointing::layer(layer, hidden, read, |layer, hidden, (relative, mask)| {
                layer.forward(hidden, relative.as_ref(), mask.as_ref())
            });
            if let Some(conv) = self.conv.as_ref().filter(|_| at == 0) {
                let keep = padding.map(|it| it.clone().float().reshape([batch, seq, 1]));
                hidden = conv.forward(embedded.clone(), hidden, keep);
            }
        }
        hidden
    }
}

/// DeBERTa v2 without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaV2Model {
    pub embeddings: DebertaEmbeddings,
    pub encoder: DebertaV2Encoder,
    #[module(skip)]
    prompts: PromptShape,
}

impl DebertaV2Model {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &DebertaV2Config, device: &Device) -> Self {
        Self {
            embeddings: DebertaEmbeddings::new(&config.base, device),
            encoder: DebertaV2Encoder::new(config, device),
            prompts: config.base.prompts(),
        }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, input: &ModelInput) -> Tensor<3> {
        prompt::around(&self.embeddings.word_embeddings, input, None, |input, _| {
            let mask = mask::mutual(input);
            self.encoder.forward(self.embeddings.forward(input), input.attention_mask.as_ref(), mask.as_ref())
        })
    }
}

impl DebertaV2Model {
    fn described(&self, spec: ModelSpec, prefix: &str) -> ModelSpec {
        let spec = spec.with_model_type("deberta-v2").with_prompts(prefix, self.prompts.clone());
        let table = self.embeddings.position_embeddings.as_ref();
        spec.with_positions(table.map(|it| 0..it.rows() as i64))
    }

    fn spec_with_head(&self, spec: ModelSpec) -> ModelSpec {
        self.described(spec, "deberta")
    }
}

impl Adaptable for DebertaV2Model {
    fn spec(&self) -> ModelSpec {
        self.described(ModelSpec::of(self), "")
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.encoder.layer, order)
    }
}

impl FeatureExtractor for DebertaV2Model {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.forward(input)
    }
}

/// DeBERTa v2 that classifies a sequence.
#[derive(Module, Debug)]
pub struct DebertaV2ForSequenceClassification {
    /// The encoder.
    pub deberta: DebertaV2Model,
    /// The first token's vector, projected.
    pub pooler: ContextPooler,
    dropout: Dropout,
    /// `[num_labels, d_model]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl DebertaV2ForSequenceClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &DebertaV2Config, device: &Device) -> Self {
        Self {
            deberta: DebertaV2Model::new(config, device),
            pooler: ContextPooler::new(&config.base, device),
            dropout: config.base.dropout_of_head(),
            classifier: Projection::new(config.base.hidden_size, config.base.labels.num_labels(), true, device),
            labels: config.base.labels.clone(),
        }
    }
}

impl Adaptable for DebertaV2ForSequenceClassification {
    fn spec(&self) -> ModelSpec {
        self.deberta.spec_with_head(ModelSpec::of(self)).with_heads(["classifier"])
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.deberta.repeat_layers(order)
    }
}

impl SequenceClassifier for DebertaV2ForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let pooled = self.pooler.forward(self.deberta.forward(input));
        self.classifier.forward(self.dropout.forward(pooled))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

token_heads! {
    DebertaV2Model, DebertaV2Config, deberta: DebertaV2Model::new,
    width: |it| it.base.hidden_size,
    labels: |it| &it.base.labels,
    dropout: |it| Dropout::new(it.base.hidden_dropout_prob),
    tokens: DebertaV2ForTokenClassification(classifier),
    spans: DebertaV2ForQuestionAnswering,
}

masked_lm! {
    DebertaV2ForMaskedLm: DebertaV2Model = DebertaV2Model::new, DebertaV2Config, deberta;
    cls: MaskedHead = |config, device| {
        config.base.legacy.then(|| MaskedHead::new(&config.base.head_of_words(), device))
    },
    lm_predictions: LmPredictions = |config, device| {
        (!config.base.legacy).then(|| LmPredictions::new(&config.base.head_of_words(), device))
    };
    left_out: ["cls.predictions.decoder", "lm_predictions.lm_head.dense"]
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// `make_log_bucket_position` of transformers 5.23 with 256 buckets and a longest distance of 512.
    #[test]
    fn far_distances_share_buckets() {
        let places = |distances: &[i64]| distances.iter().map(|it| bucket(*it, 256, 512)).collect::<Vec<_>>();
        assert_eq!(places(&[0, 1, -1, 127, 128, -128]), [0, 1, -1, 127, 128, -128]);
        assert_eq!(places(&PLACES.map(|it| it.0)), PLACES.map(|it| it.1));
    }

    const PLACES: [(i64, i64); 16] = [
        (129, 129),
        (130, 130),
        (131, 131),
        (133, 132),
        (140, 137),
        (-150, -143),
        (200, 169),
        (256, 192),
        (300, 207),
        (400, 233),
        (-500, -254),
        (510, 255),
        (511, 255),
        (512, 256),
        (600, 270),
        (1000, 317),
    ];
}
