//! The same models as a user of Burn writes them, out of `burn::nn` and plain tensor operations: what Burn's built-in
//! LoRA is measured on. They take their weights from ours, so the first loss must be the same.

use burn::module::{Module, Param, ParamId};
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, Device, Int, Tensor, activation};
use peft::core::nn as ours;
use peft::models::common::config::{LabelConfig, RawConfig};
use peft::models::text::decoder::gpt2::{Gpt2Block, Gpt2LmHeadModel};
use peft::models::text::decoder::llama::{LlamaForCausalLm, LlamaLayer};
use peft::models::text::encoder::bert::{BertForSequenceClassification, BertLayer, BertOutput};
use peft::models::{CausalLm, KvCache, ModelInput, SequenceClassifier};

fn param<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), value)
}

/// Ours lies `[out, in]`, Burn's `[in, out]`; written out anew, so that it costs what a model of Burn's would.
fn linear(from: ours::Projection) -> Linear {
    let weight = from.weight.base();
    let device = weight.device();
    let weight = Tensor::from_data(weight.transpose().into_data(), &device);
    Linear { weight: param(weight), bias: from.bias.map(|it| param(it.base())) }
}

fn conv1d(from: ours::Gpt2Linear) -> Linear {
    Linear { weight: param(from.weight.base()), bias: Some(param(from.bias.base())) }
}

fn embedding(from: ours::Embedding) -> Embedding {
    Embedding { weight: param(from.weight.base()) }
}

fn layer_norm(from: ours::LayerNorm, epsilon: f64) -> LayerNorm {
    let weight = from.weight.base();
    let mut norm = LayerNormConfig::new(weight.dims()[0]).with_epsilon(epsilon).init(&weight.device());
    norm.gamma = param(weight);
    norm.beta = Some(param(from.bias.base()));
    norm
}

fn rms_norm(from: ours::RmsNorm, epsilon: f64) -> RmsNorm {
    let weight = from.weight.base();
    let mut norm = RmsNormConfig::new(weight.dims()[0]).with_epsilon(epsilon).init(&weight.device());
    norm.gamma = param(weight);
    norm
}

fn number(config: &RawConfig, field: &str) -> f64 {
    config.json.get(field).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("config.json has no {field}"))
}

/// `[batch, seq, heads · d_head]` to `[batch, heads, seq, d_head]`.
fn split(projected: Tensor<3>, d_head: usize) -> Tensor<4> {
    let [batch, seq, width] = projected.dims();
    projected.reshape([batch, seq, width / d_head, d_head]).swap_dims(1, 2)
}

/// As `burn::nn::MultiHeadAttention` computes it. `mask` is `[batch, seq, seq]`, true where nothing is seen.
fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: Option<&Tensor<3, Bool>>) -> Tensor<3> {
    let [batch, heads, seq, d_head] = query.dims();
    let mut scores = query.matmul(key.transpose()).div_scalar((d_head as f32).sqrt());
    if let Some(mask) = mask {
        scores = scores.mask_fill(mask.clone().reshape([batch, 1, seq, seq]), -1.0e4);
    }
    activation::softmax(scores, 3).matmul(value).swap_dims(1, 2).reshape([batch, seq, heads * d_head])
}

fn causal(input: &ModelInput) -> Tensor<3, Bool> {
    let [batch, seq] = input.dims();
    generate_autoregressive_mask(batch, seq, &input.device())
}

/// The table read as the output layer of a tied head.
fn tied_head(table: &Embedding, hidden: Tensor<2>) -> Tensor<2> {
    hidden.matmul(table.weight.val().transpose())
}

#[derive(Module, Debug)]
struct GptBlock {
    ln_1: LayerNorm,
    c_attn: Linear,
    attn_c_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    mlp_c_proj: Linear,
    d_head: usize,
}

impl GptBlock {
    fn new(from: Gpt2Block, d_head: usize, epsilon: f64) -> Self {
        Self {
            ln_1: layer_norm(from.ln_1, epsilon),
            c_attn: conv1d(from.attn.c_attn),
            attn_c_proj: conv1d(from.attn.c_proj),
            ln_2: layer_norm(from.ln_2, epsilon),
            c_fc: conv1d(from.mlp.c_fc),
            mlp_c_proj: conv1d(from.mlp.c_proj),
            d_head,
        }
    }

    fn forward(&self, hidden: Tensor<3>, mask: &Tensor<3, Bool>) -> Tensor<3> {
        let parts = self.c_attn.forward(self.ln_1.forward(hidden.clone())).chunk(3, 2);
        let [query, key, value] = [0, 1, 2].map(|at| split(parts[at].clone(), self.d_head));
        let hidden = hidden + self.attn_c_proj.forward(attention(query, key, value, Some(mask)));
        let inner = activation::gelu_approximate(self.c_fc.forward(self.ln_2.forward(hidden.clone())));
        hidden + self.mlp_c_proj.forward(inner)
    }
}

