//! ModernBERT. Source: `transformers/models/modernbert/modeling_modernbert.py` (5.23).

// Fields are named after checkpoint keys, and those say `Wqkv`.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::forward;
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Dropout, Embedding, Projection, lazy};
use peft_core::ops::{self, AttentionMask, Pairing, RotaryTable, attention, split};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, FULL_ATTENTION, LabelConfig, RawConfig, SLIDING_ATTENTION};
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{FeatureExtractor, MaskedLm, QuestionAnswerer, SequenceClassifier, TokenClassifier};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "model.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["modernbert"], BASE_PREFIX)
        .sequence_classifier(ModernBertForSequenceClassification::new)
        .token_classifier(ModernBertForTokenClassification::new)
        .question_answerer(ModernBertForQuestionAnswering::new)
        .masked_lm(ModernBertForMaskedLm::new)
        .feature_extractor(ModernBertModel::new)
}

/// `config.json` of a ModernBERT. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct ModernBertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub hidden_activation: Activation,
    pub norm_eps: f64,
    pub norm_bias: bool,
    pub attention_bias: bool,
    pub attention_dropout: f64,
    pub layer_types: Option<Vec<LayerType>>,
    pub global_attn_every_n_layers: usize,
    /// Tokens that a local layer sees on both sides together.
    pub local_attention: usize,
    pub embedding_dropout: f64,
    pub mlp_bias: bool,
    pub mlp_dropout: f64,
    pub classifier_pooling: Pooling,
    pub classifier_dropout: f64,
    pub classifier_bias: bool,
    pub classifier_activation: Activation,
    pub decoder_bias: bool,
    /// Base of the rotation's frequencies, in layers that see everything and in the others.
    #[serde(skip)]
    pub thetas: [f64; 2],
    #[serde(flatten)]
    pub labels: LabelConfig,
}

/// How far a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All tokens.
    FullAttention,
    /// Near tokens.
    SlidingAttention,
}

impl LayerType {
    /// As `config.json` has it.
    fn name(self) -> &'static str {
        match self {
            Self::FullAttention => FULL_ATTENTION,
            Self::SlidingAttention => SLIDING_ATTENTION,
        }
    }
}

/// What a sequence is classified by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Its first token.
    Cls,
    /// The mean of its tokens.
    Mean,
}

impl Default for ModernBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50368,
            hidden_size: 768,
            intermediate_size: 1152,
            num_hidden_layers: 22,
            num_attention_heads: 12,
            hidden_activation: Activation::Gelu,
            norm_eps: 1e-5,
            norm_bias: false,
            attention_bias: false,
            attention_dropout: 0.0,
            layer_types: None,
            global_attn_every_n_layers: 3,
            local_attention: 128,
            embedding_dropout: 0.0,
            mlp_bias: false,
            mlp_dropout: 0.0,
            classifier_pooling: Pooling::Cls,
            classifier_dropout: 0.0,
            classifier_bias: false,
            classifier_activation: Activation::Gelu,
            decoder_bias: true,
            thetas: [160_000.0, 10_000.0],
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for ModernBertConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let mut config: Self = raw.parse(&["rope_scaling"])?;
        let (d_model, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || !d_model.is_multiple_of(2 * heads) {
            let reason = format!("is {d_model}, which `num_attention_heads` = {heads} does not divide into even parts");
            return Err(PeftError::config("hidden_size", reason));
        }
        if let Some(types) = config.layer_types.as_ref().filter(|it| it.len() != config.num_hidden_layers) {
            let reason = format!("names {} layers, `num_hidden_layers` is {}", types.len(), config.num_hidden_layers);
            return Err(PeftError::config("layer_types", reason));
        }
        let fields = [("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")];
        for (theta, (kind, old)) in config.thetas.iter_mut().zip(fields) {
            let rope = raw.json.get("rope_parameters").and_then(|it| it.get(kind));
            let named = rope.and_then(|it| it.get("rope_type")).and_then(Value::as_str).unwrap_or("default");
            if named != "default" {
                return Err(PeftError::unsupported(format!("rope_type `{named}`"), "only `default` is, here"));
            }
            let given = rope.and_then(|it| it.get("rope_theta")).or_else(|| raw.json.get(old)).and_then(Value::as_f64);
            *theta = given.unwrap_or(*theta);
        }
        if config.labels.pad_token_id.is_none() && !raw.json.contains_key("pad_token_id") {
            config.labels.pad_token_id = Some(50283);
        }
        Ok(config)
    }
}

