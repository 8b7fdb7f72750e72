//! SHiRA: trains a few entries of the weight, at random places. Source: arXiv 2406.13175, `peft/tuners/shira/layer.py`
//! and `mask_functions.py`.
//!
//! The file holds the places, so reading one needs no random numbers. A fresh adapter with a `random_seed` has the
//! places that the reference draws; without one they depend on our own seed, as all starting values do.

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use peft_core::config::fields::{self, Bias};
use peft_core::forward::LinearBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, MethodInfo, ModelSpec, Names, ParamRole, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, TorchGenerator, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;

/// `peft_type` of SHiRA.
pub const PEFT_TYPE: &str = "SHIRA";

/// Trained entries of one weight.
#[derive(Module, Debug)]
pub struct Shira {
    /// Their values, `[n]`.
    pub shira_weight: Param<Tensor<1>>,
    /// Their places, output and input, `[2, n]`.
    pub shira_indices: Param<Tensor<2, Int>>,
}

impl Shira {
    /// `[out, in]`
    fn delta(&self, param: &ParamSpec) -> Tensor<2> {
        let (d_in, d_out) = param.features();
        let values = self.shira_weight.val();
        let count = values.dims()[0];
        let indices = self.shira_indices.val();
        let rows = indices.clone().slice([0..1, 0..count]).mul_scalar(d_in as i64);
        let flat = (rows + indices.slice([1..2, 0..count])).reshape([count]);
        let empty = Tensor::<1>::zeros([d_out * d_in], &values.device());
        empty.select_assign(0, flat, values, IndexingUpdateOp::Add).reshape([d_out, d_in])
    }
}

impl Adapter for Shira {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        weight + param.out_in(self.delta(param)).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let delta = below.param().out_in(self.delta(below.param()));
        below.forward(input.clone()) + below.apply(input, delta, None)
    }

    fn role(&self, field: &str) -> ParamRole {
        if field == "shira_indices" { ParamRole::Constant } else { ParamRole::Trained }
    }

    fn check(&self, param: &ParamSpec) -> std::result::Result<(), String> {
        let (d_in, d_out) = param.features();
        let places: Vec<i64> = self.shira_indices.val().into_data().iter::<i64>().collect();
        let (rows, columns) = places.split_at(places.len() / 2);
        let inside = |places: &[i64], size: usize| places.iter().all(|it| (0..size as i64).contains(it));
        if inside(rows, d_out) && inside(columns, d_in) {
            return Ok(());
        }
        Err(format!("shira_indices name entries outside of `{}` ({d_out} × {d_in})", param.module))
    }
}

/// Configuration of SHiRA, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ShiraConfig {
    /// `r · (in + out)` entries are trained, as many as LoRA would train numbers. The update's rank is not bounded.
    pub r: usize,
    /// How places are chosen: `random`.
    pub mask_type: String,
    /// Seed of the places.
    pub random_seed: Option<i64>,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Start from zeros; `false` starts from random numbers.
    pub init_weights: bool,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for ShiraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            mask_type: "random".into(),
            random_seed: None,
            target_modules: None,
            fan_in_fan_out: false,
            init_weights: true,
            modules_to_save: None,
            task_type: None,
            other: Map::new(),
        }
    }
}

impl ShiraConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "SHiRA",
            target_modules: &self.target_modules,
            exclude_modules: &None,
            layers_to_transform: &None,
            layers_pattern: &None,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: Bias::None,
            bias_only: "none",
            other: &self.other,
        }
    }

    fn row(&self, param: &Arc<ParamSpec>) -> Result<PlanRow> {
        self.common().only_linear(param)?;
        let (d_in, d_out) = param.features();
        let count = self.r * (d_in + d_out);
        if count > d_in * d_out {
            let reason = format!("is {}: {count} entries, but `{}` has only {}", self.r, param.module, d_in * d_out);
            return Err(PeftError::config("r", reason));
        }
        let build = BuildShira { count, seed: self.random_seed, zero: self.init_weights };
        Ok(PlanRow { param: param.clone(), label: format!("r={}", self.r), parameters: count, build: Arc::new(build) })
    }
}

/// Where the defaults differ from LoRA's.
fn defaults(model_type: &str) -> Option<&'static [&'static str]> {
    (model_type == "phi").then_some(&["q_proj", "v_proj"])
}

impl Tuner for ShiraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "SHiRA",
        peft_type: PEFT_TYPE,
        what: "a few entries of the weight",
        paper: "arXiv 2406.13175",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for ShiraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        fields::check_positive("r", self.r)?;
        let mut plan = self.common().plan(spec, defaults, |param| self.row(param))?;
        self.common().note_conv1d(&mut plan);
        if self.mask_type != "random" {
            let note = "is not known: places come from the file, and a new adapter draws them at random";
            plan.notes.push(format!("mask_type `{}` {note}", self.mask_type));
        }
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

#[derive(Debug, Clone)]
struct BuildShira {
    count: usize,
    seed: Option<i64>,
    zero: bool,
}

impl AdapterBuilder for BuildShira {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (d_in, d_out) = base.param().features();
        let seed = self.seed.unwrap_or_else(|| i64::from(init.bits()));
        let mut places = TorchGenerator::new(seed).permutation(d_in * d_out);
        places.truncate(self.count);
        places.sort_unstable();
        let rows = places.iter().map(|it| (it / d_in) as i64);
        let both: Vec<i64> = rows.chain(places.iter().map(|it| (it % d_in) as i64)).collect();
        let indices = Tensor::from_data(TensorData::new(both, [2, self.count]), init.device());
        let shira_weight = if self.zero { init.constant([self.count], 0.0) } else { init.normal([self.count], 1.0) };
        AnyAdapter::new(Shira { shira_weight, shira_indices: Param::initialized(ParamId::new(), indices) })
    }
}
