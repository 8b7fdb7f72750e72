//! MiSS, and its block-wise form Bat: shards of the input share one small matrix. Source: arXiv 2409.15371,
//! `peft/tuners/miss/layer.py`.
//!
//! The input is cut into shards of length `r`; the shards are summed and multiplied by `D`, `[r, out]`. So
//! `ΔW = [Dᵀ Dᵀ …]`, cut off at the last column. With `"mini"`, `D` repeats itself over the outputs. `"bat"` multiplies
//! every `r × r` block of the weight: `W + W_b D_b + D_b`.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::config::fields::{self, Bias};
use peft_core::forward::LinearBelow;
use peft_core::nn::Dropout;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;

/// `peft_type` of MiSS.
pub const PEFT_TYPE: &str = "MISS";

/// Shards that share one matrix.
#[derive(Module, Debug)]
pub struct Miss {
    /// `[r, out]`, or `[r, mini_r]`
    pub miss_block: Param<Tensor<2>>,
    dropout: Dropout,
    repeat: usize,
}

impl Miss {
    /// `[r, out]`
    fn shared(&self) -> Tensor<2> {
        self.miss_block.val().repeat_dim(1, self.repeat)
    }
}

impl Adapter for Miss {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let (d_in, _) = param.features();
        let shared = self.shared();
        let shards = d_in.div_ceil(shared.dims()[0]);
        let delta = shared.repeat_dim(0, shards).narrow(0, 0, d_in).transpose();
        param.out_in(param.out_in(weight.reshape([dims[0], dims[1]])) + delta).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let output = below.forward(input.clone());
        let shared = self.shared();
        let ([rows, d_in], r) = (input.dims(), shared.dims()[0]);
        let shards = d_in.div_ceil(r);
        let mut dropped = self.dropout.forward(input);
        if shards * r > d_in {
            let padding = Tensor::zeros([rows, shards * r - d_in], &dropped.device());
            dropped = Tensor::cat(vec![dropped, padding], 1);
        }
        let summed = dropped.reshape([rows, shards, r]).sum_dim(1).reshape([rows, r]);
        output + summed.matmul(shared)
    }
}

/// A matrix for every `r × r` block of the weight.
#[derive(Module, Debug)]
pub struct Bat {
    /// `[out / r, r, r]`
    pub miss_block: Param<Tensor<3>>,
}

impl Adapter for Bat {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let (d_in, d_out) = param.features();
        let block = self.miss_block.val();
        let r = block.dims()[2];
        let weight = param.out_in(weight.reshape([dims[0], dims[1]]));
        // [out / r, r, in / r, r] to [out / r, in / r · r, r]: one product for every row of blocks.
        let blocks = weight.clone().reshape([d_out / r, r, d_in / r, r]).swap_dims(1, 2);
        let product = blocks.reshape([d_out / r, d_in, r]).matmul(block.clone());
        let moved = product.reshape([d_out / r, d_in / r, r, r]) + block.unsqueeze_dim(1);
        let delta = moved.swap_dims(1, 2).reshape([d_out, d_in]);
        param.out_in(weight + delta).reshape(dims)
    }
}

/// Configuration of MiSS, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct MissConfig {
    /// Length of a shard.
    pub r: usize,
    /// Share of the adapter's input that is dropped while training. Bat has none.
    pub miss_dropout: f64,
    /// Columns of `D` with `init_weights = "mini"`; they repeat over the outputs.
    pub mini_r: usize,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// `true`, `false`, `"bat"` or `"mini"`: the form of the update, and with `false` a random start.
    pub init_weights: Value,
    /// Numbers of the layers that list-style targets are restricted to.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    pub layers_pattern: Option<Names>,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for MissConfig {
    fn default() -> Self {
        Self {
            r: 64,
            miss_dropout: 0.0,
            mini_r: 1,
            target_modules: None,
            exclude_modules: None,
            init_weights: true.into(),
            layers_to_transform: None,
            layers_pattern: None,
            bias: Bias::None,
            modules_to_save: None,
            task_type: None,
            other: Map::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Shared,
    Random,
    Mini,
    Bat,
}

impl MissConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "MiSS",
            target_modules: &self.target_modules,
            exclude_modules: &self.exclude_modules,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: self.bias,
            bias_only: "MiSS_only",
            other: &self.other,
        }
    }

    fn form(&self) -> Result<Form> {
        match &self.init_weights {
            Value::Bool(true) => Ok(Form::Shared),
            Value::Bool(false) | Value::Null => Ok(Form::Random),
            Value::String(name) if name == "mini" => Ok(Form::Mini),
            Value::String(name) if name == "bat" => Ok(Form::Bat),
            other => {
                Err(PeftError::unsupported(format!("init_weights = {other}"), "true, false, bat and mini are known"))
            }
        }
    }

    fn row(&self, param: &Arc<ParamSpec>) -> Result<PlanRow> {
        self.common().only_linear(param)?;
        let (form, r, (d_in, d_out)) = (self.form()?, self.r, param.features());
        if r > d_in {
            let reason = format!("is {r}, more than the {d_in} inputs of `{}`", param.module);
            return Err(PeftError::config("r", reason));
        }
        if form == Form::Bat && !(d_in.is_multiple_of(r) && d_out.is_multiple_of(r)) {
            let reason =
                format!("is {r}, but `bat` cuts `{}` ({d_out} × {d_in}) into whole r × r blocks", param.module);
            return Err(PeftError::config("r", reason));
        }
        if form == Form::Mini && !d_out.is_multiple_of(self.mini_r) {
            let reason = format!("is {}, which does not divide the {d_out} outputs of `{}`", self.mini_r, param.module);
            return Err(PeftError::config("mini_r", reason));
        }
        let (label, parameters) = match form {
            Form::Shared | Form::Random => (format!("r={r}"), r * d_out),
            Form::Mini => (format!("r={r} mini_r={}", self.mini_r), r * self.mini_r),
            Form::Bat => (format!("r={r} bat"), r * d_out),
        };
        let build = BuildMiss { r, mini_r: self.mini_r, dropout: self.miss_dropout, form };
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }
}

impl Tuner for MissConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "MiSS",
        peft_type: PEFT_TYPE,
        what: "one small matrix that shards of the input share",
        paper: "arXiv 2409.15371",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for MissConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        fields::check_positive("r", self.r)?;
        fields::check_positive("mini_r", self.mini_r)?;
        fields::check_dropout("miss_dropout", self.miss_dropout)?;
        let mut plan = self.common().plan(spec, |_| None, |param| self.row(param))?;
        self.common().note_conv1d(&mut plan);
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

#[derive(Debug, Clone)]
struct BuildMiss {
    r: usize,
    mini_r: usize,
    dropout: f64,
    form: Form,
}

impl AdapterBuilder for BuildMiss {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (_, d_out) = base.param().features();
        let (miss_block, repeat) = match self.form {
            Form::Bat => {
                return AnyAdapter::new(Bat { miss_block: init.constant([d_out / self.r, self.r, self.r], 0.0) });
            }
            Form::Shared => (init.constant([self.r, d_out], 0.0), 1),
            Form::Random => (init.kaiming([self.r, d_out]), 1),
            Form::Mini => (init.constant([self.r, self.mini_r], 0.0), d_out / self.mini_r),
        };
        AnyAdapter::new(Miss { miss_block, dropout: Dropout::new(self.dropout), repeat })
    }
}