impl ModernBertConfig {
    fn layer_types(&self) -> Vec<LayerType> {
        self.layer_types.clone().unwrap_or_else(|| {
            let every = self.global_attn_every_n_layers.max(1);
            let kind = |at: usize| match at.is_multiple_of(every) {
                true => LayerType::FullAttention,
                false => LayerType::SlidingAttention,
            };
            (0..self.num_hidden_layers).map(kind).collect()
        })
    }

    fn norm(&self, device: &Device) -> ModernBertNorm {
        ModernBertNorm::new(self, device)
    }
}

/// Normalisation by mean and variance, as a rule without a bias.
#[derive(Module, Debug)]
pub struct ModernBertNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    /// `[d_model]`
    pub bias: Option<Param<Tensor<1>>>,
    epsilon: f64,
}

impl ModernBertNorm {
    fn new(config: &ModernBertConfig, device: &Device) -> Self {
        let d_model = config.hidden_size;
        Self {
            weight: lazy([d_model], device, move |device| Tensor::ones([d_model], device)),
            bias: config.norm_bias.then(|| lazy([d_model], device, move |device| Tensor::zeros([d_model], device))),
            epsilon: config.norm_eps,
        }
    }

    fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| {
            let weight = it.weight.val();
            let none = || Tensor::zeros(weight.dims(), &weight.device().without_autodiff());
            let bias = it.bias.as_ref().map_or_else(none, |it| it.val());
            ops::layer_norm(input, weight, bias, it.epsilon)
        })
    }
}

/// Token embeddings, normalised.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ModernBertEmbeddings {
    pub tok_embeddings: Embedding,
    pub norm: ModernBertNorm,
    drop: Dropout,
}

/// Self-attention with rotary positions.
#[derive(Module, Debug)]
pub struct ModernBertAttention {
    /// Query, key and value in one product, `[3 · d_model, d_model]`.
    pub Wqkv: Projection,
    /// `[d_model, d_model]`
    pub Wo: Projection,
    dropout: Dropout,
    out_drop: Dropout,
    heads: usize,
}

impl ModernBertAttention {
    fn new(config: &ModernBertConfig, device: &Device) -> Self {
        let d_model = config.hidden_size;
        Self {
            Wqkv: Projection::new(d_model, 3 * d_model, config.attention_bias, device),
            Wo: Projection::new(d_model, d_model, config.attention_bias, device),
            dropout: Dropout::new(config.attention_dropout),
            out_drop: Dropout::new(config.attention_dropout),
            heads: config.num_attention_heads,
        }
    }

    fn forward(&self, hidden: Tensor<3>, rotary: &RotaryTable, mask: Option<&AttentionMask>) -> Tensor<3> {
        let d_model = hidden.dims()[2];
        let d_head = d_model / self.heads;
        let parts = split(self.Wqkv.forward(hidden), [d_model; 3]);
        let [query, key, value] = parts.map(|it| split_heads(it, d_head));
        let (query, key) = (rotary.rotate(query), rotary.rotate(key));
        let mixed = attention(query, key, value, mask, (d_head as f64).powf(-0.5), &self.dropout);
        self.out_drop.forward(self.Wo.forward(merge_heads(mixed)))
    }
}

