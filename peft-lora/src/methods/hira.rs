//! HiRA: a low-rank matrix scales the frozen weight element by element, `ΔW = W ∘ BA`. Source:
//! openreview TwJrTz9cRS, `peft/tuners/hira/layer.py`.
//!
//! `W` is always the frozen weight, whatever other adapters have made of it. On an embedding the reference's live
//! forward does not know `padding_idx`, so its row of `A` gets a gradient; here too.

#![allow(non_snake_case)] // field names are the keys of the file

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use indexmap::IndexMap;
use peft_core::config::fields::{self, Bias};
use peft_core::forward::{EmbeddingBelow, LinearBelow};
use peft_core::nn::Dropout;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamKind, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;

/// `peft_type` of HiRA.
pub const PEFT_TYPE: &str = "HIRA";

/// HiRA on a linear layer.
#[derive(Module, Debug)]
pub struct HiraLinear {
    /// `[rank, in]`
    pub hira_A: Param<Tensor<2>>,
    /// `[out, rank]`
    pub hira_B: Param<Tensor<2>>,
    dropout: Dropout,
}

impl HiraLinear {
    /// `W ∘ BA`, lying as the base does.
    fn delta(&self, base: Tensor<2>, param: &ParamSpec) -> Tensor<2> {
        base * param.out_in(self.hira_B.val().matmul(self.hira_A.val()))
    }
}

impl Adapter for HiraLinear {
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        weight + self.delta(base.clone().reshape([dims[0], dims[1]]), param).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let delta = self.delta(below.base().clone(), below.param());
        below.forward(input.clone()) + below.apply(self.dropout.forward(input), delta, None)
    }
}

/// HiRA on a table of vectors.
#[derive(Module, Debug)]
pub struct HiraEmbedding {
    /// `[rank, rows]`
    pub hira_embedding_A: Param<Tensor<2>>,
    /// `[d_model, rank]`
    pub hira_embedding_B: Param<Tensor<2>>,
}

impl Adapter for HiraEmbedding {
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        let product = self.hira_embedding_B.val().matmul(self.hira_embedding_A.val()).transpose();
        weight.clone() + base.clone() * product.reshape(weight.dims())
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let rows = below.forward(ids.clone());
        let [batch, seq, d_model] = rows.dims();
        let low = burn::tensor::module::embedding(self.hira_embedding_A.val().transpose(), ids.clone());
        let rank = low.dims()[2];
        let factor = low.reshape([batch * seq, rank]).matmul(self.hira_embedding_B.val().transpose());
        rows + below.look_up_frozen(ids) * factor.reshape([batch, seq, d_model])
    }
}

/// HiRA on a convolution kernel with `D` axes, through the effective kernel.
#[derive(Module, Debug)]
pub struct HiraConv<const D: usize> {
    /// `[rank, in, kernel…]`
    pub hira_A: Param<Tensor<D>>,
    /// `[out, rank, 1…]`
    pub hira_B: Param<Tensor<D>>,
}

impl<const K: usize> Adapter for HiraConv<K> {
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        let (a, b) = (self.hira_A.val(), self.hira_B.val());
        let (rank, out) = (a.dims()[0], b.dims()[0]);
        let width = a.dims()[1..].iter().product::<usize>();
        let product = b.reshape([out, rank]).matmul(a.reshape([rank, width]));
        weight.clone() + base.clone() * product.reshape(weight.dims())
    }
}

/// Configuration of HiRA, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct HiraConfig {
    /// Rank of the factors; the update itself has a higher one.
    pub r: usize,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Share of the adapter's input that is dropped while training.
    pub hira_dropout: f64,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `true`, `false` or `"gaussian"`.
    pub init_weights: Value,
    /// Numbers of the layers that list-style targets are restricted to.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    pub layers_pattern: Option<Names>,
    /// Read and written, but without effect: the reference passes it on and then takes `r`.
    #[serde(deserialize_with = "fields::null_is_default")]
    pub rank_pattern: IndexMap<String, usize>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for HiraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            target_modules: None,
            exclude_modules: None,
            hira_dropout: 0.0,
            fan_in_fan_out: false,
            modules_to_save: None,
            init_weights: true.into(),
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: IndexMap::new(),
            task_type: None,
            other: Map::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InitWeights {
    Kaiming,
    Gaussian,
    Random,
}

