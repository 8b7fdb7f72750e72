//! DeBERTa. Source: `transformers/models/deberta/modeling_deberta.py` (5.23).

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use peft_core::forward;
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection, lazy};
use peft_core::ops::{self, AttentionMask};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::heads::masked_lm::{HeadShape, LmPredictions, MaskedHead, masked_lm};
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{FeatureExtractor, SequenceClassifier};
use crate::text::encoder::disentangled::{Distances, Positions, disentangled_attention};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "deberta.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["deberta"], BASE_PREFIX)
        .sequence_classifier(DebertaForSequenceClassification::new)
        .token_classifier(DebertaForTokenClassification::new)
        .question_answerer(DebertaForQuestionAnswering::new)
        .masked_lm(DebertaForMaskedLm::new)
        .feature_extractor(DebertaModel::new)
}

/// `config.json` of a DeBERTa. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct DebertaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub embedding_size: Option<usize>,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub relative_attention: bool,
    pub max_relative_positions: i64,
    pub position_biased_input: bool,
    pub pos_att_type: PositionTerms,
    pub pooler_hidden_size: Option<usize>,
    pub pooler_hidden_act: Activation,
    pub pooler_dropout: f64,
    pub cls_dropout: Option<f64>,
    /// Whether the masked-LM head is BERT's, and not that of DeBERTa's authors.
    pub legacy: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for DebertaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50265,
            hidden_size: 768,
            embedding_size: None,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 0,
            layer_norm_eps: 1e-7,
            relative_attention: false,
            max_relative_positions: -1,
            position_biased_input: true,
            pos_att_type: PositionTerms::default(),
            pooler_hidden_size: None,
            pooler_hidden_act: Activation::Gelu,
            pooler_dropout: 0.0,
            cls_dropout: None,
            legacy: true,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for DebertaConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&["talking_head"])?;
        config.check()?;
        Ok(config)
    }
}

impl DebertaConfig {
    /// What holds for both generations of the model.
    pub(crate) fn check(&self) -> Result<()> {
        heads_divide(("num_attention_heads", self.num_attention_heads), ("hidden_size", self.hidden_size))?;
        if let Some(width) = self.pooler_hidden_size.filter(|it| *it != self.hidden_size) {
            let reason = format!("is {width}, but the pooler gets vectors of `hidden_size` = {}", self.hidden_size);
            return Err(PeftError::config("pooler_hidden_size", reason));
        }
        self.pos_att_type.check()
    }

    /// How far distances are told apart.
    pub(crate) fn span(&self) -> usize {
        usize::try_from(self.max_relative_positions).ok().filter(|it| *it > 0).unwrap_or(self.max_position_embeddings)
    }

    /// Width of the embedding matrices of tokens, segments and positions.
    pub(crate) fn d_embedding(&self) -> usize {
        self.embedding_size.unwrap_or(self.hidden_size)
    }

    /// Virtual tokens may stand before the input. There is no cache that a prefix could stand in.
    pub(crate) fn prompts(&self) -> PromptShape {
        PromptShape {
            table: "embeddings.word_embeddings".into(),
            d_model: self.d_embedding(),
            layers: 0,
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            d_head: self.hidden_size / self.num_attention_heads,
        }
    }

    pub(crate) fn head_of_words(&self) -> HeadShape {
        HeadShape {
            d_model: self.hidden_size,
            d_table: self.d_embedding(),
            vocab: self.vocab_size,
            epsilon: self.layer_norm_eps,
            act: self.hidden_act,
            is_tied: self.labels.is_tied(),
        }
    }

    pub(crate) fn dropout_of_head(&self) -> Dropout {
        Dropout::new(self.cls_dropout.unwrap_or(self.hidden_dropout_prob))
    }
}

/// `pos_att_type`: a list, or words with bars between them as older files have it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Option<OneOrMany>")]
pub struct PositionTerms(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<Option<OneOrMany>> for PositionTerms {
    fn from(given: Option<OneOrMany>) -> Self {
        Self(match given {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => text.to_lowercase().split('|').map(|it| it.trim().to_owned()).collect(),
            Some(OneOrMany::Many(terms)) => terms,
        })
    }
}

impl PositionTerms {
    /// Whether queries of tokens meet keys of distances.
    pub fn content_to_position(&self) -> bool {
        self.0.iter().any(|it| it == "c2p")
    }

    /// Whether queries of distances meet keys of tokens.
    pub fn position_to_content(&self) -> bool {
        self.0.iter().any(|it| it == "p2c")
    }

    /// How many terms are named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no term is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn check(&self) -> Result<()> {
        match self.0.iter().find(|it| !["c2p", "p2c", ""].contains(&it.as_str())) {
            Some(other) => Err(PeftError::unsupported(format!("pos_att_type `{other}`"), "c2p and p2c are known")),
            None => Ok(()),
        }
    }
}

