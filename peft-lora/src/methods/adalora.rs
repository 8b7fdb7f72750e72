//! AdaLoRA: an update in the form of a singular value decomposition, whose rank is spent where it matters.
//!
//! `ΔW = α / r · B (E ∘ A)`, with the initial rank for `r` also when rows were dropped. The loss gets a term that keeps
//! `A` and `B` orthogonal; after each step [`Allocator`] scores the rows and sets the singular values of the worst to
//! zero. Source: arXiv 2303.10512 and `peft/tuners/adalora`. The reference drops masked rows when it saves
//! (`rank_pattern` says which), and so does this.

#![allow(non_snake_case)] // field names are the keys of the file

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use indexmap::IndexMap;
use peft_core::config::fields::{self, SavedModules};
use peft_core::files::checkpoint::Stored;
use peft_core::forward::LinearBelow;
use peft_core::model::state::KEY_PREFIX;
use peft_core::nn::Dropout;
use peft_core::{
    Adapter, AdapterBuilder, AfterStep, AnyAdapter, BaseTensor, Init, MethodInfo, ModelSpec, ParamKind, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::lora::config::LoraConfig;
use crate::methods::dense_update;

/// `peft_type` of AdaLoRA.
pub const PEFT_TYPE: &str = "ADALORA";

/// What the reference adds to the rank that it divides by.
const EPSILON: f64 = 1e-5;

/// The update of one layer.
#[derive(Module, Debug)]
pub struct AdaLora {
    /// Right singular vectors, `[rank, in · kernel]`.
    pub lora_A: Param<Tensor<2>>,
    /// Singular values, `[rank, 1]`.
    pub lora_E: Param<Tensor<2>>,
    /// Left singular vectors, `[out, rank]`.
    pub lora_B: Param<Tensor<2>>,
    dropout: Dropout,
    scale: f64,
    /// Weight of this layer in the orthogonal term.
    regularizer: f64,
}

impl AdaLora {
    fn rank(&self) -> usize {
        self.lora_E.lazy_shape()[0]
    }

    /// `E ∘ A`, `[rank, in · kernel]`.
    fn right(&self) -> Tensor<2> {
        self.lora_A.val() * self.lora_E.val()
    }
}

/// `‖gram − I‖`
fn from_identity(gram: Tensor<2>) -> Tensor<1> {
    let identity = Tensor::eye(gram.dims()[0], &gram.device());
    let off = gram - identity;
    (off.clone() * off).sum().sqrt()
}

impl Adapter for AdaLora {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        if self.rank() == 0 {
            return weight;
        }
        dense_update::add(weight, self.lora_B.val().matmul(self.right()).mul_scalar(self.scale), param)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let output = below.forward(input.clone());
        if self.rank() == 0 {
            return output;
        }
        let low = self.dropout.forward(input).matmul(self.right().transpose());
        output + low.matmul(self.lora_B.val().transpose()).mul_scalar(self.scale)
    }

    fn loss(&self) -> Option<Tensor<1>> {
        if self.rank() == 0 || self.regularizer == 0.0 {
            return None;
        }
        let (a, b) = (self.lora_A.val(), self.lora_B.val());
        let left = from_identity(b.clone().transpose().matmul(b));
        let right = from_identity(a.clone().matmul(a.transpose()));
        Some((left + right).mul_scalar(self.regularizer))
    }
}

/// Builds [`AdaLora`].
#[derive(Debug, Clone)]
struct BuildAdaLora {
    rank: usize,
    inner: usize,
    out: usize,
    dropout: f64,
    scale: f64,
    regularizer: f64,
    identity: bool,
}

impl AdapterBuilder for BuildAdaLora {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let std = if self.identity { 0.02 } else { 1.0 };
        let lora_A = init.normal([self.rank, self.inner], std);
        let lora_B = init.normal([self.out, self.rank], std);
        let lora_E = match self.identity {
            true => init.constant([self.rank, 1], 0.0),
            false => init.normal([self.rank, 1], 1.0),
        };
        let dropout = Dropout::new(self.dropout);
        AnyAdapter::new(AdaLora { lora_A, lora_E, lora_B, dropout, scale: self.scale, regularizer: self.regularizer })
    }
}