impl HiraConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "HiRA",
            target_modules: &self.target_modules,
            exclude_modules: &self.exclude_modules,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: Bias::None,
            bias_only: "none",
            other: &self.other,
        }
    }

    fn start(&self) -> Result<InitWeights> {
        match &self.init_weights {
            Value::Bool(true) => Ok(InitWeights::Kaiming),
            Value::Bool(false) | Value::Null => Ok(InitWeights::Random),
            Value::String(name) if name.eq_ignore_ascii_case("gaussian") => Ok(InitWeights::Gaussian),
            other => {
                Err(PeftError::unsupported(format!("init_weights = {other}"), "true, false and gaussian are known"))
            }
        }
    }

    fn row(&self, param: &Arc<ParamSpec>) -> Result<PlanRow> {
        let ((d_in, d_out), rank) = (param.features(), self.r);
        let build = BuildHira { rank, dropout: self.hira_dropout, start: self.start()? };
        let (label, parameters) = (format!("r={rank}"), rank * (d_in + d_out));
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }
}

impl Tuner for HiraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "HiRA",
        peft_type: PEFT_TYPE,
        what: "a low-rank matrix that scales the frozen weight element by element",
        paper: "openreview TwJrTz9cRS",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for HiraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        fields::check_positive("r", self.r)?;
        fields::check_dropout("hira_dropout", self.hira_dropout)?;
        let mut plan = self.common().plan(spec, |_| None, |param| self.row(param))?;
        if !self.rank_pattern.is_empty() {
            plan.notes.push("rank_pattern has no effect on HiRA: PEFT writes `r` into every layer".into());
        }
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

#[derive(Debug, Clone)]
struct BuildHira {
    rank: usize,
    dropout: f64,
    start: InitWeights,
}

impl AdapterBuilder for BuildHira {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let param = base.param().clone();
        let (d_in, d_out) = param.features();
        match (param.kind, param.shape.len()) {
            (ParamKind::Embedding, _) => {
                let hira_embedding_A = match self.start {
                    InitWeights::Random => init.normal([self.rank, d_in], 1.0),
                    _ => init.constant([self.rank, d_in], 0.0),
                };
                let hira_embedding_B = init.normal([d_out, self.rank], 1.0);
                AnyAdapter::new(HiraEmbedding { hira_embedding_A, hira_embedding_B })
            }
            (ParamKind::Conv, 3) => AnyAdapter::new(self.kernel::<3>(&param, init)),
            (ParamKind::Conv, 4) => AnyAdapter::new(self.kernel::<4>(&param, init)),
            (ParamKind::Conv, _) => AnyAdapter::new(self.kernel::<5>(&param, init)),
            _ => {
                let hira_A = match self.start {
                    InitWeights::Kaiming => init.kaiming([self.rank, d_in]),
                    InitWeights::Gaussian => init.normal([self.rank, d_in], 1.0 / self.rank as f64),
                    InitWeights::Random => init.normal([self.rank, d_in], 1.0),
                };
                let hira_B = match self.start {
                    InitWeights::Random => init.normal([d_out, self.rank], 1.0),
                    _ => init.constant([d_out, self.rank], 0.0),
                };
                AnyAdapter::new(HiraLinear { hira_A, hira_B, dropout: Dropout::new(self.dropout) })
            }
        }
    }
}

impl BuildHira {
    fn kernel<const D: usize>(&self, param: &ParamSpec, init: &mut Init) -> HiraConv<D> {
        let a_shape: [usize; D] = std::array::from_fn(|axis| if axis == 0 { self.rank } else { param.shape[axis] });
        let b_shape: [usize; D] =
            std::array::from_fn(|axis| [param.shape[0], self.rank].get(axis).copied().unwrap_or(1));
        match self.start {
            InitWeights::Random => HiraConv { hira_A: init.normal(a_shape, 1.0), hira_B: init.normal(b_shape, 1.0) },
            _ => HiraConv { hira_A: init.kaiming(a_shape), hira_B: init.constant(b_shape, 0.0) },
        }
    }
}