/// Token embeddings, and those of positions and segments where the configuration has them, added up and normalised.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaEmbeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Option<Embedding>,
    pub token_type_embeddings: Option<Embedding>,
    pub embed_proj: Option<Projection>,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
}

impl DebertaEmbeddings {
    pub(crate) fn new(config: &DebertaConfig, device: &Device) -> Self {
        let (d_embedding, d_model) = (config.d_embedding(), config.hidden_size);
        let table = |rows| Embedding::new(rows, d_embedding, device);
        let padding = config.labels.pad_token_id.unwrap_or(0);
        Self {
            word_embeddings: table(config.vocab_size).with_padding(usize::try_from(padding).ok()),
            position_embeddings: config.position_biased_input.then(|| table(config.max_position_embeddings)),
            token_type_embeddings: (config.type_vocab_size > 0).then(|| table(config.type_vocab_size)),
            embed_proj: (d_embedding != d_model).then(|| Projection::new(d_embedding, d_model, false, device)),
            LayerNorm: LayerNorm::new(d_model, config.layer_norm_eps, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
        }
    }

    /// Padding becomes zero.
    pub(crate) fn forward(&self, input: &ModelInput) -> Tensor<3> {
        let [batch, seq] = input.dims();
        let mut sum = input.tokens.embed(|ids| self.word_embeddings.forward(ids));
        if let Some(table) = &self.position_embeddings {
            sum = sum + table.forward(input.positions(0));
        }
        if let Some(table) = &self.token_type_embeddings {
            let first_sentence = || Tensor::<2, Int>::zeros([1, seq], &input.device());
            sum = sum + table.forward(input.token_type_ids.clone().unwrap_or_else(first_sentence));
        }
        if let Some(widen) = &self.embed_proj {
            sum = widen.forward(sum);
        }
        let mut normal = self.LayerNorm.forward(sum);
        if let Some(mask) = &input.attention_mask {
            normal = normal * mask.clone().float().reshape([batch, seq, 1]);
        }
        self.dropout.forward(normal)
    }
}

/// Disentangled self-attention, with one matrix for queries, keys and values.
#[derive(Module, Debug)]
pub struct DebertaSelfAttention {
    /// `[3 · d_model, d_model]`: for every head its query, its key and its value.
    pub in_proj: Projection,
    /// `[d_model]`
    pub q_bias: Param<Tensor<1>>,
    /// `[d_model]`
    pub v_bias: Param<Tensor<1>>,
    /// Keys of distances, `[d_model, d_model]`.
    pub pos_proj: Option<Projection>,
    /// Queries of distances, `[d_model, d_model]`.
    pub pos_q_proj: Option<Projection>,
    pos_dropout: Dropout,
    dropout: Dropout,
    heads: usize,
    span: usize,
    scale: f64,
}

impl DebertaSelfAttention {
    fn new(config: &DebertaConfig, device: &Device) -> Self {
        let (d_model, terms) = (config.hidden_size, &config.pos_att_type);
        let d_head = d_model / config.num_attention_heads;
        let zeros = || lazy([d_model], device, move |device| Tensor::zeros([d_model], device));
        let (c2p, p2c) = (terms.content_to_position(), terms.position_to_content());
        let relative = config.relative_attention;
        Self {
            in_proj: Projection::new(d_model, 3 * d_model, false, device),
            q_bias: zeros(),
            v_bias: zeros(),
            pos_proj: (relative && c2p).then(|| Projection::new(d_model, d_model, false, device)),
            pos_q_proj: (relative && p2c).then(|| Projection::new(d_model, d_model, true, device)),
            pos_dropout: Dropout::new(config.hidden_dropout_prob),
            dropout: Dropout::new(config.attention_probs_dropout_prob),
            heads: config.num_attention_heads,
            span: config.span(),
            scale: ((d_head * (1 + terms.len())) as f64).powf(-0.5),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        relative: Option<(&Embedding, &Distances)>,
        mask: Option<&AttentionMask>,
    ) -> Tensor<3> {
        let [_, seq, d_model] = hidden.dims();
        let d_head = d_model / self.heads;
        let split = |it: Tensor<3>| {
            let d_head = it.dims()[2] / self.heads;
            split_heads(it, d_head)
        };
        let [query, key, value] = ops::split(split(self.in_proj.forward(hidden)), [d_head; 3]);
        let with = |it, bias| {
            forward::by_rows(bias, it, |bias: &Param<Tensor<1>>, it| it + split(bias.val().reshape([1, 1, d_model])))
        };
        let (query, value) = (with(query, &self.q_bias), with(value, &self.v_bias));
        let positions = relative.map(|(table, distances)| {
            let span = seq.min(self.span);
            let near = table.table().narrow(0, self.span - span, 2 * span).reshape([1, 2 * span, d_model]);
            let near = forward::for_each_row(self.pos_dropout.forward(near));
            let seen_by = |layer: &Option<Projection>| layer.as_ref().map(|it| split(it.forward(near.clone())));
            (Positions { key: seen_by(&self.pos_proj), query: seen_by(&self.pos_q_proj) }, distances)
        });
        let mixed = disentangled_attention(query, key, value, positions, mask, self.scale, &self.dropout);
        merge_heads(mixed)
    }
}

/// The end of a block: a projection, the residual, and the norm after both.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaOutput {
    pub dense: Projection,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
}

impl DebertaOutput {
    pub(crate) fn new(config: &DebertaConfig, d_input: usize, device: &Device) -> Self {
        Self {
            dense: Projection::new(d_input, config.hidden_size, true, device),
            LayerNorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
        }
    }

