//! VeRA: one pair of random matrices for all layers, of which each layer trains two scalings,
//! `ΔW = Λ_b B Λ_d A`. Source: arXiv 2310.11454, `peft/tuners/vera/layer.py` and `model.py`.
//!
//! `A` is as wide as the widest input and `B` as high as the widest output; a layer takes the first columns and rows.
//! They are in the file with `save_projection`, once for all layers. Without it they follow from `projection_prng_key`,
//! drawn as torch draws them. Several adapters need not agree on the key, as they must in the reference: each has its own.

#![allow(non_snake_case)] // field names are the keys of the file

use std::sync::{Arc, OnceLock};

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::config::fields::{self, Bias};
use peft_core::forward::LinearBelow;
use peft_core::nn::Dropout;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamRole, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, TorchGenerator, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;

/// `peft_type` of VeRA.
pub const PEFT_TYPE: &str = "VERA";

/// The scalings of one layer, with the projections of all.
#[derive(Module, Debug)]
pub struct Vera {
    /// `[out]`
    pub vera_lambda_b: Param<Tensor<1>>,
    /// `[r]`
    pub vera_lambda_d: Param<Tensor<1>>,
    /// `[r, widest in]`. Not trained.
    pub vera_A: Param<Tensor<2>>,
    /// `[widest out, r]`. Not trained.
    pub vera_B: Param<Tensor<2>>,
    dropout: Dropout,
    saved: bool,
}

impl Vera {
    /// `[r, in]` and `[out, r]`, for a layer of these sizes.
    fn projections(&self, (d_in, d_out): (usize, usize)) -> (Tensor<2>, Tensor<2>) {
        (self.vera_A.val().narrow(1, 0, d_in), self.vera_B.val().narrow(0, 0, d_out))
    }
}

impl Adapter for Vera {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let (a, b) = self.projections(param.features());
        let delta =
            (b * self.vera_lambda_b.val().unsqueeze_dim(1)).matmul(a * self.vera_lambda_d.val().unsqueeze_dim(1));
        weight + param.out_in(delta).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let output = below.forward(input.clone());
        let (a, b) = self.projections(below.param().features());
        let low = self.dropout.forward(input).matmul(a.transpose()) * self.vera_lambda_d.val().unsqueeze();
        output + low.matmul(b.transpose()) * self.vera_lambda_b.val().unsqueeze()
    }

    fn role(&self, field: &str) -> ParamRole {
        match field {
            "vera_A" | "vera_B" if self.saved => {
                ParamRole::Shared { key: format!("base_model.{field}"), copies: false }
            }
            "vera_A" | "vera_B" => ParamRole::Derived,
            _ => ParamRole::Trained,
        }
    }
}

/// Configuration of VeRA, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct VeraConfig {
    /// Rank of the projections. Larger than LoRA's, for a layer trains only `r + out` numbers.
    pub r: usize,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Seed of the projections.
    pub projection_prng_key: i64,
    /// Whether the projections are in the file.
    pub save_projection: bool,
    /// Share of the adapter's input that is dropped while training.
    pub vera_dropout: f64,
    /// What `Λ_d` starts with; `Λ_b` starts with 0.
    pub d_initial: f64,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Start without an update; `false` starts with ones and random numbers.
    pub init_weights: bool,
    /// Numbers of the layers that list-style targets are restricted to.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    pub layers_pattern: Option<Names>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self {
            r: 256,
            target_modules: None,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            fan_in_fan_out: false,
            bias: Bias::None,
            modules_to_save: None,
            init_weights: true,
            layers_to_transform: None,
            layers_pattern: None,
            task_type: None,
            other: Map::new(),
        }
    }
}

impl VeraConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "VeRA",
            target_modules: &self.target_modules,
            exclude_modules: &None,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: self.bias,
            bias_only: "vera_only",
            other: &self.other,
        }
    }

    fn row(&self, param: &Arc<ParamSpec>, projections: &Arc<Projections>) -> Result<PlanRow> {
        self.common().only_linear(param)?;
        let build = BuildVera {
            dropout: self.vera_dropout,
            start: self.init_weights.then_some(self.d_initial as f32),
            saved: self.save_projection,
            projections: Arc::clone(projections),
        };
        let (label, parameters) = (format!("r={}", self.r), self.r + param.features().1);
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }
}

/// Where the defaults differ from LoRA's.
fn defaults(model_type: &str) -> Option<&'static [&'static str]> {
    (model_type == "phi").then_some(&["q_proj", "v_proj"])
}

impl Tuner for VeraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "VeRA",
        peft_type: PEFT_TYPE,
        what: "two vectors a layer around random projections that all layers share",
        paper: "arXiv 2310.11454",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for VeraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        fields::check_positive("r", self.r)?;
        fields::check_dropout("vera_dropout", self.vera_dropout)?;
        if !self.d_initial.is_finite() {
            return Err(PeftError::config("d_initial", "must be a finite number"));
        }
        let layers = self.common().spec(spec, defaults)?;
        let widest = |side: fn((usize, usize)) -> usize| layers.0.iter().map(|it| side(it.features())).max();
        let projections = Arc::new(Projections {
            rank: self.r,
            d_in: widest(|it| it.0).unwrap_or(0),
            d_out: widest(|it| it.1).unwrap_or(0),
            key: self.projection_prng_key,
            drawn: OnceLock::new(),
        });
        let mut plan = self.common().plan_of(spec, layers, |param| self.row(param, &projections))?;
        plan.shared_elements = self.r.saturating_mul(projections.d_in + projections.d_out);
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

/// The projections that all layers of an adapter share, drawn when the first layer asks.
#[derive(Debug)]
struct Projections {
    rank: usize,
    d_in: usize,
    d_out: usize,
    key: i64,
    drawn: OnceLock<(Tensor<2>, Tensor<2>)>,
}

impl Projections {
    /// `A`, then `B`, from one generator: torch's `kaiming_uniform_` with the gain of a ReLU.
    fn drawn(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let draw = || {
            let mut generator = TorchGenerator::new(self.key);
            let mut kaiming = |rows: usize, columns: usize| {
                let bound = (3f64.sqrt() * (2f64.sqrt() / (columns as f64).sqrt())) as f32;
                let values = generator.uniform(rows * columns, -bound, bound);
                Tensor::from_data(TensorData::new(values, [rows, columns]), device)
            };
            (kaiming(self.rank, self.d_in), kaiming(self.d_out, self.rank))
        };
        self.drawn.get_or_init(draw).clone()
    }
}

#[derive(Debug, Clone)]
struct BuildVera {
    dropout: f64,
    /// `d_initial`, or nothing for a start at random.
    start: Option<f32>,
    saved: bool,
    projections: Arc<Projections>,
}

impl AdapterBuilder for BuildVera {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (rank, (_, d_out)) = (self.projections.rank, base.param().features());
        let (vera_lambda_b, vera_lambda_d) = match self.start {
            Some(start) => (init.constant([d_out], 0.0), init.constant([rank], start)),
            None => (init.constant([d_out], 1.0), init.normal([rank], 1.0)),
        };
        let (a, b) = self.projections.drawn(init.device());
        AnyAdapter::new(Vera {
            vera_lambda_b,
            vera_lambda_d,
            vera_A: Param::initialized(ParamId::new(), a),
            vera_B: Param::initialized(ParamId::new(), b),
            dropout: Dropout::new(self.dropout),
            saved: self.saved,
        })
    }
}
