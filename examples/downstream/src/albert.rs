//! ALBERT: a BERT whose layers are one layer, called again at every depth, and whose words are looked up in a narrower
//! table. A model of one's own, in one file.
//!
//! Paper: Lan and others, arXiv 1909.11942. Names, order of operations and defaults follow
//! `transformers/models/albert/modeling_albert.py` and `configuration_albert.py` (5.1.0).

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use peft::core::burn;
use peft::core::burn::module::{Module, Param};
use peft::core::burn::tensor::{Device, Int, Tensor};
use peft::core::nn::{Dropout, Embedding, LayerNorm, Projection, lazy};
use peft::core::ops::{AttentionMask, attention};
use peft::core::{Adaptable, ModelSpec, PeftError, PromptShape, Result, forward};
use peft::models::auto::{Architecture, ModelConfig};
use peft::models::common::attention_heads::{merge_heads, split_heads};
use peft::models::common::cache::extend_cache;
use peft::models::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use peft::models::common::layers;
use peft::models::{
    FeatureExtractor, KvCache, MaskedLm, ModelInput, SequenceClassifier, TokenClassifier, mask, prompt,
};
use serde::Deserialize;

/// What `config.json` calls it.
const MODEL_TYPE: &str = "albert";

/// The architecture, to be registered.
pub fn architecture() -> Architecture {
    Architecture::new([MODEL_TYPE], "albert.")
        .sequence_classifier(AlbertForSequenceClassification::new)
        .token_classifier(AlbertForTokenClassification::new)
        .masked_lm(AlbertForMaskedLm::new)
        .feature_extractor(AlbertModel::new)
}

/// `config.json` of an ALBERT. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct AlbertConfig {
    pub vocab_size: usize,
    pub embedding_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_hidden_groups: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub inner_group_num: usize,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub classifier_dropout_prob: f64,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for AlbertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30000,
            embedding_size: 128,
            hidden_size: 4096,
            num_hidden_layers: 12,
            num_hidden_groups: 1,
            num_attention_heads: 64,
            intermediate_size: 16384,
            inner_group_num: 1,
            hidden_act: Activation::GeluNew,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            classifier_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            tie_word_embeddings: true,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for AlbertConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&[])?;
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        let counts = [
            ("num_hidden_groups", config.num_hidden_groups, 1..=config.num_hidden_layers.max(1)),
            ("inner_group_num", config.inner_group_num, 1..=usize::MAX),
        ];
        for (field, count, allowed) in counts {
            if !allowed.contains(&count) {
                let reason = format!("is {count} for {} layers: every layer needs a group", config.num_hidden_layers);
                return Err(PeftError::config(field, reason));
            }
        }
        Ok(config)
    }
}

impl AlbertConfig {
    /// Virtual tokens are as wide as words, keys and values as the layers: the two differ in no other encoder.
    fn prompts(&self) -> PromptShape {
        PromptShape {
            table: "embeddings.word_embeddings".to_owned(),
            d_model: self.embedding_size,
            layers: self.num_hidden_layers * self.inner_group_num,
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            d_head: self.hidden_size / self.num_attention_heads,
        }
    }

    fn classifier(&self, device: &Device) -> Projection {
        Projection::new(self.hidden_size, self.labels.num_labels(), true, device)
    }

    fn norm(&self, device: &Device) -> LayerNorm {
        LayerNorm::new(self.hidden_size, self.layer_norm_eps, device)
    }
}

/// Token, position and segment embeddings, added up and normalised, at their own width.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertEmbeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Embedding,
    pub token_type_embeddings: Embedding,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
}