    pub(crate) fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.LayerNorm.forward(self.dropout.forward(self.dense.forward(inner)) + residual)
    }
}

/// Attention and what follows it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaAttention {
    /// `self` in the checkpoint.
    pub self_: DebertaSelfAttention,
    pub output: DebertaOutput,
}

/// The wide layer of a block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaIntermediate {
    pub dense: Projection,
    #[module(skip)]
    act: Activation,
}

impl DebertaIntermediate {
    pub(crate) fn new(config: &DebertaConfig, device: &Device) -> Self {
        let dense = Projection::new(config.hidden_size, config.intermediate_size, true, device);
        Self { dense, act: config.hidden_act }
    }

    pub(crate) fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.act.apply(self.dense.forward(hidden))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaLayer {
    pub attention: DebertaAttention,
    pub intermediate: DebertaIntermediate,
    pub output: DebertaOutput,
}

impl DebertaLayer {
    fn new(config: &DebertaConfig, device: &Device) -> Self {
        Self {
            attention: DebertaAttention {
                self_: DebertaSelfAttention::new(config, device),
                output: DebertaOutput::new(config, config.hidden_size, device),
            },
            intermediate: DebertaIntermediate::new(config, device),
            output: DebertaOutput::new(config, config.intermediate_size, device),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        relative: Option<(&Embedding, &Distances)>,
        mask: Option<&AttentionMask>,
    ) -> Tensor<3> {
        let mixed = self.attention.self_.forward(hidden.clone(), relative, mask);
        let hidden = self.attention.output.forward(mixed, hidden);
        self.output.forward(self.intermediate.forward(hidden.clone()), hidden)
    }
}

/// The stack, with the table of distances that all layers share.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaEncoder {
    pub layer: Vec<DebertaLayer>,
    /// `[2 · span, d_model]`
    pub rel_embeddings: Option<Embedding>,
    span: usize,
}

impl DebertaEncoder {
    fn new(config: &DebertaConfig, device: &Device) -> Self {
        let span = config.span();
        let table = || Embedding::new(2 * span, config.hidden_size, device);
        Self {
            layer: (0..config.num_hidden_layers).map(|_| DebertaLayer::new(config, device)).collect(),
            rel_embeddings: config.relative_attention.then(table),
            span,
        }
    }

