//! LoHa: the update is the product, element by element, of two low-rank matrices.
//!
//! `ΔW = α / r · (w1_a w1_b) ∘ (w2_a w2_b)`. Source: arXiv 2108.06098 and `peft/tuners/loha`. The reference has it for
//! `nn.Linear` and convolutions; on `Gpt2Linear` it is the same update here, with a note that Python cannot load it.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use indexmap::IndexMap;
use peft_core::config::fields::{self, Bias};
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamSpec, Patterns,
    PeftConfig, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;
use crate::methods::dense_update::{self, UpdateDropout};

/// `peft_type` of LoHa.
pub const PEFT_TYPE: &str = "LOHA";

/// The update of one layer.
#[derive(Module, Debug)]
pub struct LoHa {
    /// `[out, rank]`; in the effective form `[rank, out]`.
    pub hada_w1_a: Param<Tensor<2>>,
    /// `[rank, in · kernel]`; in the effective form `[rank, in]`.
    pub hada_w1_b: Param<Tensor<2>>,
    /// As `hada_w1_a`.
    pub hada_w2_a: Param<Tensor<2>>,
    /// As `hada_w1_b`.
    pub hada_w2_b: Param<Tensor<2>>,
    /// The core of the effective form, `[rank, rank, kernel…]`; a kernel of one axis ends in a 1.
    pub hada_t1: Option<Param<Tensor<4>>>,
    /// As `hada_t1`.
    pub hada_t2: Option<Param<Tensor<4>>>,
    dropout: UpdateDropout,
    scale: f64,
}

impl LoHa {
    /// `[out, in · kernel]`
    fn update(&self) -> Tensor<2> {
        let factor = |core: &Option<Param<Tensor<4>>>, a: &Param<Tensor<2>>, b: &Param<Tensor<2>>| match core {
            Some(core) => dense_update::from_core(core.val(), a.val(), b.val()),
            None => a.val().matmul(b.val()),
        };
        let first = factor(&self.hada_t1, &self.hada_w1_a, &self.hada_w1_b);
        let second = factor(&self.hada_t2, &self.hada_w2_a, &self.hada_w2_b);
        self.dropout.forward((first * second).mul_scalar(self.scale))
    }
}

impl Adapter for LoHa {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        dense_update::add(weight, self.update(), param)
    }
}

/// Builds [`LoHa`].
#[derive(Debug, Clone)]
struct BuildLoHa {
    rank: usize,
    out: usize,
    /// Inputs, with the kernel counted in unless there is a core.
    inner: usize,
    core: Option<[usize; 2]>,
    scale: f64,
    identity: bool,
    dropout: (f64, f64),
}

impl BuildLoHa {
    fn parameters(&self) -> usize {
        let core = self.core.map_or(0, |[height, width]| self.rank * self.rank * height * width);
        2 * (self.rank * (self.out + self.inner) + core)
    }
}

impl AdapterBuilder for BuildLoHa {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let a = if self.core.is_some() { [self.rank, self.out] } else { [self.out, self.rank] };
        let b = [self.rank, self.inner];
        let core = |init: &mut Init| self.core.map(|[h, w]| init.kaiming([self.rank, self.rank, h, w]));
        let (hada_w1_a, hada_w1_b, hada_w2_a) = (init.kaiming(a), init.kaiming(b), init.kaiming(a));
        let hada_w2_b = if self.identity { init.constant(b, 0.0) } else { init.kaiming(b) };
        AnyAdapter::new(LoHa {
            hada_w1_a,
            hada_w1_b,
            hada_w2_a,
            hada_w2_b,
            hada_t1: core(init),
            hada_t2: core(init),
            dropout: UpdateDropout::new(self.dropout.0, self.dropout.1, true),
            scale: self.scale,
        })
    }
}

/// LoHa's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct LoHaConfig {
    /// Rank of each of the two factors.
    pub r: usize,
    /// Numerator of the scale `alpha / r`.
    #[serde(serialize_with = "fields::integer_if_whole")]
    pub alpha: f64,
    /// Share of outputs whose update is dropped while training.
    pub rank_dropout: f64,
    /// How often the whole update is dropped while training.
    pub module_dropout: f64,
    /// Factor kernels of more than one element with a core.
    pub use_effective_conv2d: bool,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Start as the base; otherwise from random values.
    pub init_weights: bool,
    /// Numbers of the layers that list-style targets are restricted to.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    pub layers_pattern: Option<Names>,
    /// Ranks of layers that differ from `r`.
    #[serde(deserialize_with = "fields::null_is_default")]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of layers that differ from `alpha`.
    #[serde(deserialize_with = "fields::null_is_default")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for LoHaConfig {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            use_effective_conv2d: false,
            target_modules: None,
            exclude_modules: None,
            init_weights: true,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            modules_to_save: None,
            task_type: None,
            other: Map::new(),
        }
    }
}

impl LoHaConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "LoHa",
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

    fn row(&self, param: &Arc<ParamSpec>, rank: usize, alpha: f64) -> Result<PlanRow> {
        fields::check_positive("r", rank)?;
        let (out, inner, taps) = dense_update::shape(param, "LoHa")?;
        let core = dense_update::is_effective(self.use_effective_conv2d, &taps)
            .then(|| [taps[0], taps.get(1).copied().unwrap_or(1)]);
        let build = BuildLoHa {
            rank,
            out,
            inner: if core.is_some() { inner } else { inner * taps.iter().product::<usize>() },
            core,
            scale: alpha / rank as f64,
            identity: self.init_weights,
            dropout: (self.rank_dropout, self.module_dropout),
        };
        let label = format!("r={rank} α={alpha}");
        Ok(PlanRow { param: param.clone(), label, parameters: build.parameters(), build: Arc::new(build) })
    }
}

impl Tuner for LoHaConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "LoHa",
        peft_type: PEFT_TYPE,
        what: "the element-wise product of two low-rank matrices",
        paper: "arXiv 2108.06098",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for LoHaConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        fields::check_dropout("rank_dropout", self.rank_dropout)?;
        fields::check_dropout("module_dropout", self.module_dropout)?;
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern)?;
        let alphas = Patterns::new("alpha_pattern", &self.alpha_pattern)?;
        let mut plan = self.common().plan(
            spec,
            |_| None,
            |param| {
                let rank = ranks.get(&param.module)?.copied().unwrap_or(self.r);
                self.row(param, rank, alphas.get(&param.module)?.copied().unwrap_or(self.alpha))
            },
        )?;
        self.common().note_conv1d(&mut plan);
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}