impl AlbertEmbeddings {
    fn new(config: &AlbertConfig, device: &Device) -> Self {
        let table = |rows| Embedding::new(rows, config.embedding_size, device);
        let padding = usize::try_from(config.labels.pad_token_id.unwrap_or(0)).ok();
        Self {
            word_embeddings: table(config.vocab_size).with_padding(padding),
            position_embeddings: table(config.max_position_embeddings),
            token_type_embeddings: table(config.type_vocab_size),
            LayerNorm: LayerNorm::new(config.embedding_size, config.layer_norm_eps, device),
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

/// Attention of every token to every token, with its residual and norm.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertAttention {
    pub query: Projection,
    pub key: Projection,
    pub value: Projection,
    pub dense: Projection,
    pub LayerNorm: LayerNorm,
    attention_dropout: Dropout,
    output_dropout: Dropout,
    heads: usize,
}

impl AlbertAttention {
    fn new(config: &AlbertConfig, device: &Device) -> Self {
        let projection = || Projection::new(config.hidden_size, config.hidden_size, true, device);
        Self {
            query: projection(),
            key: projection(),
            value: projection(),
            dense: projection(),
            LayerNorm: config.norm(device),
            attention_dropout: Dropout::new(config.attention_probs_dropout_prob),
            output_dropout: Dropout::new(config.hidden_dropout_prob),
            heads: config.num_attention_heads,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        depth: usize,
        mask: Option<&AttentionMask>,
        prefix: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let split = |layer: &Projection| split_heads(layer.forward(hidden.clone()), d_head);
        let (key, value) = extend_cache(prefix, depth, split(&self.key), split(&self.value));
        let scale = (d_head as f64).powf(-0.5);
        let mixed = merge_heads(attention(split(&self.query), key, value, mask, scale, &self.attention_dropout));
        self.LayerNorm.forward(hidden + self.output_dropout.forward(self.dense.forward(mixed)))
    }
}

/// A layer. The reference declares a dropout behind `ffn_output` as well, and never calls it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertLayer {
    pub full_layer_layer_norm: LayerNorm,
    pub attention: AlbertAttention,
    pub ffn: Projection,
    pub ffn_output: Projection,
    #[module(skip)]
    act: Activation,
}

impl AlbertLayer {
    fn new(config: &AlbertConfig, device: &Device) -> Self {
        Self {
            full_layer_layer_norm: config.norm(device),
            attention: AlbertAttention::new(config, device),
            ffn: Projection::new(config.hidden_size, config.intermediate_size, true, device),
            ffn_output: Projection::new(config.intermediate_size, config.hidden_size, true, device),
            act: config.hidden_act,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        depth: usize,
        mask: Option<&AttentionMask>,
        prefix: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let hidden = self.attention.forward(hidden, depth, mask, prefix);
        let inner = self.ffn_output.forward(self.act.apply(self.ffn.forward(hidden.clone())));
        self.full_layer_layer_norm.forward(inner + hidden)
    }
}

/// Layers that follow each other wherever the group is called.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertLayerGroup {
    pub albert_layers: Vec<AlbertLayer>,
}

/// The stack: few groups, called at many depths.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertTransformer {
    /// From the width of words to that of the layers.
    pub embedding_hidden_mapping_in: Projection,
    pub albert_layer_groups: Vec<AlbertLayerGroup>,
    calls: usize,
}

impl AlbertTransformer {
    fn new(config: &AlbertConfig, device: &Device) -> Self {
        let group = || AlbertLayerGroup {
            albert_layers: (0..config.inner_group_num).map(|_| AlbertLayer::new(config, device)).collect(),
        };
        Self {
            embedding_hidden_mapping_in: Projection::new(config.embedding_size, config.hidden_size, true, device),
            albert_layer_groups: (0..config.num_hidden_groups).map(|_| group()).collect(),
            calls: config.num_hidden_layers,
        }
    }

    /// The layers in the order in which they are called: a layer comes as often as there are depths that share it.
    fn layers(&self) -> impl Iterator<Item = &AlbertLayer> {
        let groups = self.albert_layer_groups.len();
        (0..self.calls).flat_map(move |call| &self.albert_layer_groups[call * groups / self.calls].albert_layers)
    }

    fn forward(
        &self,
        embedded: Tensor<3>,
        mask: Option<&AttentionMask>,
        mut prefix: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let mask = &mask.cloned();
        let mut hidden = self.embedding_hidden_mapping_in.forward(embedded);
        // A prefix has keys of its own for every depth, also where depths share a layer.
        for (depth, layer) in self.layers().enumerate() {
            hidden =
                layers::run((layer, depth), hidden, mask, prefix.as_deref_mut(), move |layer, hidden, mask, prefix| {
                    layer.forward(hidden, depth, mask.as_ref(), prefix)
                });
        }
        hidden
    }
}

/// ALBERT without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertModel {
    pub embeddings: AlbertEmbeddings,
    pub encoder: AlbertTransformer,
    /// Unlike BERT's, the layer itself.
    pub pooler: Option<Projection>,
    #[module(skip)]
    prompts: PromptShape,
}

impl AlbertModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &AlbertConfig, device: &Device) -> Self {
        let pooler = Projection::new(config.hidden_size, config.hidden_size, true, device);
        Self { pooler: Some(pooler), ..Self::without_pooler(config, device) }
    }

    /// The same, for tasks that look at single tokens only.
    pub fn without_pooler(config: &AlbertConfig, device: &Device) -> Self {
        Self {
            embeddings: AlbertEmbeddings::new(config, device),
            encoder: AlbertTransformer::new(config, device),
            pooler: None,
            prompts: config.prompts(),
        }
    }

    /// The summary of every sequence: its first token, once more projected; `[batch, d_model]`. Nothing without a pooler.
    fn pool(&self, hidden: Tensor<3>) -> Option<Tensor<2>> {
        let [batch, _, d_model] = hidden.dims();
        let first = hidden.narrow(1, 0, 1).reshape([batch, d_model]);
        self.pooler.as_ref().map(|it| it.forward(first).tanh())
    }

    fn spec_with_head(&self, spec: ModelSpec) -> ModelSpec {
        spec.with_model_type(MODEL_TYPE).with_prompts("albert", self.prompts.clone())
    }
}

