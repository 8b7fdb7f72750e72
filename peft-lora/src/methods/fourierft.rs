//! FourierFT: trains a few frequencies of the update's spectrum. Source: arXiv 2405.03003,
//! `peft/tuners/fourierft/layer.py`.
//!
//! `ΔW = scaling · Re(F⁻¹(S))`, the inverse discrete Fourier transform of a matrix that is zero but for `n_frequency`
//! trained numbers. Their places follow from `random_loc_seed` and are not in the file, so they are drawn as torch draws
//! them.
//!
//! No transform is computed. A frequency `(u, v)` of weight `c` contributes
//! `c / (out · in) · cos(2π (u i / out + v j / in))` to entry `(i, j)`, and the cosine of a sum splits into two products. So
//! `ΔW = L diag(c, c) Rᵀ` with `L = [cos, −sin]`, `[out, 2 n]`, and `R = [cos, sin]`, `[in, 2 n]`, which layers of one shape
//! share.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use indexmap::IndexMap;
use peft_core::config::fields::{self, Bias};
use peft_core::forward::LinearBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamSpec, Patterns,
    PeftConfig, PeftError, Plan, PlanRow, Result, TorchGenerator, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;

/// `peft_type` of FourierFT.
pub const PEFT_TYPE: &str = "FOURIERFT";

/// The spectrum of one layer's update.
#[derive(Module, Debug)]
pub struct FourierFt {
    /// `[n]`
    pub fourierft_spectrum: Param<Tensor<1>>,
    /// `[out, 2 n]`
    left: Tensor<2>,
    /// `[in, 2 n]`
    right: Tensor<2>,
    scale: f64,
}

impl FourierFt {
    /// `(c, c) · scaling / (out · in)`, `[1, 2 n]`
    fn coefficients(&self) -> Tensor<2> {
        let spectrum = self.fourierft_spectrum.val();
        Tensor::cat(vec![spectrum.clone(), spectrum], 0).mul_scalar(self.scale).unsqueeze()
    }

    /// `[out, in]`
    fn delta(&self) -> Tensor<2> {
        (self.left.clone() * self.coefficients()).matmul(self.right.clone().transpose())
    }
}

impl Adapter for FourierFt {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        weight + param.out_in(self.delta()).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let output = below.forward(input.clone());
        let (rows, [d_out, waves], d_in) = (input.dims()[0], self.left.dims(), self.right.dims()[0]);
        // For few rows the factors are cheaper than the update that they make.
        if rows * waves * (d_in + d_out) <= d_out * d_in * (waves + rows) {
            let low = input.matmul(self.right.clone()) * self.coefficients();
            output + low.matmul(self.left.clone().transpose())
        } else {
            output + below.apply(input, below.param().out_in(self.delta()), None)
        }
    }
}

/// Configuration of FourierFT, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct FourierFtConfig {
    /// Number of trained frequencies of a layer.
    pub n_frequency: usize,
    /// What the update is multiplied by.
    pub scaling: f64,
    /// Seed of the places of the frequencies.
    pub random_loc_seed: Option<i64>,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Numbers of the layers that list-style targets are restricted to.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    pub layers_pattern: Option<Names>,
    /// Numbers of frequencies of layers that differ from `n_frequency`.
    #[serde(deserialize_with = "fields::null_is_default")]
    pub n_frequency_pattern: IndexMap<String, usize>,
    /// Start from zeros. By default the spectrum starts at random, and a fresh adapter changes the model.
    pub init_weights: bool,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for FourierFtConfig {
    fn default() -> Self {
        Self {
            n_frequency: 1000,
            scaling: 150.0,
            random_loc_seed: Some(777),
            fan_in_fan_out: false,
            target_modules: None,
            exclude_modules: None,
            bias: Bias::None,
            modules_to_save: None,
            layers_to_transform: None,
            layers_pattern: None,
            n_frequency_pattern: IndexMap::new(),
            init_weights: false,
            task_type: None,
            other: Map::new(),
        }
    }
}

/// Where the defaults differ from LoRA's.
fn defaults(model_type: &str) -> Option<&'static [&'static str]> {
    matches!(model_type, "gpt2" | "gpt_bigcode").then_some(&["mlp.c_proj"])
}

