//! BERT. Source: `transformers/models/bert/modeling_bert.py` (5.23).

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::heads::masked_lm::{HeadShape, MaskedHead, masked_lm};
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{FeatureExtractor, SequenceClassifier};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "bert.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["bert"], BASE_PREFIX)
        .sequence_classifier(BertForSequenceClassification::new)
        .token_classifier(BertForTokenClassification::new)
        .question_answerer(BertForQuestionAnswering::new)
        .masked_lm(BertForMaskedLm::new)
        .feature_extractor(BertModel::new)
}

/// `config.json` of a BERT. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub classifier_dropout: Option<f64>,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub position_embedding_type: Option<String>,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            position_embedding_type: None,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for BertConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&["is_decoder"])?;
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|it| *it != "absolute") {
            let what = format!("position_embedding_type `{kind}`");
            return Err(PeftError::unsupported(what, "only `absolute` positions are"));
        }
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        Ok(config)
    }
}

impl BertConfig {
    pub(crate) fn head_of_words(&self) -> HeadShape {
        HeadShape {
            d_model: self.hidden_size,
            d_table: self.hidden_size,
            vocab: self.vocab_size,
            epsilon: self.layer_norm_eps,
            act: self.hidden_act,
            is_tied: self.labels.is_tied(),
        }
    }
}

/// Token, position and segment embeddings, added up and normalised.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertEmbeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Embedding,
    pub token_type_embeddings: Embedding,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
}

impl BertEmbeddings {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let table = |rows| Embedding::new(rows, config.hidden_size, device);
        Self {
            word_embeddings: table(config.vocab_size),
            position_embeddings: table(config.max_position_embeddings),
            token_type_embeddings: table(config.type_vocab_size),
            LayerNorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
        }
    }

    fn forward(&self, input: &ModelInput, past: usize) -> Tensor<3> {
        let [_, seq] = input.dims();
        let first_sentence = || Tensor::<2, Int>::zeros([1, seq], &input.device());
        let types = input.token_type_ids.clone().unwrap_or_else(first_sentence);
        let words = input.tokens.embed(|ids| self.word_embeddings.forward(ids));
        let sum = words + self.token_type_embeddings.forward(types);
        let sum = sum + self.position_embeddings.forward(input.positions(past));
        self.dropout.forward(self.LayerNorm.forward(sum))
    }
}

/// Attention of every token to every token.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertSelfAttention {
    pub query: Projection,
    pub key: Projection,
    pub value: Projection,
    dropout: Dropout,
    heads: usize,
}

impl BertSelfAttention {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let projection = || Projection::new(config.hidden_size, config.hidden_size, true, device);
        Self {
            query: projection(),
            key: projection(),
            value: projection(),
            dropout: Dropout::new(config.attention_probs_dropout_prob),
            heads: config.num_attention_heads,
        }
    }

    /// `looking` are the tokens that look at those of `hidden`: all of them, or those whose output is wanted.
    fn forward(
        &self,
        looking: Tensor<3>,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let d_head = looking.dims()[2] / self.heads;
        let split = |projected| split_heads(projected, d_head);
        let query = split(self.query.forward(looking));
        let key = split(self.key.forward(hidden.clone()));
        let value = split(self.value.forward(hidden));
        let (key, value) = extend_cache(cache, layer, key, value);
        let mixed = attention(query, key, value, mask, (d_head as f64).powf(-0.5), &self.dropout);
        merge_heads(mixed)
    }
}

/// The end of a block: a projection, the residual, and the norm after both.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertOutput {
    pub dense: Projection,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
}

impl BertOutput {
    fn new(config: &BertConfig, d_input: usize, device: &Device) -> Self {
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
pub struct BertAttention {
    /// `self` in the checkpoint.
    pub self_: BertSelfAttention,
    pub output: BertOutput,
}

/// The wide layer of a block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertIntermediate {
    pub dense: Projection,
    #[module(skip)]
    act: Activation,
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertLayer {
    pub attention: BertAttention,
    pub intermediate: BertIntermediate,
    pub output: BertOutput,
}

impl BertLayer {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let (d_model, d_inner) = (config.hidden_size, config.intermediate_size);
        Self {
            attention: BertAttention {
                self_: BertSelfAttention::new(config, device),
                output: BertOutput::new(config, d_model, device),
            },
            intermediate: BertIntermediate {
                dense: Projection::new(d_model, d_inner, true, device),
                act: config.hidden_act,
            },
            output: BertOutput::new(config, d_inner, device),
        }
    }

    /// The output of the tokens `looking`, which may be all of `hidden`.
    fn forward(
        &self,
        looking: Tensor<3>,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let mixed = self.attention.self_.forward(looking.clone(), hidden, layer, mask, cache);
        let hidden = self.attention.output.forward(mixed, looking);
        let inner = self.intermediate.act.apply(self.intermediate.dense.forward(hidden.clone()));
        self.output.forward(inner, hidden)
    }
}

/// The tokens whose last hidden state is wanted.
///
/// A classifier looks at the first one only. Above the keys and values of the last layer the others are not computed
/// then, forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputTokens {
    All,
    ClsOnly,
}

/// The stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertEncoder {
    pub layer: Vec<BertLayer>,
}

impl BertEncoder {
    pub(crate) fn new(config: &BertConfig, device: &Device) -> Self {
        Self { layer: (0..config.num_hidden_layers).map(|_| BertLayer::new(config, device)).collect() }
    }

