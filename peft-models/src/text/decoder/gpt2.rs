//! GPT-2. Source: `transformers/models/gpt2/modeling_gpt2.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, Gpt2Linear, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, attention, split};
use peft_core::{Adaptable, ModelSpec, PeftError, PromptShape, Result, forward};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::prompt;
use crate::common::task::{CausalLm, FeatureExtractor, SequenceClassifier, pool_last_token};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "transformer.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["gpt2"], BASE_PREFIX)
        .causal_lm(Gpt2LmHeadModel::new)
        .sequence_classifier(Gpt2ForSequenceClassification::new)
        .token_classifier(Gpt2ForTokenClassification::new)
        .question_answerer(Gpt2ForQuestionAnswering::new)
        .feature_extractor(Gpt2Model::new)
}

/// `config.json` of a GPT-2. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Gpt2Config {
    pub vocab_size: usize,
    pub n_positions: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_inner: Option<usize>,
    pub activation_function: Activation,
    pub resid_pdrop: f64,
    pub embd_pdrop: f64,
    pub attn_pdrop: f64,
    pub layer_norm_epsilon: f64,
    pub scale_attn_weights: bool,
    pub scale_attn_by_inverse_layer_idx: bool,
    pub tie_word_embeddings: bool,
    pub classifier_dropout: Option<f64>,
    pub hidden_dropout: Option<f64>,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            classifier_dropout: None,
            hidden_dropout: None,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for Gpt2Config {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // `reorder_and_upcast_attn` only moves half-precision products to f32, where ours always are.
        let config: Self = raw.parse(&[])?;
        heads_divide(("n_head", config.n_head), ("n_embd", config.n_embd))?;
        Ok(config)
    }
}

/// Self-attention.
#[derive(Module, Debug)]
pub struct Gpt2Attention {
    /// Query, key and value in one product, `[d_model, 3 · d_model]`.
    pub c_attn: Gpt2Linear,
    /// Output, `[d_model, d_model]`.
    pub c_proj: Gpt2Linear,
    attn_dropout: Dropout,
    resid_dropout: Dropout,
    heads: usize,
    scale: f64,
}

impl Gpt2Attention {
    fn new(config: &Gpt2Config, layer: usize, device: &Device) -> Self {
        let d_model = config.n_embd;
        let mut scale = 1.0;
        if config.scale_attn_weights {
            scale /= ((d_model / config.n_head) as f64).sqrt();
        }
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f64;
        }
        Self {
            c_attn: Gpt2Linear::new(d_model, 3 * d_model, device),
            c_proj: Gpt2Linear::new(d_model, d_model, device),
            attn_dropout: Dropout::new(config.attn_pdrop),
            resid_dropout: Dropout::new(config.resid_pdrop),
            heads: config.n_head,
            scale,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let d_model = hidden.dims()[2];
        let parts = |tokens| {
            let parts = split(self.c_attn.forward(tokens), [d_model; 3]);
            parts.map(|it| split_heads(it, d_model / self.heads))
        };
        let [query, key, value] = parts(hidden);
        let prompted = forward::gated(&self.c_proj.weight, &query, |tokens| {
            let [_, key, value] = parts(tokens);
            (key, value)
        });
        let (key, value) = extend_cache(cache, layer, key, value);
        let mixed = attention(query, key, value, mask, self.scale, &self.attn_dropout);
        let mixed = merge_heads(mixed);
        let output = self.resid_dropout.forward(self.c_proj.forward(mixed));
        match prompted {
            // As in the reference, what a gated prompt adds is not projected here.
            Some(prompted) => output + merge_heads(prompted),
            None => output,
        }
    }
}

/// Two layers with an activation between them.
#[derive(Module, Debug)]
pub struct Gpt2Mlp {
    /// `[d_model, d_inner]`
    pub c_fc: Gpt2Linear,
    /// `[d_inner, d_model]`
    pub c_proj: Gpt2Linear,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl Gpt2Mlp {
    fn new(config: &Gpt2Config, device: &Device) -> Self {
        let d_inner = config.n_inner.unwrap_or(4 * config.n_embd);
        Self {
            c_fc: Gpt2Linear::new(config.n_embd, d_inner, device),
            c_proj: Gpt2Linear::new(d_inner, config.n_embd, device),
            dropout: Dropout::new(config.resid_pdrop),
            act: config.activation_function,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.act.apply(self.c_fc.forward(hidden));
        self.dropout.forward(self.c_proj.forward(inner))
    }
}

/// One layer of the stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Gpt2Block {
    pub ln_1: LayerNorm,
    pub attn: Gpt2Attention,
    pub ln_2: LayerNorm,
    pub mlp: Gpt2Mlp,
}

impl Gpt2Block {
    fn new(config: &Gpt2Config, layer: usize, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.n_embd, config.layer_norm_epsilon, device);
        Self {
            ln_1: norm(),
            attn: Gpt2Attention::new(config, layer, device),
            ln_2: norm(),
            mlp: Gpt2Mlp::new(config, device),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let hidden = hidden.clone() + self.attn.forward(self.ln_1.forward(hidden), layer, mask, cache);
        hidden.clone() + self.mlp.forward(self.ln_2.forward(hidden))
    }
}

/// GPT-2 without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Gpt2Model {
    pub wte: Embedding,
    pub wpe: Embedding,
    pub h: Vec<Gpt2Block>,
    pub ln_f: LayerNorm,
    drop: Dropout,
    #[module(skip)]
    prompts: PromptShape,
}

