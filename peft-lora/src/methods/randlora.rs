//! RandLoRA: sums of random low-rank matrices of full rank together, of which only scales are trained. Source:
//! arXiv 2502.00987, `peft/tuners/randlora/layer.py` and `model.py`.
//!
//! All layers share a base `A`, `[r, 1, min]`, and bases `B`, `[max, bases, r]`, cut to each layer's size. A layer trains
//! `λ`, `[r, bases]`, and `γ`, `[bases, min]`, and its update is `B · (λ A γ)`, transposed where a layer has more inputs than
//! outputs. The reference lists the columns of `B` base by base and the rows of `λ A γ` rank by rank, and so pairs them
//! crosswise; its files mean that, so it is kept.
//!
//! The bases are in the file with `save_projection`. Without it they follow from `projection_prng_key`, and are drawn as
//! torch draws them: in bfloat16, unless `sparse`.

#![allow(non_snake_case)] // field names are the keys of the file

use std::sync::{Arc, OnceLock};

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
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

/// `peft_type` of RandLoRA.
pub const PEFT_TYPE: &str = "RANDLORA";

/// The scales of one layer, with the bases of all.
#[derive(Module, Debug)]
pub struct RandLora {
    /// `[r, bases]`
    pub randlora_lambda: Param<Tensor<2>>,
    /// `[bases, min(in, out)]`
    pub randlora_gamma: Param<Tensor<2>>,
    /// `[r, 1, min]`, of the largest layer. Not trained.
    pub randlora_A: Param<Tensor<3>>,
    /// `[max, bases, r]`, of the largest layer. Not trained.
    pub randlora_B: Param<Tensor<3>>,
    dropout: Dropout,
    scale: f64,
    saved: bool,
}

impl RandLora {
    /// `[max, bases · r]` and `[r · bases, min]`, for a layer of these sizes.
    fn factors(&self, (d_in, d_out): (usize, usize)) -> (Tensor<2>, Tensor<2>) {
        let (small, large) = (d_in.min(d_out), d_in.max(d_out));
        let [rank, bases] = self.randlora_lambda.dims();
        let b = self.randlora_B.val().narrow(0, 0, large).narrow(1, 0, bases).reshape([large, bases * rank]);
        let a = self.randlora_A.val().narrow(2, 0, small);
        let scaled = self.randlora_lambda.val().unsqueeze_dim::<3>(2) * a * self.randlora_gamma.val().unsqueeze::<3>();
        (b, scaled.reshape([rank * bases, small]))
    }
}

impl Adapter for RandLora {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let (d_in, d_out) = param.features();
        let (b, a) = self.factors((d_in, d_out));
        let product = b.matmul(a).mul_scalar(self.scale);
        let delta = if d_in <= d_out { product } else { product.transpose() };
        weight + param.out_in(delta).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let output = below.forward(input.clone());
        let (d_in, d_out) = below.param().features();
        let (b, a) = self.factors((d_in, d_out));
        let input = self.dropout.forward(input);
        let update =
            if d_in <= d_out { input.matmul(a.transpose()).matmul(b.transpose()) } else { input.matmul(b).matmul(a) };
        output + update.mul_scalar(self.scale)
    }

    fn role(&self, field: &str) -> ParamRole {
        match field {
            "randlora_A" | "randlora_B" if self.saved => {
                ParamRole::Shared { key: format!("base_model.{field}"), copies: true }
            }
            "randlora_A" | "randlora_B" => ParamRole::Derived,
            _ => ParamRole::Trained,
        }
    }
}

/// Configuration of RandLoRA, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct RandLoraConfig {
    /// Rank of each base; the smaller, the more of them.
    pub r: usize,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Seed of the bases.
    pub projection_prng_key: i64,
    /// Whether the bases are in the file.
    pub save_projection: bool,
    /// Bases of −1, 0 and 1: two thirds are zero.
    pub sparse: bool,
    /// Bases of −1, 0 and 1: all but `1 / √min` are zero.
    pub very_sparse: bool,
    /// Share of the adapter's input that is dropped while training.
    pub randlora_dropout: f64,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Numerator of the scale `randlora_alpha / r`.
    #[serde(serialize_with = "fields::integer_if_whole")]
    pub randlora_alpha: f64,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Start without an update; `false` starts at random.
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

impl Default for RandLoraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            target_modules: None,
            projection_prng_key: 0,
            save_projection: true,
            sparse: false,
            very_sparse: false,
            randlora_dropout: 0.0,
            fan_in_fan_out: false,
            randlora_alpha: 640.0,
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

impl RandLoraConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "RandLoRA",
            target_modules: &self.target_modules,
            exclude_modules: &None,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: self.bias,
            bias_only: "randlora_only",
            other: &self.other,
        }
    }

    fn row(&self, param: &Arc<ParamSpec>, bases: &Arc<Bases>) -> Result<PlanRow> {
        self.common().only_linear(param)?;
        let (d_in, d_out) = param.features();
        let small = d_in.min(d_out);
        let count = small.div_ceil(self.r);
        let build = BuildRandLora {
            rank: self.r,
            count,
            scale: self.randlora_alpha / self.r as f64,
            dropout: self.randlora_dropout,
            start: self.init_weights,
            saved: self.save_projection,
            bases: Arc::clone(bases),
        };
        let parameters = count * (self.r + small);
        let label = format!("r={} α={}", self.r, self.randlora_alpha);
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }
}