/// AdaLoRA's configuration: LoRA's, and the schedule. Defaults are the reference's; `total_step` must be given.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct AdaLoraConfig {
    /// The fields of LoRA. `r` is not used, nor are those that say how LoRA scales or starts.
    #[serde(skip)]
    pub lora: LoraConfig,
    /// Mean rank at the end.
    pub target_r: usize,
    /// Rank at the start.
    pub init_r: usize,
    /// Steps before the rank is reduced.
    pub tinit: usize,
    /// Steps at the end in which it no longer is.
    pub tfinal: usize,
    /// Steps between two reductions.
    #[serde(rename = "deltaT")]
    pub delta_t: usize,
    /// Smoothing of the sensitivity.
    pub beta1: f64,
    /// Smoothing of the uncertainty.
    pub beta2: f64,
    /// Weight of the term that keeps the singular vectors orthogonal.
    pub orth_reg_weight: f64,
    /// Steps of the whole run.
    pub total_step: Option<usize>,
    /// Rows that are kept, by `<layer>.lora_E`.
    pub rank_pattern: Option<IndexMap<String, Vec<bool>>>,
}

/// The fields that LoRA does not have, or has with another meaning.
const OWN: [&str; 10] = [
    "target_r",
    "init_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
    "rank_pattern",
];

impl Default for AdaLoraConfig {
    fn default() -> Self {
        Self {
            lora: LoraConfig::default(),
            target_r: 8,
            init_r: 12,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            rank_pattern: None,
        }
    }
}

impl AdaLoraConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(mut json: Map<String, Value>) -> Result<Self> {
        let mut config: Self = fields::parse_config(json.clone())?;
        OWN.iter().for_each(|field| drop(json.shift_remove(*field)));
        config.lora = LoraConfig::parse(json)?;
        Ok(config)
    }

    /// The last step in which the rank may still be reduced.
    fn last(&self) -> usize {
        self.total_step.unwrap_or(0).saturating_sub(self.tfinal)
    }

    fn check(&self) -> Result<()> {
        let refuse = |field: &str, reason: &str| Err(PeftError::config(field, reason));
        if self.total_step.is_none_or(|it| it == 0) {
            return refuse("total_step", "must be given: the ranks are reduced over the steps of the run");
        }
        if self.tinit >= self.last() {
            return refuse(
                "tinit",
                "leaves no step to reduce ranks in: lower `tinit` or `tfinal`, or raise `total_step`",
            );
        }
        fields::check_positive("init_r", self.init_r)?;
        fields::check_positive("deltaT", self.delta_t)?;
        if !(self.orth_reg_weight >= 0.0 && self.orth_reg_weight.is_finite()) {
            return refuse("orth_reg_weight", "must not be negative");
        }
        if ![self.beta1, self.beta2].iter().all(|it| (0.0..1.0).contains(it) && *it > 0.0) {
            return refuse("beta1", "and `beta2` must lie between 0 and 1");
        }
        fields::check_dropout("lora_dropout", self.lora.lora_dropout)?;
        let unread = [
            ("alora_invocation_tokens", self.lora.invocation().is_some()),
            ("use_dora", self.lora.use_dora),
            ("use_rslora", self.lora.use_rslora),
            ("lora_bias", self.lora.lora_bias),
            ("ensure_weight_tying", self.lora.ensure_weight_tying),
            ("alpha_pattern", !self.lora.alpha_pattern.is_empty()),
            ("trainable_token_indices", self.lora.trainable_token_indices.is_some()),
        ];
        if let Some((field, _)) = unread.iter().find(|(_, on)| *on) {
            return refuse(field, "is not read by AdaLoRA: switch it off");
        }
        if !self.lora.init_lora_weights.is_boolean() {
            return refuse("init_lora_weights", "is true or false in AdaLoRA");
        }
        Ok(())
    }

    /// Rows that a layer keeps; all of them without a pattern.
    fn kept(&self, module: &str) -> Option<&Vec<bool>> {
        self.rank_pattern.as_ref()?.get(&format!("{module}.lora_E"))
    }

    fn row(&self, param: &Arc<ParamSpec>, layers: usize) -> Result<PlanRow> {
        if param.kind == ParamKind::Embedding || (param.kind == ParamKind::Conv && param.shape.len() != 4) {
            let reason = format!("names `{}`: AdaLoRA adapts linear layers and 2d convolutions", param.module);
            return Err(PeftError::config("target_modules", reason));
        }
        let rank = self.kept(&param.module).map_or(self.init_r, |kept| kept.iter().filter(|it| **it).count());
        let (inner, out) = param.features();
        let alpha = if self.lora.lora_alpha > 0.0 { self.lora.lora_alpha } else { self.init_r as f64 };
        let build = BuildAdaLora {
            rank,
            inner,
            out,
            dropout: self.lora.lora_dropout,
            scale: alpha / (self.init_r as f64 + EPSILON),
            // The mean is over both factors of all layers, those without a row among them.
            regularizer: self.orth_reg_weight / (2 * layers) as f64,
            identity: self.lora.init_lora_weights != Value::Bool(false),
        };
        let label = format!("r={rank} α={alpha}");
        Ok(PlanRow { param: param.clone(), label, parameters: rank * (inner + out + 1), build: Arc::new(build) })
    }
}