    fn forward(&self, embedded: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let [_, seq, _] = embedded.dims();
        let device = embedded.device().without_autodiff();
        let distances = self.rel_embeddings.as_ref().map(|_| Distances::new(seq, seq.min(self.span), |it| it, &device));
        let read = &(self.rel_embeddings.clone().zip(distances), mask.cloned());
        self.layer.iter().fold(embedded, |hidden, layer| {
            gradient_checkpointing::layer(layer, hidden, read, |layer, hidden, (relative, mask)| {
                let relative = relative.as_ref().map(|(table, distances)| (table, distances));
                layer.forward(hidden, relative, mask.as_ref())
            })
        })
    }
}

/// DeBERTa without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DebertaModel {
    pub embeddings: DebertaEmbeddings,
    pub encoder: DebertaEncoder,
    #[module(skip)]
    prompts: PromptShape,
}

impl DebertaModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &DebertaConfig, device: &Device) -> Self {
        Self {
            embeddings: DebertaEmbeddings::new(config, device),
            encoder: DebertaEncoder::new(config, device),
            prompts: config.prompts(),
        }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, input: &ModelInput) -> Tensor<3> {
        prompt::around(&self.embeddings.word_embeddings, input, None, |input, _| {
            let mask = mask::mutual(input);
            self.encoder.forward(self.embeddings.forward(input), mask.as_ref())
        })
    }
}

impl DebertaModel {
    fn described(&self, spec: ModelSpec, prefix: &str) -> ModelSpec {
        let spec = spec.with_model_type("deberta").with_prompts(prefix, self.prompts.clone());
        let table = self.embeddings.position_embeddings.as_ref();
        spec.with_positions(table.map(|it| 0..it.rows() as i64))
    }

    fn spec_with_head(&self, spec: ModelSpec) -> ModelSpec {
        self.described(spec, "deberta")
    }
}

impl Adaptable for DebertaModel {
    fn spec(&self) -> ModelSpec {
        self.described(ModelSpec::of(self), "")
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.encoder.layer, order)
    }
}

impl FeatureExtractor for DebertaModel {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.forward(input)
    }
}

/// The summary of a sequence: its first token, once more projected.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ContextPooler {
    pub dense: Projection,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl ContextPooler {
    pub(crate) fn new(config: &DebertaConfig, device: &Device) -> Self {
        Self {
            dense: Projection::new(config.hidden_size, config.hidden_size, true, device),
            dropout: Dropout::new(config.pooler_dropout),
            act: config.pooler_hidden_act,
        }
    }

    pub(crate) fn forward(&self, hidden: Tensor<3>) -> Tensor<2> {
        let [batch, _, d_model] = hidden.dims();
        let first = self.dropout.forward(hidden.narrow(1, 0, 1).reshape([batch, d_model]));
        self.act.apply(self.dense.forward(first))
    }
}

/// DeBERTa that classifies a sequence.
#[derive(Module, Debug)]
pub struct DebertaForSequenceClassification {
    /// The encoder.
    pub deberta: DebertaModel,
    /// The first token's vector, projected.
    pub pooler: ContextPooler,
    dropout: Dropout,
    /// `[num_labels, d_model]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl DebertaForSequenceClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &DebertaConfig, device: &Device) -> Self {
        Self {
            deberta: DebertaModel::new(config, device),
            pooler: ContextPooler::new(config, device),
            dropout: config.dropout_of_head(),
            classifier: Projection::new(config.hidden_size, config.labels.num_labels(), true, device),
            labels: config.labels.clone(),
        }
    }
}

impl Adaptable for DebertaForSequenceClassification {
    fn spec(&self) -> ModelSpec {
        self.deberta.spec_with_head(ModelSpec::of(self)).with_heads(["classifier"])
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.deberta.repeat_layers(order)
    }
}

impl SequenceClassifier for DebertaForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let pooled = self.pooler.forward(self.deberta.forward(input));
        self.classifier.forward(self.dropout.forward(pooled))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

token_heads! {
    DebertaModel, DebertaConfig, deberta: DebertaModel::new,
    width: |it| it.hidden_size,
    labels: |it| &it.labels,
    dropout: |it| Dropout::new(it.hidden_dropout_prob),
    tokens: DebertaForTokenClassification(classifier),
    spans: DebertaForQuestionAnswering,
}

masked_lm! {
    DebertaForMaskedLm: DebertaModel = DebertaModel::new, DebertaConfig, deberta;
    cls: MaskedHead = |config, device| config.legacy.then(|| MaskedHead::new(&config.head_of_words(), device)),
    lm_predictions: LmPredictions = |config, device| {
        (!config.legacy).then(|| LmPredictions::new(&config.head_of_words(), device))
    };
    left_out: ["cls.predictions.decoder", "lm_predictions.lm_head.dense"]
}