impl Tuner for RandLoraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "RandLoRA",
        peft_type: PEFT_TYPE,
        what: "scales of random low-rank matrices",
        paper: "arXiv 2502.00987",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for RandLoraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        fields::check_positive("r", self.r)?;
        fields::check_dropout("randlora_dropout", self.randlora_dropout)?;
        if !self.randlora_alpha.is_finite() {
            return Err(PeftError::config("randlora_alpha", "must be a finite number"));
        }
        let layers = self.common().spec(spec, |_| None)?;
        let widest = |side: fn((usize, usize)) -> usize| layers.0.iter().map(|it| side(it.features())).max();
        let (d_in, d_out) = (widest(|it| it.0).unwrap_or(0), widest(|it| it.1).unwrap_or(0));
        let bases = Arc::new(Bases {
            rank: self.r,
            small: d_in.min(d_out),
            large: d_in.max(d_out),
            key: self.projection_prng_key,
            sparsity: match (self.very_sparse, self.sparse) {
                (true, _) => Some((d_in.min(d_out) as f64).sqrt()),
                (false, true) => Some(3.0),
                (false, false) => None,
            },
            drawn: OnceLock::new(),
        });
        let mut plan = self.common().plan_of(spec, layers, |param| self.row(param, &bases))?;
        // The last base may be wider than what is left of the smaller side.
        let widths = bases.small.div_ceil(self.r) * self.r;
        plan.shared_elements = (bases.small * self.r).saturating_add(bases.large.saturating_mul(widths));
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

/// The bases that all layers of an adapter share, drawn when the first layer asks.
#[derive(Debug)]
struct Bases {
    rank: usize,
    small: usize,
    large: usize,
    key: i64,
    sparsity: Option<f64>,
    drawn: OnceLock<(Tensor<3>, Tensor<3>)>,
}

impl Bases {
    fn drawn(&self, device: &Device) -> (Tensor<3>, Tensor<3>) {
        let draw = || {
            let (a, b) = self.draw();
            let count = self.small.div_ceil(self.rank);
            let a = TensorData::new(a, [self.rank, 1, self.small]);
            (
                Tensor::from_data(a, device),
                Tensor::from_data(TensorData::new(b, [self.large, count, self.rank]), device),
            )
        };
        self.drawn.get_or_init(draw).clone()
    }

    /// `A`, then `B`, from one generator.
    fn draw(&self) -> (Vec<f32>, Vec<f32>) {
        let mut generator = TorchGenerator::new(self.key);
        let count = self.small.div_ceil(self.rank);
        if let Some(sparsity) = self.sparsity {
            let tail = (1.0 / (2.0 * sparsity)) as f32;
            let head = (1.0 - 1.0 / (2.0 * sparsity)) as f32;
            let sign = |it: f32| if it < tail { -1.0 } else { f32::from(u8::from(it > head)) };
            let mut signs = |length| {
                let values: Vec<f32> = generator.uniform(length, 0.0, 1.0).into_iter().map(sign).collect();
                let deviation = deviation(&values) as f32;
                values.into_iter().map(|it| it / deviation).collect::<Vec<f32>>()
            };
            let a = signs(self.rank * self.small);
            return (a, signs(self.large * count * self.rank));
        }
        // Kaiming's bound with a = √5 is 1 / √fan_in, and torch counts every axis but the first into fan_in.
        let mut kaiming = |length, fan_in: usize| {
            let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
            generator.uniform_bf16(length, -bound, bound)
        };
        let a = kaiming(self.rank * self.small, self.small);
        // Base by base, `[large, 1, r]` each, which lie side by side in `[large, bases, r]`.
        let mut b = vec![0.0; self.large * count * self.rank];
        for base in 0..count {
            let values = kaiming(self.large * self.rank, self.rank);
            for (row, values) in values.chunks(self.rank).enumerate() {
                let at = (row * count + base) * self.rank;
                b[at..at + self.rank].copy_from_slice(values);
            }
        }
        (unit_bf16(&a), unit_bf16(&b))
    }
}

/// Divided by the standard deviation, everything in bfloat16.
fn unit_bf16(values: &[f32]) -> Vec<f32> {
    let deviation = bf16::from_f64(deviation(values)).to_f32();
    values.iter().map(|it| bf16::from_f32(it / deviation).to_f32()).collect()
}

/// The standard deviation of a sample, as torch's `std`.
fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|it| f64::from(*it)).sum::<f64>() / count;
    (values.iter().map(|it| (f64::from(*it) - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}

#[derive(Debug, Clone)]
struct BuildRandLora {
    rank: usize,
    count: usize,
    scale: f64,
    dropout: f64,
    start: bool,
    saved: bool,
    bases: Arc<Bases>,
}

impl AdapterBuilder for BuildRandLora {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (d_in, d_out) = base.param().features();
        let small = d_in.min(d_out);
        let (lambda, gamma) = ([self.rank, self.count], [self.count, small]);
        let (randlora_lambda, randlora_gamma) = if self.start {
            (init.constant(lambda, 0.0), init.constant(gamma, 1.0 / self.count.max(small) as f32))
        } else {
            (init.normal(lambda, 1.0), init.constant(gamma, 1.0 / d_in.max(d_out) as f32))
        };
        let (a, b) = self.bases.drawn(init.device());
        AnyAdapter::new(RandLora {
            randlora_lambda,
            randlora_gamma,
            randlora_A: Param::initialized(ParamId::new(), a),
            randlora_B: Param::initialized(ParamId::new(), b),
            dropout: Dropout::new(self.dropout),
            scale: self.scale,
            saved: self.saved,
        })
    }
}