impl Tuner for AdaLoraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "AdaLoRA",
        peft_type: PEFT_TYPE,
        what: "a singular value decomposition whose rank is spent where it matters",
        paper: "arXiv 2303.10512",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for AdaLoraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.lora.task_type)
    }

    fn keeps_head_tied(&self, spec: &ModelSpec) -> bool {
        self.lora.keeps_head_tied(spec)
    }

    fn layer_replication(&self) -> Option<&[[usize; 2]]> {
        self.lora.layer_replication()
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        self.check()?;
        let selected = self.lora.selection().resolve(spec, spec.model_type.as_deref().and_then(defaults))?;
        let mut plan = Plan::new("AdaLoRA", spec);
        for param in &selected.params {
            plan.rows.push(self.row(param, selected.params.len())?);
        }
        let saved = self.lora.saved_modules();
        self.lora.bias.add_to(&mut plan, spec, &saved);
        saved.add_to(&mut plan, spec)?;
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        let mut json = self.lora.to_json()?;
        json.extend(fields::config_json(self, &SavedModules::default())?);
        Ok(json)
    }

    /// Drops the rows that the pattern does not keep.
    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        let prune = |Stored { key, data }: Stored| {
            let path = key.strip_prefix(KEY_PREFIX).unwrap_or(&key);
            let kept = path.rsplit_once('.').filter(|(_, field)| FIELDS.contains(field));
            let data = match kept.and_then(|(module, field)| Some((field, self.kept(module)?))) {
                Some((field, kept)) => keep(&data, usize::from(field == "lora_B"), kept),
                None => data,
            };
            Stored { key, data }
        };
        tensors.into_iter().map(prune).collect()
    }

    fn after_step(&self) -> Option<Box<dyn AfterStep>> {
        Some(Box::new(Allocator { config: self.clone(), averages: HashMap::new() }))
    }
}

const FIELDS: [&str; 3] = ["lora_A", "lora_B", "lora_E"];

/// The rows, or for axis 1 the columns, that are kept. A matrix that was cut already stays.
fn keep(data: &TensorData, axis: usize, kept: &[bool]) -> TensorData {
    let shape = data.shape().as_slice().to_vec();
    if shape[axis] != kept.len() {
        return data.clone();
    }
    let width = shape[1];
    let values = data.iter::<f32>().enumerate();
    let values: Vec<f32> = values
        .filter(|(at, _)| kept[if axis == 0 { at / width } else { at % width }])
        .map(|(_, value)| value)
        .collect();
    let mut cut = shape;
    cut[axis] = kept.iter().filter(|it| **it).count();
    TensorData::new(values, cut)
}

/// Smoothed sensitivity and uncertainty of every element of a tensor.
#[derive(Debug, Clone)]
struct Average {
    sensitivity: Vec<f32>,
    uncertainty: Vec<f32>,
}

/// Scores the rows of all layers after a step, and masks those that the budget has no place for.
#[derive(Debug)]
pub struct Allocator {
    config: AdaLoraConfig,
    /// By key.
    averages: HashMap<String, Average>,
}