/// GPT-2.
#[derive(Module, Debug)]
pub(crate) struct PlainGpt2 {
    wte: Embedding,
    wpe: Embedding,
    h: Vec<GptBlock>,
    ln_f: LayerNorm,
}

impl PlainGpt2 {
    pub(crate) fn new(from: Gpt2LmHeadModel, config: &RawConfig) -> Self {
        let d_head = number(config, "n_embd") as usize / number(config, "n_head") as usize;
        let epsilon = number(config, "layer_norm_epsilon");
        let stack = from.transformer;
        Self {
            wte: embedding(stack.wte),
            wpe: embedding(stack.wpe),
            h: stack.h.into_iter().map(|it| GptBlock::new(it, d_head, epsilon)).collect(),
            ln_f: layer_norm(stack.ln_f, epsilon),
        }
    }
}

impl CausalLm for PlainGpt2 {
    fn hidden(&self, input: &ModelInput, _cache: Option<&mut KvCache>) -> Tensor<3> {
        let embedded = input.tokens.embed(|ids| self.wte.forward(ids)) + self.wpe.forward(input.positions(0));
        let mask = causal(input);
        self.ln_f.forward(self.h.iter().fold(embedded, |hidden, block| block.forward(hidden, &mask)))
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        tied_head(&self.wte, hidden)
    }

    fn is_tied(&self) -> bool {
        true
    }

    fn untie(&mut self) {
        panic!("nothing here adapts the head");
    }
}

/// Cosines and sines, `[1, 1, seq, d_head / 2]`.
type Rotary = (Tensor<4>, Tensor<4>);

fn rotary(seq: usize, d_head: usize, theta: f64, device: &Device) -> Rotary {
    let half = d_head / 2;
    let powers = Tensor::<1, Int>::arange(0..half as i64, device).float().mul_scalar(-theta.ln() / half as f64);
    let positions = Tensor::<1, Int>::arange(0..seq as i64, device).float();
    let angles = positions.reshape([1, 1, seq, 1]) * powers.exp().reshape([1, 1, 1, half]);
    (angles.clone().cos(), angles.sin())
}

fn rotate(heads: Tensor<4>, (cos, sin): &Rotary) -> Tensor<4> {
    let half = cos.dims()[3];
    let (left, right) = (heads.clone().narrow(3, 0, half), heads.narrow(3, half, half));
    let first = left.clone() * cos.clone() - right.clone() * sin.clone();
    Tensor::cat(vec![first, right * cos.clone() + left * sin.clone()], 3)
}

#[derive(Module, Debug)]
struct LlamaBlock {
    input_norm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_norm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    d_head: usize,
}

impl LlamaBlock {
    fn new(from: LlamaLayer, d_head: usize, epsilon: f64) -> Self {
        Self {
            input_norm: rms_norm(from.input_layernorm, epsilon),
            q_proj: linear(from.self_attn.q_proj),
            k_proj: linear(from.self_attn.k_proj),
            v_proj: linear(from.self_attn.v_proj),
            o_proj: linear(from.self_attn.o_proj),
            post_norm: rms_norm(from.post_attention_layernorm, epsilon),
            gate_proj: linear(from.mlp.gate_proj),
            up_proj: linear(from.mlp.up_proj),
            down_proj: linear(from.mlp.down_proj),
            d_head,
        }
    }

    fn forward(&self, hidden: Tensor<3>, table: &Rotary, mask: &Tensor<3, Bool>) -> Tensor<3> {
        let normal = self.input_norm.forward(hidden.clone());
        let query = rotate(split(self.q_proj.forward(normal.clone()), self.d_head), table);
        let key = rotate(split(self.k_proj.forward(normal.clone()), self.d_head), table);
        let value = split(self.v_proj.forward(normal), self.d_head);
        let groups = query.dims()[1] / key.dims()[1];
        let repeat = |heads: Tensor<4>| {
            let [batch, count, seq, d_head] = heads.dims();
            let wide = heads.unsqueeze_dim::<5>(2).expand([batch, count, groups, seq, d_head]);
            wide.reshape([batch, count * groups, seq, d_head])
        };
        let mixed = attention(query, repeat(key), repeat(value), Some(mask));
        let hidden = hidden + self.o_proj.forward(mixed);
        let normal = self.post_norm.forward(hidden.clone());
        let inner = activation::silu(self.gate_proj.forward(normal.clone())) * self.up_proj.forward(normal);
        hidden + self.down_proj.forward(inner)
    }
}