impl Gpt2Model {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &Gpt2Config, device: &Device) -> Self {
        Self {
            wte: Embedding::new(config.vocab_size, config.n_embd, device),
            wpe: Embedding::new(config.n_positions, config.n_embd, device),
            h: (0..config.n_layer).map(|layer| Gpt2Block::new(config, layer, device)).collect(),
            ln_f: LayerNorm::new(config.n_embd, config.layer_norm_epsilon, device),
            drop: Dropout::new(config.embd_pdrop),
            prompts: PromptShape::even("wte", config.n_embd, config.n_layer, config.n_head),
        }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        prompt::around(&self.wte, input, cache, |input, cache| self.blocks(input, cache))
    }

    fn blocks(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let mut hidden = input.tokens.embed(|ids| self.wte.forward(ids)) + self.wpe.forward(input.positions(past));
        if let Some(types) = &input.token_type_ids {
            hidden = hidden + self.wte.forward(types.clone());
        }
        let mut hidden = self.drop.forward(hidden);
        let mask = mask::causal(input, past, None);
        for (layer, block) in self.h.iter().enumerate() {
            hidden =
                layers::run((block, layer), hidden, &mask, cache.as_deref_mut(), move |block, hidden, mask, cache| {
                    block.forward(hidden, layer, mask.as_ref(), cache)
                });
        }
        self.ln_f.forward(hidden)
    }

    fn described(&self, spec: ModelSpec, prefix: &str) -> ModelSpec {
        let spec = spec.with_model_type("gpt2").with_prompts(prefix, self.prompts.clone());
        spec.with_positions(0..self.wpe.rows() as i64)
    }

    fn spec_with_head(&self, spec: ModelSpec) -> ModelSpec {
        self.described(spec, "transformer")
    }
}

impl Adaptable for Gpt2Model {
    fn spec(&self) -> ModelSpec {
        self.described(ModelSpec::of(self), "")
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        let scale = |it: &Gpt2Block| it.attn.scale;
        if self.h.iter().any(|it| scale(it) != scale(&self.h[0])) {
            // PEFT goes on with the factors of the old places, which no checkpoint can say.
            let reason = "`scale_attn_by_inverse_layer_idx` gives each layer a factor by its place";
            return Err(PeftError::unsupported("layer_replication", reason));
        }
        layers::reorder(&mut self.h, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }
}

impl FeatureExtractor for Gpt2Model {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        self.forward(input, None)
    }
}

/// GPT-2 with the language-model head.
#[derive(Module, Debug)]
pub struct Gpt2LmHeadModel {
    /// The stack.
    pub transformer: Gpt2Model,
    /// The head, unless it is the embedding matrix read the other way.
    pub lm_head: Option<Projection>,
}

impl Gpt2LmHeadModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &Gpt2Config, device: &Device) -> Self {
        let head = || Projection::new(config.n_embd, config.vocab_size, false, device);
        Self { transformer: Gpt2Model::new(config, device), lm_head: (!config.tie_word_embeddings).then(head) }
    }
}

impl Adaptable for Gpt2LmHeadModel {
    fn spec(&self) -> ModelSpec {
        self.transformer.spec_with_head(ModelSpec::of(self)).with_heads(["lm_head"])
    }

    fn is_tied(&self) -> bool {
        CausalLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        CausalLm::untie(self);
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.transformer.repeat_layers(order)
    }
}

impl CausalLm for Gpt2LmHeadModel {
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.transformer.forward(input, cache)
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.transformer.wte.attend(hidden),
        }
    }

    fn head_weight(&self) -> Option<Tensor<2>> {
        match &self.lm_head {
            Some(head) => head.bare_weight(),
            None => self.transformer.wte.bare_weight(),
        }
    }

    fn supports_packing(&self) -> bool {
        true
    }

    fn is_tied(&self) -> bool {
        self.lm_head.is_none()
    }

    fn untie(&mut self) {
        self.lm_head.get_or_insert_with(|| self.transformer.wte.as_head());
    }
}

/// GPT-2 that classifies a sequence by its last token.
#[derive(Module, Debug)]
pub struct Gpt2ForSequenceClassification {
    /// The stack.
    pub transformer: Gpt2Model,
    /// `[num_labels, d_model]`
    pub score: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl Gpt2ForSequenceClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &Gpt2Config, device: &Device) -> Self {
        Self {
            transformer: Gpt2Model::new(config, device),
            score: Projection::new(config.n_embd, config.labels.num_labels(), false, device),
            labels: config.labels.clone(),
        }
    }
}

impl Adaptable for Gpt2ForSequenceClassification {
    fn spec(&self) -> ModelSpec {
        self.transformer.spec_with_head(ModelSpec::of(self)).with_heads(["score"])
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        self.transformer.repeat_layers(order)
    }
}

impl SequenceClassifier for Gpt2ForSequenceClassification {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let hidden = self.transformer.forward(input, None);
        self.score.forward(pool_last_token(hidden, input, self.labels.pad_token_id))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }

    fn pools_last_token(&self) -> bool {
        true
    }
}

token_heads! {
    Gpt2Model, Gpt2Config, transformer: Gpt2Model::new,
    width: |it| it.n_embd,
    labels: |it| &it.labels,
    dropout: |it| Dropout::new(it.classifier_dropout.or(it.hidden_dropout).unwrap_or(0.1)),
    tokens: Gpt2ForTokenClassification(classifier),
    spans: Gpt2ForQuestionAnswering,
}
