//! GPT-J. Source: `transformers/models/gptj/modeling_gptj.py` (5.23).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Dropout, Embedding, LayerNorm, Projection};
use peft_core::ops::{AttentionMask, Pairing, RotaryTable, attention};
use peft_core::{PeftError, PromptShape, Result};
use serde::Deserialize;

use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::cache::{KvCache, extend_cache};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::decoder::Decoder;
use crate::common::heads::decoder::decoder_heads;
use crate::common::heads::token_heads::token_heads;
use crate::common::input::ModelInput;
use crate::common::layers;
use crate::common::mask;
use crate::common::rope::Rope;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "transformer.";

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["gptj"], BASE_PREFIX)
        .causal_lm(GptJForCausalLm::new)
        .sequence_classifier(GptJForSequenceClassification::new)
        .token_classifier(GptJForTokenClassification::new)
        .feature_extractor(GptJModel::new)
}

/// `config.json` of a GPT-J. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct GptJConfig {
    pub vocab_size: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub rotary_dim: Option<usize>,
    pub n_inner: Option<usize>,
    pub activation_function: Activation,
    pub resid_pdrop: f64,
    pub embd_pdrop: f64,
    pub attn_pdrop: f64,
    pub layer_norm_epsilon: f64,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for GptJConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50400,
            n_embd: 4096,
            n_layer: 28,
            n_head: 16,
            rotary_dim: Some(64),
            n_inner: None,
            activation_function: Activation::GeluNew,
            resid_pdrop: 0.0,
            embd_pdrop: 0.0,
            attn_pdrop: 0.0,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: false,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for GptJConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let names = [
            ("max_position_embeddings", "n_positions"),
            ("hidden_size", "n_embd"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ];
        // A tied head would still have a bias of its own.
        let config: Self = raw.renamed(&names).parse(&["tie_word_embeddings"])?;
        heads_divide(("n_head", config.n_head), ("n_embd", config.n_embd))?;
        let (rotary, d_head) = (config.rotary(), config.n_embd / config.n_head);
        if rotary > d_head || rotary % 2 == 1 || rotary == 0 {
            let reason = format!("is {rotary}; it must be even, above 0 and at most the {d_head} of a head");
            return Err(PeftError::config("rotary_dim", reason));
        }
        Ok(config)
    }
}

impl GptJConfig {
    fn rotary(&self) -> usize {
        self.rotary_dim.unwrap_or(self.n_embd)
    }
}

/// Self-attention; neighbouring coordinates of a head are rotated together, the last ones not at all.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptJAttention {
    pub k_proj: Projection,
    pub v_proj: Projection,
    pub q_proj: Projection,
    pub out_proj: Projection,
    attn_dropout: Dropout,
    resid_dropout: Dropout,
    heads: usize,
}