/// `Wo(act(a) · b)`, where one product gives both halves.
#[derive(Module, Debug)]
pub struct ModernBertMlp {
    /// `[2 · d_inner, d_model]`
    pub Wi: Projection,
    /// `[d_model, d_inner]`
    pub Wo: Projection,
    drop: Dropout,
    #[module(skip)]
    act: Activation,
}

impl ModernBertMlp {
    fn new(config: &ModernBertConfig, device: &Device) -> Self {
        let (d_model, d_inner) = (config.hidden_size, config.intermediate_size);
        Self {
            Wi: Projection::new(d_model, 2 * d_inner, config.mlp_bias, device),
            Wo: Projection::new(d_inner, d_model, config.mlp_bias, device),
            drop: Dropout::new(config.mlp_dropout),
            act: config.hidden_activation,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let fused = self.Wi.forward(hidden);
        let d_inner = fused.dims()[2] / 2;
        let [left, right] = split(fused, [d_inner; 2]);
        self.Wo.forward(self.drop.forward(self.act.gate(left, right)))
    }
}

/// One layer of the stack. The first has no norm before its attention: the embeddings are normalised already.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ModernBertLayer {
    pub attn_norm: Option<ModernBertNorm>,
    pub attn: ModernBertAttention,
    pub mlp_norm: ModernBertNorm,
    pub mlp: ModernBertMlp,
}

impl ModernBertLayer {
    fn new(config: &ModernBertConfig, at: usize, device: &Device) -> Self {
        Self {
            attn_norm: (at > 0).then(|| config.norm(device)),
            attn: ModernBertAttention::new(config, device),
            mlp_norm: config.norm(device),
            mlp: ModernBertMlp::new(config, device),
        }
    }

    fn forward(&self, hidden: Tensor<3>, rotary: &RotaryTable, mask: Option<&AttentionMask>) -> Tensor<3> {
        let normal = match &self.attn_norm {
            Some(norm) => norm.forward(hidden.clone()),
            None => hidden.clone(),
        };
        let hidden = hidden + self.attn.forward(normal, rotary, mask);
        hidden.clone() + self.mlp.forward(self.mlp_norm.forward(hidden))
    }
}

/// ModernBERT without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ModernBertModel {
    pub embeddings: ModernBertEmbeddings,
    pub layers: Vec<ModernBertLayer>,
    pub final_norm: ModernBertNorm,
    #[module(skip)]
    config: ModernBertConfig,
}

impl ModernBertModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ModernBertConfig, device: &Device) -> Self {
        let padding = config.labels.pad_token_id.and_then(|it| usize::try_from(it).ok());
        let padding = padding.filter(|it| *it < config.vocab_size);
        Self {
            embeddings: ModernBertEmbeddings {
                tok_embeddings: Embedding::new(config.vocab_size, config.hidden_size, device).with_padding(padding),
                norm: config.norm(device),
                drop: Dropout::new(config.embedding_dropout),
            },
            layers: (0..config.num_hidden_layers).map(|at| ModernBertLayer::new(config, at, device)).collect(),
            final_norm: config.norm(device),
            config: config.clone(),
        }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, input: &ModelInput) -> Tensor<3> {
        prompt::around(&self.embeddings.tok_embeddings, input, None, |input, _| self.stack(input))
    }

    fn stack(&self, input: &ModelInput) -> Tensor<3> {
        let (config, table) = (&self.config, &self.embeddings.tok_embeddings);
        let d_head = config.hidden_size / config.num_attention_heads;
        let rotaries = config.thetas.map(|theta| {
            let frequency = |at: usize| 1.0 / (theta as f32).powf((2 * at) as f32 / d_head as f32);
            let frequencies: Vec<f32> = (0..d_head / 2).map(frequency).collect();
            RotaryTable::new(input.positions(0), &frequencies, 1.0, Pairing::HalfSplit)
        });
        let masks = [mask::bidirectional(input, 0), mask::nearby(input, config.local_attention / 2)];
        let words = input.tokens.embed(|ids| table.forward(ids));
        let mut hidden = self.embeddings.drop.forward(self.embeddings.norm.forward(words));
        for (layer, kind) in self.layers.iter().zip(config.layer_types()) {
            let at = usize::from(kind == LayerType::SlidingAttention);
            let read = &(rotaries[at].clone(), masks[at].clone());
            hidden = gradient_checkpointing::layer(layer, hidden, read, |layer, hidden, (rotary, mask)| {
                layer.forward(hidden, rotary, mask.as_ref())
            });
        }
        self.final_norm.forward(hidden)
    }

    fn spec_within(&self, spec: ModelSpec, stack: &str) -> ModelSpec {
        let config = &self.config;
        // No layer takes a prefix: there is no cache that it could stand in.
        let prompts = PromptShape::even("embeddings.tok_embeddings", config.hidden_size, 0, config.num_attention_heads);
        let types = config.layer_types().into_iter().map(|it| it.name().to_owned()).collect::<Vec<_>>();
        spec.with_model_type("modernbert").with_prompts(stack, prompts).with_layer_types(types)
    }
}