impl Adaptable for AlbertModel {
    fn spec(&self) -> ModelSpec {
        ModelSpec::of(self).with_model_type(MODEL_TYPE).with_prompts("", self.prompts.clone())
    }
}

impl FeatureExtractor for AlbertModel {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        prompt::around(&self.embeddings.word_embeddings, input, None, |input, prefix| {
            let past = prefix.as_ref().map_or(0, |it| it.len());
            let mask = mask::bidirectional(input, past);
            self.encoder.forward(self.embeddings.forward(input, past), mask.as_ref(), prefix)
        })
    }
}

/// ALBERT that classifies a sequence by its first token.
#[derive(Module, Debug)]
pub struct AlbertForSequenceClassification {
    /// The encoder, always with its pooler.
    pub albert: AlbertModel,
    dropout: Dropout,
    /// `[num_labels, d_model]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl AlbertForSequenceClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &AlbertConfig, device: &Device) -> Self {
        Self {
            albert: AlbertModel::new(config, device),
            dropout: Dropout::new(config.classifier_dropout_prob),
            classifier: config.classifier(device),
            labels: config.labels.clone(),
        }
    }
}

impl Adaptable for AlbertForSequenceClassification {
    fn spec(&self) -> ModelSpec {
        self.albert.spec_with_head(ModelSpec::of(self)).with_heads(["classifier"])
    }
}

impl SequenceClassifier for AlbertForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let pooled = self.albert.pool(self.albert.last_hidden_state(input));
        self.classifier.forward(self.dropout.forward(pooled.expect("a classifier is built with a pooler")))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

/// ALBERT that classifies every token.
#[derive(Module, Debug)]
pub struct AlbertForTokenClassification {
    /// The encoder, without a pooler.
    pub albert: AlbertModel,
    dropout: Dropout,
    /// `[num_labels, d_model]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl AlbertForTokenClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &AlbertConfig, device: &Device) -> Self {
        Self {
            albert: AlbertModel::without_pooler(config, device),
            dropout: Dropout::new(config.classifier_dropout_prob),
            classifier: config.classifier(device),
            labels: config.labels.clone(),
        }
    }
}

impl Adaptable for AlbertForTokenClassification {
    fn spec(&self) -> ModelSpec {
        // `AlbertForTokenClassification` has `get_output_embeddings` no more than BERT's: `all-linear` takes the head in.
        self.albert.spec_with_head(ModelSpec::of(self))
    }
}

impl TokenClassifier for AlbertForTokenClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        self.classifier.forward(self.dropout.forward(self.albert.last_hidden_state(input)))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

/// What turns hidden states into logits over the vocabulary: `AlbertMLMHead`.
#[derive(Module, Debug)]
pub struct AlbertMlmHead {
    /// Over `d_table`.
    pub LayerNorm: LayerNorm,
    /// `[vocab]`
    pub bias: Param<Tensor<1>>,
    /// Back to the width of words.
    pub dense: Projection,
    /// `[vocab, d_table]`, unless it is the embedding matrix read the other way.
    pub decoder: Option<Projection>,
    #[module(skip)]
    act: Activation,
}

impl AlbertMlmHead {
    fn new(config: &AlbertConfig, device: &Device) -> Self {
        let (width, vocab) = (config.embedding_size, config.vocab_size);
        Self {
            LayerNorm: LayerNorm::new(width, config.layer_norm_eps, device),
            bias: lazy([vocab], device, move |device| Tensor::zeros([vocab], device)),
            dense: Projection::new(config.hidden_size, width, true, device),
            decoder: (!config.tie_word_embeddings).then(|| Projection::new(width, vocab, true, device)),
            act: config.hidden_act,
        }
    }

    fn forward(&self, hidden: Tensor<3>, table: &Embedding) -> Tensor<3> {
        let hidden = self.LayerNorm.forward(self.act.apply(self.dense.forward(hidden)));
        match &self.decoder {
            Some(decoder) => decoder.forward(hidden),
            None => forward::by_rows(&self.bias, table.attend(hidden), |bias, it| it + bias.val().unsqueeze()),
        }
    }
}

/// ALBERT that guesses hidden words.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AlbertForMaskedLm {
    pub albert: AlbertModel,
    pub predictions: AlbertMlmHead,
}

impl AlbertForMaskedLm {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &AlbertConfig, device: &Device) -> Self {
        Self { albert: AlbertModel::without_pooler(config, device), predictions: AlbertMlmHead::new(config, device) }
    }
}

impl Adaptable for AlbertForMaskedLm {
    fn spec(&self) -> ModelSpec {
        self.albert.spec_with_head(ModelSpec::of(self)).with_heads(["predictions.decoder"])
    }
}

impl MaskedLm for AlbertForMaskedLm {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        let table = &self.albert.embeddings.word_embeddings;
        self.predictions.forward(self.albert.last_hidden_state(input), table)
    }
}
