//! RoBERTa and XLM-RoBERTa. Source: `transformers/models/roberta/modeling_roberta.py` (5.23).
//!
//! BERT's stack ([`bert`](crate::text::encoder::bert)) under other embeddings, whose positions count from the padding token's id, and
//! under other heads.

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde_json::json;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::cache::KvCache;
use crate::common::config::{LabelConfig, RawConfig};
use crate::common::heads::masked_lm::{RobertaHead, masked_lm};
use crate::common::heads::token_heads::token_heads;
use crate::common::input::{ModelInput, Tokens};
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{FeatureExtractor, SequenceClassifier};
use crate::text::encoder::bert::{BertConfig, BertEncoder, BertPooler, OutputTokens};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "roberta.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["roberta", "xlm-roberta"], BASE_PREFIX)
        .sequence_classifier(RobertaForSequenceClassification::new)
        .token_classifier(RobertaForTokenClassification::new)
        .question_answerer(RobertaForQuestionAnswering::new)
        .masked_lm(RobertaForMaskedLm::new)
        .feature_extractor(RobertaModel::new)
}

/// `config.json` of a RoBERTa: that of a BERT, with other defaults.
#[derive(Debug, Clone)]
pub struct RobertaConfig {
    /// `roberta` or `xlm-roberta`.
    pub model_type: String,
    /// The fields that BERT has too.
    pub bert: BertConfig,
    /// The padding token, from which positions count.
    pub pad_token_id: i64,
}

impl ModelConfig for RobertaConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let model_type = raw.model_type()?.to_owned();
        let mut raw = raw.clone();
        if model_type == "roberta" {
            raw.json.entry("vocab_size").or_insert(json!(50265));
        }
        raw.json.entry("pad_token_id").or_insert(json!(1));
        let bert = BertConfig::from_raw(&raw)?;
        let pad_token_id = bert
            .labels
            .pad_token_id
            .filter(|it| *it >= 0)
            .ok_or_else(|| PeftError::config("pad_token_id", "is not set, and positions count from it"))?;
        Ok(Self { model_type, bert, pad_token_id })
    }
}

impl RobertaConfig {
    fn dropout_of_head(&self) -> Dropout {
        Dropout::new(self.bert.classifier_dropout.unwrap_or(self.bert.hidden_dropout_prob))
    }
}

/// Token, position and segment embeddings, added up and normalised.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct RobertaEmbeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Embedding,
    pub token_type_embeddings: Embedding,
    pub LayerNorm: LayerNorm,
    dropout: Dropout,
    padding: i64,
}

impl RobertaEmbeddings {
    fn new(config: &RobertaConfig, device: &Device) -> Self {
        let (bert, padding) = (&config.bert, config.pad_token_id);
        let table = |rows| Embedding::new(rows, bert.hidden_size, device);
        Self {
            word_embeddings: table(bert.vocab_size).with_padding(Some(padding as usize)),
            position_embeddings: table(bert.max_position_embeddings).with_padding(Some(padding as usize)),
            token_type_embeddings: table(bert.type_vocab_size),
            LayerNorm: LayerNorm::new(bert.hidden_size, bert.layer_norm_eps, device),
            dropout: Dropout::new(bert.hidden_dropout_prob),
            padding,
        }
    }

    /// Where every token stands, counted from one behind the padding token's id; `[batch or 1, seq]`.
    ///
    /// Padding is told by its id and not by the mask, and stays at the position of that id. Vectors show no padding: all
    /// of them are counted.
    fn positions(&self, input: &ModelInput, past: usize) -> Tensor<2, Int> {
        match (&input.position_ids, &input.tokens) {
            (Some(positions), _) => positions.clone(),
            (None, Tokens::Ids(ids)) => {
                let kept = ids.clone().not_equal_elem(self.padding).int();
                (kept.clone().cumsum(1).add_scalar(past as i64) * kept).add_scalar(self.padding)
            }
            (None, Tokens::Embeddings(_)) => input.positions(0).add_scalar(self.padding + 1),
        }
    }

    fn forward(&self, input: &ModelInput, past: usize) -> Tensor<3> {
        let [_, seq] = input.dims();
        let first_sentence = || Tensor::<2, Int>::zeros([1, seq], &input.device());
        let types = input.token_type_ids.clone().unwrap_or_else(first_sentence);
        let words = input.tokens.embed(|ids| self.word_embeddings.forward(ids));
        let sum = words + self.token_type_embeddings.forward(types);
        let sum = sum + self.position_embeddings.forward(self.positions(input, past));
        self.dropout.forward(self.LayerNorm.forward(sum))
    }
}