impl Adaptable for ModernBertModel {
    fn spec(&self) -> ModelSpec {
        self.spec_within(ModelSpec::of(self), "")
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        let mut types = self.config.layer_types();
        layers::reorder(&mut self.layers, order)?;
        layers::reorder(&mut types, order)?;
        (self.config.num_hidden_layers, self.config.layer_types) = (order.len(), Some(types));
        Ok(())
    }
}

impl FeatureExtractor for ModernBertModel {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.forward(input)
    }
}

/// What stands between the stack and the scores.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ModernBertPredictionHead {
    pub dense: Projection,
    pub norm: ModernBertNorm,
    #[module(skip)]
    act: Activation,
}

impl ModernBertPredictionHead {
    fn new(config: &ModernBertConfig, device: &Device) -> Self {
        Self {
            dense: Projection::new(config.hidden_size, config.hidden_size, config.classifier_bias, device),
            norm: config.norm(device),
            act: config.classifier_activation,
        }
    }

    fn forward<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        self.norm.forward(self.act.apply(self.dense.forward(hidden)))
    }
}

/// The heads differ in what they score only.
macro_rules! heads {
    ($($(#[$doc:meta])* $name:ident: $outputs:expr, left out $heads:expr);+ $(;)?) => {
        $(
            $(#[$doc])*
            #[derive(Module, Debug)]
            pub struct $name {
                /// The encoder.
                pub model: ModernBertModel,
                /// A projection, an activation and a norm.
                pub head: ModernBertPredictionHead,
                drop: Dropout,
                /// `[outputs, d_model]`
                pub classifier: Projection,
                #[module(skip)]
                labels: LabelConfig,
            }

            impl $name {
                /// A model whose parameters are not allocated yet.
                pub fn new(config: &ModernBertConfig, device: &Device) -> Self {
                    let outputs: fn(&LabelConfig) -> usize = $outputs;
                    Self {
                        model: ModernBertModel::new(config, device),
                        head: ModernBertPredictionHead::new(config, device),
                        drop: Dropout::new(config.classifier_dropout),
                        classifier: Projection::new(config.hidden_size, outputs(&config.labels), true, device),
                        labels: config.labels.clone(),
                    }
                }

                fn score<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
                    self.classifier.forward(self.drop.forward(self.head.forward(hidden)))
                }
            }

            impl Adaptable for $name {
                fn spec(&self) -> ModelSpec {
                    let heads: &[&str] = $heads;
                    self.model.spec_within(ModelSpec::of(self), "model").with_heads(heads.iter().copied())
                }

                fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
                    self.model.repeat_layers(order)
                }
            }
        )+
    };
}

heads! {
    /// ModernBERT that classifies a sequence.
    ModernBertForSequenceClassification: LabelConfig::num_labels, left out &["classifier"];
    /// ModernBERT that classifies every token.
    ModernBertForTokenClassification: LabelConfig::num_labels, left out &[];
    /// ModernBERT for extractive question answering.
    ModernBertForQuestionAnswering: |_| 2, left out &[];
}

impl SequenceClassifier for ModernBertForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let hidden = self.model.forward(input);
        let [batch, seq, d_model] = hidden.dims();
        let pooled = match (self.model.config.classifier_pooling, &input.attention_mask) {
            (Pooling::Cls, _) => hidden.narrow(1, 0, 1),
            (Pooling::Mean, None) => hidden.mean_dim(1),
            (Pooling::Mean, Some(mask)) => {
                // Virtual tokens stand before those that the mask speaks of.
                let [_, masked] = mask.dims();
                let ones = Tensor::<2>::ones([batch, seq - masked], &input.device());
                let mask = Tensor::cat(vec![ones, mask.clone().float()], 1).reshape([batch, seq, 1]);
                (hidden * mask.clone()).sum_dim(1) / mask.sum_dim(1)
            }
        };
        self.score(pooled.reshape([batch, d_model]))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

impl TokenClassifier for ModernBertForTokenClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        self.score(self.model.forward(input))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}