impl FourierFtConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "FourierFT",
            target_modules: &self.target_modules,
            exclude_modules: &self.exclude_modules,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: self.bias,
            bias_only: "fourier_only",
            other: &self.other,
        }
    }

    fn row(&self, param: &Arc<ParamSpec>, count: usize, seed: i64, waves: &Arc<Waves>) -> Result<PlanRow> {
        self.common().only_linear(param)?;
        if count == 0 || count > param.len() {
            let reason = format!("is {count} for `{}`, expected is 1 to {}", param.module, param.len());
            return Err(PeftError::config("n_frequency", reason));
        }
        let build =
            BuildFourier { count, seed, scaling: self.scaling, zero: self.init_weights, waves: Arc::clone(waves) };
        Ok(PlanRow { param: param.clone(), label: format!("n={count}"), parameters: count, build: Arc::new(build) })
    }
}

impl Tuner for FourierFtConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "FourierFT",
        peft_type: PEFT_TYPE,
        what: "a few frequencies of the update's spectrum",
        paper: "arXiv 2405.03003",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for FourierFtConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        let Some(seed) = self.random_loc_seed else {
            return Err(PeftError::config(
                "random_loc_seed",
                "must be given: the places of the frequencies are not saved",
            ));
        };
        if !self.scaling.is_finite() {
            return Err(PeftError::config("scaling", "must be a finite number"));
        }
        // Unlike `rank_pattern`: the reference wants a dot before the key, and looks a whole path up if no key matched.
        let counts =
            Patterns::spelled("n_frequency_pattern", &self.n_frequency_pattern, |key| format!(r"\A.*\.{key}\z"))?;
        let waves = Arc::new(Waves::default());
        let whole = |path: &str| self.n_frequency_pattern.get(path);
        let count = |param: &ParamSpec| -> Result<usize> {
            let given = counts.get(&param.module)?.or_else(|| whole(&param.module));
            Ok(given.copied().unwrap_or(self.n_frequency))
        };
        let mut plan = self.common().plan(spec, defaults, |param| self.row(param, count(param)?, seed, &waves))?;
        let adapted: Vec<String> = plan.rows.iter().map(|it| it.param.module.clone()).collect();
        let unused = counts.unused(&self.n_frequency_pattern, adapted.iter().map(String::as_str))?;
        let unused = unused.iter().filter(|key| !adapted.contains(key));
        plan.notes.extend(unused.map(|key| format!("n_frequency_pattern `{key}` matches no adapted layer")));
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

type Pair = (Tensor<2>, Tensor<2>);

/// Cosines and sines of the chosen frequencies, by shape and number.
#[derive(Debug, Default)]
struct Waves {
    known: Mutex<HashMap<(usize, usize, usize), Pair>>,
}

impl Waves {
    fn of(&self, (d_in, d_out): (usize, usize), count: usize, seed: i64, device: &Device) -> Pair {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = known.entry((d_in, d_out, count)).or_insert_with(|| {
            let places: Vec<usize> = TorchGenerator::new(seed).permutation(d_in * d_out)[..count].to_vec();
            let table = |width: usize, frequency: &dyn Fn(usize) -> usize, sign: f64| {
                let mut values = Vec::with_capacity(width * 2 * count);
                for at in 0..width {
                    let angle = |place: &usize| TAU * ((frequency(*place) * at) % width) as f64 / width as f64;
                    values.extend(places.iter().map(|it| angle(it).cos() as f32));
                    values.extend(places.iter().map(|it| (sign * angle(it).sin()) as f32));
                }
                Tensor::<2>::from_data(TensorData::new(values, [width, 2 * count]), device)
            };
            (table(d_out, &|it| it / d_in, -1.0), table(d_in, &|it| it % d_in, 1.0))
        });
        pair.clone()
    }
}

#[derive(Debug, Clone)]
struct BuildFourier {
    count: usize,
    seed: i64,
    scaling: f64,
    zero: bool,
    waves: Arc<Waves>,
}

impl AdapterBuilder for BuildFourier {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (d_in, d_out) = base.param().features();
        let device = init.device().clone().without_autodiff();
        let (left, right) = self.waves.of((d_in, d_out), self.count, self.seed, &device);
        let fourierft_spectrum =
            if self.zero { init.constant([self.count], 0.0) } else { init.normal([self.count], 1.0) };
        AnyAdapter::new(FourierFt { fourierft_spectrum, left, right, scale: self.scaling / (d_in * d_out) as f64 })
    }
}