impl GptJAttention {
    fn new(config: &GptJConfig, device: &Device) -> Self {
        let projection = || Projection::new(config.n_embd, config.n_embd, false, device);
        Self {
            k_proj: projection(),
            v_proj: projection(),
            q_proj: projection(),
            out_proj: projection(),
            attn_dropout: Dropout::new(config.attn_pdrop),
            resid_dropout: Dropout::new(config.resid_pdrop),
            heads: config.n_head,
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        rotary: &RotaryTable,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let split = |projected| split_heads(projected, d_head);
        let query = rotary.rotate(split(self.q_proj.forward(hidden.clone())));
        let key = rotary.rotate(split(self.k_proj.forward(hidden.clone())));
        let value = split(self.v_proj.forward(hidden));
        let (key, value) = extend_cache(cache, layer, key, value);
        let mixed = attention(query, key, value, mask, (d_head as f64).powf(-0.5), &self.attn_dropout);
        let mixed = merge_heads(mixed);
        self.resid_dropout.forward(self.out_proj.forward(mixed))
    }
}

/// Two layers with an activation between them.
#[derive(Module, Debug)]
pub struct GptJMlp {
    /// `[d_inner, d_model]`
    pub fc_in: Projection,
    /// `[d_model, d_inner]`
    pub fc_out: Projection,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl GptJMlp {
    fn new(config: &GptJConfig, device: &Device) -> Self {
        let d_inner = config.n_inner.unwrap_or(4 * config.n_embd);
        Self {
            fc_in: Projection::new(config.n_embd, d_inner, true, device),
            fc_out: Projection::new(d_inner, config.n_embd, true, device),
            dropout: Dropout::new(config.resid_pdrop),
            act: config.activation_function,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.dropout.forward(self.fc_out.forward(self.act.apply(self.fc_in.forward(hidden))))
    }
}

/// One layer of the stack: attention and MLP read the same norm.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptJBlock {
    pub ln_1: LayerNorm,
    pub attn: GptJAttention,
    pub mlp: GptJMlp,
}

impl GptJBlock {
    fn new(config: &GptJConfig, device: &Device) -> Self {
        Self {
            ln_1: LayerNorm::new(config.n_embd, config.layer_norm_epsilon, device),
            attn: GptJAttention::new(config, device),
            mlp: GptJMlp::new(config, device),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        rotary: &RotaryTable,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let normal = self.ln_1.forward(hidden.clone());
        hidden + self.attn.forward(normal.clone(), layer, rotary, mask, cache) + self.mlp.forward(normal)
    }
}

/// GPT-J without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GptJModel {
    pub wte: Embedding,
    pub h: Vec<GptJBlock>,
    pub ln_f: LayerNorm,
    drop: Dropout,
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    prompts: PromptShape,
}

impl GptJModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &GptJConfig, device: &Device) -> Self {
        Self {
            wte: Embedding::new(config.vocab_size, config.n_embd, device),
            h: (0..config.n_layer).map(|_| GptJBlock::new(config, device)).collect(),
            ln_f: LayerNorm::new(config.n_embd, config.layer_norm_epsilon, device),
            drop: Dropout::new(config.embd_pdrop),
            rope: Rope::plain(10_000.0, config.rotary()).with_pairing(Pairing::Neighbours),
            prompts: PromptShape::even("wte", config.n_embd, config.n_layer, config.n_head),
        }
    }
}

impl Decoder for GptJModel {
    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let past = cache.as_ref().map_or(0, |it| it.len());
        let mut hidden = input.tokens.embed(|ids| self.wte.forward(ids));
        if let Some(types) = &input.token_type_ids {
            hidden = hidden + self.wte.forward(types.clone());
        }
        hidden = self.drop.forward(hidden);
        let rotary = self.rope.table(input, past);
        let mask = mask::causal_added(input, past, None);
        for (layer, block) in self.h.iter().enumerate() {
            let read = &(rotary.clone(), mask.clone());
            hidden =
                layers::run((block, layer), hidden, read, cache.as_deref_mut(), move |block, hidden, read, cache| {
                    block.forward(hidden, layer, &read.0, read.1.as_ref(), cache)
                });
        }
        self.ln_f.forward(hidden)
    }

    fn embedding(&self) -> &Embedding {
        &self.wte
    }

    fn prompts(&self) -> PromptShape {
        self.prompts.clone()
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        layers::reorder(&mut self.h, order)?;
        self.prompts.layers = order.len();
        Ok(())
    }

    fn model_type(&self) -> &'static str {
        "gptj"
    }
}

decoder_heads! {
    GptJModel, GptJConfig, transformer: n_embd,
    causal: GptJForCausalLm with bias,
    classifier: GptJForSequenceClassification,
}

token_heads! {
    GptJModel, GptJConfig, transformer: GptJModel::new,
    width: |it| it.n_embd,
    labels: |it| &it.labels,
    dropout: |it| it.labels.dropout(None),
    tokens: GptJForTokenClassification(score),
}