/// RoBERTa without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct RobertaModel {
    pub embeddings: RobertaEmbeddings,
    pub encoder: BertEncoder,
    /// Takes no part in the last hidden state, nor in any head here.
    pub pooler: Option<BertPooler>,
    #[module(skip)]
    model_type: String,
    #[module(skip)]
    prompts: PromptShape,
}

impl RobertaModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &RobertaConfig, device: &Device) -> Self {
        Self { pooler: Some(BertPooler::new(&config.bert, device)), ..Self::without_pooler(config, device) }
    }

    /// The same as it lies under the heads.
    pub fn without_pooler(config: &RobertaConfig, device: &Device) -> Self {
        Self {
            embeddings: RobertaEmbeddings::new(config, device),
            encoder: BertEncoder::new(&config.bert, device),
            pooler: None,
            model_type: config.model_type.clone(),
            prompts: PromptShape::even(
                "embeddings.word_embeddings",
                config.bert.hidden_size,
                config.bert.num_hidden_layers,
                config.bert.num_attention_heads,
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
}

impl RobertaModel {
    fn described(&self, spec: ModelSpec, prefix: &str) -> ModelSpec {
        let spec = spec.with_model_type(&self.model_type).with_prompts(prefix, self.prompts.clone());
        let table = &self.embeddings;
        spec.with_positions(table.padding + 1..table.position_embeddings.rows() as i64)
    }

    fn spec_with_head(&self, spec: ModelSpec) -> ModelSpec {
        self.described(spec, "roberta")
    }
}

impl Adaptable for RobertaModel {
    fn spec(&self) -> ModelSpec {
        self.described(ModelSpec::of(self), "")
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.encoder.layer, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }
}

impl FeatureExtractor for RobertaModel {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.forward(input)
    }
}

/// The head that classifies a sequence by its first token.
#[derive(Module, Debug)]
pub struct RobertaClassificationHead {
    /// `[d_model, d_model]`
    pub dense: Projection,
    /// `[num_labels, d_model]`
    pub out_proj: Projection,
    dropout: Dropout,
}

impl RobertaClassificationHead {
    fn new(config: &RobertaConfig, device: &Device) -> Self {
        let d_model = config.bert.hidden_size;
        Self {
            dense: Projection::new(d_model, d_model, true, device),
            out_proj: Projection::new(d_model, config.bert.labels.num_labels(), true, device),
            dropout: config.dropout_of_head(),
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<2> {
        let [batch, _, d_model] = hidden.dims();
        let first = self.dropout.forward(hidden.narrow(1, 0, 1).reshape([batch, d_model]));
        self.out_proj.forward(self.dropout.forward(self.dense.forward(first).tanh()))
    }
}

/// RoBERTa that classifies a sequence.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct RobertaForSequenceClassification {
    pub roberta: RobertaModel,
    pub classifier: RobertaClassificationHead,
    #[module(skip)]
    labels: LabelConfig,
}

impl RobertaForSequenceClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &RobertaConfig, device: &Device) -> Self {
        Self {
            roberta: RobertaModel::without_pooler(config, device),
            classifier: RobertaClassificationHead::new(config, device),
            labels: config.bert.labels.clone(),
        }
    }
}

impl Adaptable for RobertaForSequenceClassification {
    fn spec(&self) -> ModelSpec {
        self.roberta.spec_with_head(ModelSpec::of(self)).with_heads(["classifier"])
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.roberta.repeat_layers(order)
    }
}

impl SequenceClassifier for RobertaForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        self.classifier.forward(self.roberta.hidden(input, OutputTokens::ClsOnly))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

token_heads! {
    RobertaModel, RobertaConfig, roberta: RobertaModel::without_pooler,
    width: |it| it.bert.hidden_size,
    labels: |it| &it.bert.labels,
    dropout: RobertaConfig::dropout_of_head,
    tokens: RobertaForTokenClassification(classifier),
    spans: RobertaForQuestionAnswering,
}

masked_lm! {
    RobertaForMaskedLm: RobertaModel = RobertaModel::without_pooler, RobertaConfig, roberta;
    lm_head: RobertaHead = |config, device| Some(RobertaHead::new(&config.bert.head_of_words(), device));
    left_out: ["lm_head.decoder"]
}