/// LLaMA with a tied head.
#[derive(Module, Debug)]
pub(crate) struct PlainLlama {
    embed_tokens: Embedding,
    layers: Vec<LlamaBlock>,
    norm: RmsNorm,
    d_head: usize,
    theta: f64,
}

impl PlainLlama {
    pub(crate) fn new(from: LlamaForCausalLm, config: &RawConfig) -> Self {
        let d_head = number(config, "hidden_size") as usize / number(config, "num_attention_heads") as usize;
        let epsilon = number(config, "rms_norm_eps");
        let stack = from.model;
        Self {
            embed_tokens: embedding(stack.embed_tokens),
            layers: stack.layers.into_iter().map(|it| LlamaBlock::new(it, d_head, epsilon)).collect(),
            norm: rms_norm(stack.norm, epsilon),
            d_head,
            theta: number(config, "rope_theta"),
        }
    }
}

impl CausalLm for PlainLlama {
    fn hidden(&self, input: &ModelInput, _cache: Option<&mut KvCache>) -> Tensor<3> {
        let table = rotary(input.dims()[1], self.d_head, self.theta, &input.device());
        let mask = causal(input);
        let embedded = input.tokens.embed(|ids| self.embed_tokens.forward(ids));
        self.norm.forward(self.layers.iter().fold(embedded, |hidden, layer| layer.forward(hidden, &table, &mask)))
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        tied_head(&self.embed_tokens, hidden)
    }

    fn is_tied(&self) -> bool {
        true
    }

    fn untie(&mut self) {
        panic!("nothing here adapts the head");
    }
}

#[derive(Module, Debug)]
struct BertEnd {
    dense: Linear,
    norm: LayerNorm,
}

impl BertEnd {
    fn new(from: BertOutput, epsilon: f64) -> Self {
        Self { dense: linear(from.dense), norm: layer_norm(from.LayerNorm, epsilon) }
    }

    fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.norm.forward(self.dense.forward(inner) + residual)
    }
}

#[derive(Module, Debug)]
struct BertBlock {
    query: Linear,
    key: Linear,
    value: Linear,
    mixed: BertEnd,
    wide_dense: Linear,
    narrow: BertEnd,
    d_head: usize,
}

impl BertBlock {
    fn new(from: BertLayer, d_head: usize, epsilon: f64) -> Self {
        Self {
            query: linear(from.attention.self_.query),
            key: linear(from.attention.self_.key),
            value: linear(from.attention.self_.value),
            mixed: BertEnd::new(from.attention.output, epsilon),
            wide_dense: linear(from.intermediate.dense),
            narrow: BertEnd::new(from.output, epsilon),
            d_head,
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let heads = |layer: &Linear| split(layer.forward(hidden.clone()), self.d_head);
        let mixed = attention(heads(&self.query), heads(&self.key), heads(&self.value), None);
        let hidden = self.mixed.forward(mixed, hidden);
        self.narrow.forward(activation::gelu(self.wide_dense.forward(hidden.clone())), hidden)
    }
}

/// BERT that classifies.
#[derive(Module, Debug)]
pub(crate) struct PlainBert {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
    layers: Vec<BertBlock>,
    pooler_dense: Linear,
    classifier: Linear,
    #[module(skip)]
    labels: LabelConfig,
}

impl PlainBert {
    pub(crate) fn new(from: BertForSequenceClassification, config: &RawConfig) -> Self {
        let d_head = number(config, "hidden_size") as usize / number(config, "num_attention_heads") as usize;
        let epsilon = number(config, "layer_norm_eps");
        let labels = from.labels().clone();
        let (tables, encoder) = (from.bert.embeddings, from.bert.encoder);
        Self {
            words: embedding(tables.word_embeddings),
            positions: embedding(tables.position_embeddings),
            types: embedding(tables.token_type_embeddings),
            norm: layer_norm(tables.LayerNorm, epsilon),
            layers: encoder.layer.into_iter().map(|it| BertBlock::new(it, d_head, epsilon)).collect(),
            pooler_dense: linear(from.bert.pooler.expect("a classifier has a pooler").dense),
            classifier: linear(from.classifier),
            labels,
        }
    }
}

impl SequenceClassifier for PlainBert {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        let [batch, seq] = input.dims();
        let types = Tensor::<2, Int>::zeros([1, seq], &input.device());
        let embedded = input.tokens.embed(|ids| self.words.forward(ids)) + self.types.forward(types);
        let embedded = self.norm.forward(embedded + self.positions.forward(input.positions(0)));
        let hidden = self.layers.iter().fold(embedded, |hidden, layer| layer.forward(hidden));
        let d_model = hidden.dims()[2];
        let first = hidden.narrow(1, 0, 1).reshape([batch, d_model]);
        self.classifier.forward(self.pooler_dense.forward(first).tanh())
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }
}