/// The three tensors of a layer.
#[derive(Default)]
struct Triplet {
    a: Option<(String, Vec<usize>)>,
    b: Option<(String, Vec<usize>)>,
    e: Option<(String, Vec<usize>)>,
}

impl Allocator {
    /// The sum of all ranks at a step, and whether it is enforced then.
    fn budget(&self, step: usize, initial: usize, target: usize) -> (usize, bool) {
        let config = &self.config;
        if step <= config.tinit {
            return (initial, false);
        }
        if step > config.last() {
            return (target, true);
        }
        let share = 1.0 - (step - config.tinit) as f64 / (config.last() - config.tinit) as f64;
        let budget = ((initial as f64 - target as f64) * share.powi(3) + target as f64) as usize;
        (budget, step.is_multiple_of(config.delta_t))
    }

    fn observe(&mut self, tensors: &[Stored], gradients: &[Stored]) {
        let gradients: HashMap<&str, &TensorData> = gradients.iter().map(|it| (it.key.as_str(), &it.data)).collect();
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        for Stored { key, data } in tensors.iter().filter(|it| is_own(&it.key)) {
            let Some(gradient) = gradients.get(key.as_str()) else { continue };
            let length = data.num_elements();
            let average = self
                .averages
                .entry(key.clone())
                .or_insert_with(|| Average { sensitivity: vec![0.0; length], uncertainty: vec![0.0; length] });
            for (at, (value, gradient)) in data.iter::<f32>().zip(gradient.iter::<f32>()).enumerate() {
                let now = (value * gradient).abs();
                let sensitivity = beta1 * average.sensitivity[at] + (1.0 - beta1) * now;
                average.sensitivity[at] = sensitivity;
                average.uncertainty[at] = beta2 * average.uncertainty[at] + (1.0 - beta2) * (now - sensitivity).abs();
            }
        }
    }

    fn scores(&self, key: &str) -> Vec<f32> {
        self.averages
            .get(key)
            .map(|it| it.sensitivity.iter().zip(&it.uncertainty).map(|(a, b)| a * b).collect())
            .unwrap_or_default()
    }

    /// Chooses the rows that are kept, by layer.
    fn choose(&self, layers: &BTreeMap<String, Triplet>, masked: usize) -> IndexMap<String, Vec<bool>> {
        let mut scores: Vec<(String, Vec<f32>)> = Vec::new();
        for (module, layer) in layers {
            let (Some((a, a_shape)), Some((b, b_shape)), Some((e, _))) = (&layer.a, &layer.b, &layer.e) else {
                continue;
            };
            let (of_a, of_b, of_e) = (self.scores(a), self.scores(b), self.scores(e));
            let (inner, rank, out) = (a_shape[1], a_shape[0], b_shape[0]);
            let rows = (0..rank).map(|row| {
                let right: f32 = of_a[row * inner..(row + 1) * inner].iter().sum::<f32>() / inner as f32;
                let left: f32 = (0..out).map(|at| of_b[at * rank + row]).sum::<f32>() / out as f32;
                of_e[row] + right + left
            });
            scores.push((format!("{module}.lora_E"), rows.collect()));
        }
        let mut all: Vec<f32> = scores.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
        all.sort_by(f32::total_cmp);
        let threshold = masked.checked_sub(1).and_then(|at| all.get(at).copied()).unwrap_or(f32::NEG_INFINITY);
        scores
            .into_iter()
            .map(|(name, rows)| (name, rows.into_iter().map(|score| score > threshold).collect()))
            .collect()
    }
}

fn is_own(key: &str) -> bool {
    key.rsplit('.').next().is_some_and(|field| FIELDS.contains(&field))
}