impl QuestionAnswerer for ModernBertForQuestionAnswering {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        self.score(self.model.forward(input))
    }
}

/// The layer that gives the logits over the vocabulary.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum MaskedLmDecoder {
    /// The embedding matrix read the other way, with a bias.
    Tied(DecoderBias),
    /// A layer of its own.
    Own(Projection),
}

/// A level of names that checkpoints have.
#[derive(Module, Debug)]
pub struct DecoderBias {
    /// `[vocab]`
    pub bias: Option<Param<Tensor<1>>>,
}

/// ModernBERT with a masked-LM head.
#[derive(Module, Debug)]
pub struct ModernBertForMaskedLm {
    /// The encoder.
    pub model: ModernBertModel,
    /// A projection, an activation and a norm.
    pub head: ModernBertPredictionHead,
    /// Logits over the vocabulary.
    pub decoder: MaskedLmDecoder,
}

impl ModernBertForMaskedLm {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ModernBertConfig, device: &Device) -> Self {
        let vocab = config.vocab_size;
        let bias = || lazy([vocab], device, move |device| Tensor::zeros([vocab], device));
        let decoder = if config.labels.is_tied() {
            MaskedLmDecoder::Tied(DecoderBias { bias: config.decoder_bias.then(bias) })
        } else {
            MaskedLmDecoder::Own(Projection::new(config.hidden_size, vocab, config.decoder_bias, device))
        };
        Self {
            model: ModernBertModel::new(config, device),
            head: ModernBertPredictionHead::new(config, device),
            decoder,
        }
    }
}

impl Adaptable for ModernBertForMaskedLm {
    fn spec(&self) -> ModelSpec {
        self.model.spec_within(ModelSpec::of(self), "model").with_heads(["decoder"])
    }

    fn is_tied(&self) -> bool {
        matches!(self.decoder, MaskedLmDecoder::Tied(_))
    }

    fn untie_head(&mut self) {
        if let MaskedLmDecoder::Tied(it) = &mut self.decoder {
            let head = self.model.embeddings.tok_embeddings.as_head();
            self.decoder = MaskedLmDecoder::Own(Projection { bias: it.bias.take(), ..head });
        }
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.model.repeat_layers(order)
    }
}

impl MaskedLm for ModernBertForMaskedLm {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        let hidden = self.head.forward(self.model.forward(input));
        match &self.decoder {
            MaskedLmDecoder::Own(decoder) => decoder.forward(hidden),
            MaskedLmDecoder::Tied(it) => {
                let scores = self.model.embeddings.tok_embeddings.attend(hidden);
                match &it.bias {
                    Some(bias) => forward::by_rows(bias, scores, |bias, it| it + bias.val().unsqueeze()),
                    None => scores,
                }
            }
        }
    }
}