    /// # Shapes
    /// - embedded: `[batch, seq, d_model]`
    /// - output: `[batch, wanted, d_model]`
    pub(crate) fn forward(
        &self,
        embedded: Tensor<3>,
        mask: Option<&AttentionMask>,
        mut prefix: Option<&mut KvCache>,
        wanted: OutputTokens,
    ) -> Tensor<3> {
        let mut hidden = embedded;
        for (at, layer) in self.layer.iter().enumerate() {
            let first = wanted == OutputTokens::ClsOnly && at + 1 == self.layer.len();
            let mask = &mask.map(|it| if first { it.of_queries(0..1) } else { it.clone() });
            hidden =
                layers::run((layer, at), hidden, mask, prefix.as_deref_mut(), move |layer, hidden, mask, prefix| {
                    let looking = if first { hidden.clone().narrow(1, 0, 1) } else { hidden.clone() };
                    layer.forward(looking, hidden, at, mask.as_ref(), prefix)
                });
        }
        hidden
    }
}

/// The summary of a sequence: its first token, once more projected.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertPooler {
    pub dense: Projection,
}

impl BertPooler {
    pub(crate) fn new(config: &BertConfig, device: &Device) -> Self {
        Self { dense: Projection::new(config.hidden_size, config.hidden_size, true, device) }
    }
}

/// BERT without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BertModel {
    pub embeddings: BertEmbeddings,
    pub encoder: BertEncoder,
    pub pooler: Option<BertPooler>,
    #[module(skip)]
    prompts: PromptShape,
}

impl BertModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        Self { pooler: Some(BertPooler::new(config, device)), ..Self::without_pooler(config, device) }
    }

    /// The same, for tasks that look at single tokens only.
    pub fn without_pooler(config: &BertConfig, device: &Device) -> Self {
        Self {
            embeddings: BertEmbeddings::new(config, device),
            encoder: BertEncoder::new(config, device),
            pooler: None,
            prompts: PromptShape::even(
                "embeddings.word_embeddings",
                config.hidden_size,
                config.num_hidden_layers,
                config.num_attention_heads,
            ),
        }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, input: &ModelInput) -> Tensor<3> {
        self.hidden(input, OutputTokens::All)
    }

    fn hidden(&self, input: &ModelInput, wanted: OutputTokens) -> Tensor<3> {
        let layers = |input: &ModelInput, prefix: Option<&mut KvCache>| self.layers(input, prefix, wanted);
        prompt::around(&self.embeddings.word_embeddings, input, None, layers)
    }

    /// A prefix of keys and values comes in a cache, as it does for a decoder.
    fn layers(&self, input: &ModelInput, prefix: Option<&mut KvCache>, wanted: OutputTokens) -> Tensor<3> {
        let past = prefix.as_ref().map_or(0, |it| it.len());
        let mask = mask::bidirectional(input, past);
        self.encoder.forward(self.embeddings.forward(input, past), mask.as_ref(), prefix, wanted)
    }

    /// The summary of every sequence, `[batch, d_model]`; nothing without a pooler.
    pub fn pool(&self, hidden: Tensor<3>) -> Option<Tensor<2>> {
        let [batch, _, d_model] = hidden.dims();
        let first = hidden.narrow(1, 0, 1).reshape([batch, d_model]);
        self.pooler.as_ref().map(|it| it.dense.forward(first).tanh())
    }

    fn described(&self, spec: ModelSpec, prefix: &str) -> ModelSpec {
        let spec = spec.with_model_type("bert").with_prompts(prefix, self.prompts.clone());
        spec.with_positions(0..self.embeddings.position_embeddings.rows() as i64)
    }

    fn spec_with_head(&self, spec: ModelSpec) -> ModelSpec {
        self.described(spec, "bert")
    }
}

impl Adaptable for BertModel {
    fn spec(&self) -> ModelSpec {
        self.described(ModelSpec::of(self), "")
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.encoder.layer, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }
}

impl FeatureExtractor for BertModel {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.forward(input)
    }
}

/// BERT that classifies a sequence by its first token.
#[derive(Module, Debug)]
pub struct BertForSequenceClassification {
    /// The encoder, always with its pooler.
    pub bert: BertModel,
    dropout: Dropout,
    /// `[num_labels, d_model]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl BertForSequenceClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        Self {
            bert: BertModel::new(config, device),
            dropout: Dropout::new(config.classifier_dropout.unwrap_or(config.hidden_dropout_prob)),
            classifier: Projection::new(config.hidden_size, config.labels.num_labels(), true, device),
            labels: config.labels.clone(),
        }
    }
}

impl Adaptable for BertForSequenceClassification {
    fn spec(&self) -> ModelSpec {
        self.bert.spec_with_head(ModelSpec::of(self)).with_heads(["classifier"])
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.bert.repeat_layers(order)
    }
}

impl SequenceClassifier for BertForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let pooled = self
            .bert
            .pool(self.bert.hidden(input, OutputTokens::ClsOnly))
            .expect("a classifier is built with a pooler");
        self.classifier.forward(self.dropout.forward(pooled))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

token_heads! {
    BertModel, BertConfig, bert: BertModel::without_pooler,
    width: |it| it.hidden_size,
    labels: |it| &it.labels,
    dropout: |it| Dropout::new(it.classifier_dropout.unwrap_or(it.hidden_dropout_prob)),
    tokens: BertForTokenClassification(classifier),
    spans: BertForQuestionAnswering,
}

masked_lm! {
    BertForMaskedLm: BertModel = BertModel::without_pooler, BertConfig, bert;
    cls: MaskedHead = |config, device| Some(MaskedHead::new(&config.head_of_words(), device));
    left_out: ["cls.predictions.decoder"]
}