impl AfterStep for Allocator {
    fn after_step(&mut self, step: usize, tensors: &[Stored], gradients: &[Stored]) -> Result<Vec<Stored>> {
        let last = self.config.last();
        let mut layers: BTreeMap<String, Triplet> = BTreeMap::new();
        for Stored { key, data } in tensors.iter().filter(|it| is_own(&it.key)) {
            let path = key.strip_prefix(KEY_PREFIX).unwrap_or(key);
            let Some((module, field)) = path.rsplit_once('.') else { continue };
            let layer = layers.entry(module.to_owned()).or_default();
            let place = match field {
                "lora_A" => &mut layer.a,
                "lora_B" => &mut layer.b,
                _ => &mut layer.e,
            };
            *place = Some((key.clone(), data.shape().as_slice().to_vec()));
        }
        if step <= last {
            if step < last {
                self.observe(tensors, gradients);
            }
            let initial = layers.values().filter_map(|it| it.e.as_ref()).map(|(_, shape)| shape[0]).sum();
            let target = (self.config.target_r * layers.len()).min(initial);
            let (budget, enforced) = self.budget(step, initial, target);
            if enforced || step == last {
                self.config.rank_pattern = Some(self.choose(&layers, initial - budget));
            } else {
                return Ok(Vec::new());
            }
            if step == last {
                self.averages.clear();
            }
        }
        let Some(pattern) = &self.config.rank_pattern else { return Ok(Vec::new()) };
        let mask = |stored: &Stored| {
            let kept = pattern.get(stored.key.strip_prefix(KEY_PREFIX).unwrap_or(&stored.key))?;
            if kept.len() != stored.data.num_elements() {
                return None;
            }
            let values = stored.data.iter::<f32>().zip(kept).map(|(value, kept)| if *kept { value } else { 0.0 });
            let data = TensorData::new(values.collect::<Vec<f32>>(), stored.data.shape().clone());
            Some(Stored { key: stored.key.clone(), data })
        };
        Ok(tensors.iter().filter_map(mask).collect())
    }

    fn config(&self) -> Box<dyn PeftConfig> {
        Box::new(self.config.clone())
    }

    fn state(&self) -> Vec<Stored> {
        let mut stored = Vec::new();
        for (key, average) in &self.averages {
            for (name, values) in [("sensitivity", &average.sensitivity), ("uncertainty", &average.uncertainty)] {
                let data = TensorData::new(values.clone(), [values.len()]);
                stored.push(Stored { key: format!("{name}.{key}"), data });
            }
        }
        for (name, kept) in self.config.rank_pattern.iter().flatten() {
            let values: Vec<f32> = kept.iter().map(|it| f32::from(u8::from(*it))).collect();
            let data = TensorData::new(values, [kept.len()]);
            stored.push(Stored { key: format!("kept.{name}"), data });
        }
        stored
    }

    fn restore(&mut self, state: Vec<Stored>) -> Result<()> {
        let mut pattern = IndexMap::new();
        self.averages.clear();
        for Stored { key, data } in state {
            let values: Vec<f32> = data.iter::<f32>().collect();
            match key.split_once('.') {
                Some(("kept", name)) => {
                    pattern.insert(name.to_owned(), values.iter().map(|it| *it > 0.5).collect());
                }
                Some((kind @ ("sensitivity" | "uncertainty"), key)) => {
                    let empty = || Average { sensitivity: Vec::new(), uncertainty: Vec::new() };
                    let average = self.averages.entry(key.to_owned()).or_insert_with(empty);
                    if kind == "sensitivity" { average.sensitivity = values } else { average.uncertainty = values }
                }
                _ => return Err(PeftError::Invalid(format!("`{key}` is no state of AdaLoRA's allocator"))),
            }
        }
        self.config.rank_pattern = (!pattern.is_empty()).then_some(pattern);
        Ok(())
    }
}

/// Source: `TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING` in `peft/utils/constants.py` (0.21).
fn defaults(model_type: &str) -> Option<&'static [&'static str]> {
    Some(match model_type {
        "t5" => &["q", "k", "v", "o", "wi", "wo"],
        "mt5" => &["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
        "bart" | "opt" => &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        "gpt2" | "gpt_bigcode" => &["c_attn"],
        "bloom" | "gpt_neox" => &["query_key_value"],
        "gptj" | "gpt_neo" | "llama" | "llama4" | "gemma" | "gemma2" | "gemma3_text" | "qwen2" | "qwen3" => {
            &["q_proj", "v_proj"]
        }
        "bert" => &["query", "value"],
        "roberta" => &["query", "key", "value", "dense"],
        "deberta-v2" => &["query_proj", "key_proj", "value_proj", "dense"],
        "deberta" => &["in_proj"],
        "nemotron_h" => &["q_proj", "k_proj", "v_proj", "o_proj"],
        _ => return None,
    })
}
