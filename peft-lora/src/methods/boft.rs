//! BOFT: rotates the input by a product of sparse orthogonal matrices, and scales the output. Source: arXiv 2311.06243,
//! `peft/tuners/boft/layer.py`.
//!
//! `y = (x B_m … B₁) Wᵀ · s + b`, where `B_i = P_i blockdiag(R) P_iᵀ` and `P_i` sorts the inputs as a butterfly does. The
//! reference has more than one factor only with its CUDA extension, and drops the others in silence on a CPU; a file with
//! several factors is read here as that extension reads it.

#![allow(non_snake_case)] // field names are the keys of the file

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::config::fields::{self, Bias};
use peft_core::forward::LinearBelow;
use peft_core::nn::Dropout;
use peft_core::ops;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamKind, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;
use crate::methods::rotation;

/// `peft_type` of BOFT.
pub const PEFT_TYPE: &str = "BOFT";

/// The butterfly of one layer.
#[derive(Module, Debug)]
pub struct BoftLayer {
    /// `[factors, blocks, b, b]`, of which the skew-symmetric part counts.
    pub boft_R: Param<Tensor<4>>,
    /// Scale of each output, `[out, 1]`; `[1, out]` on a convolution.
    pub boft_s: Param<Tensor<2>>,
    /// Order of the inputs in each factor, `[factors, in]`.
    orders: Tensor<2, Int>,
    /// The same backwards.
    back: Tensor<2, Int>,
    dropout: Dropout,
}

impl BoftLayer {
    /// The rotations, `[blocks, b, b]` for each factor.
    fn factors(&self) -> Vec<Tensor<3>> {
        let raw = self.boft_R.val();
        let [factors, blocks, size, _] = raw.dims();
        let raw = raw.reshape([factors * blocks, size, size]);
        let skew = (raw.clone() - raw.swap_dims(1, 2)).mul_scalar(0.5);
        let rotations = rotation::cayley(skew);
        let rotations = if self.dropout.is_active() { self.drop(rotations, factors, blocks) } else { rotations };
        (0..factors).map(|it| rotations.clone().narrow(0, it * blocks, blocks)).collect()
    }

    /// Replaces a share of the blocks of one factor, both drawn at random, by the identity.
    fn drop(&self, rotations: Tensor<3>, factors: usize, blocks: usize) -> Tensor<3> {
        let [count, size, _] = rotations.dims();
        let device = rotations.device();
        let draws = ops::drawn(blocks + 1, &device);
        let factor = ((draws[blocks] * factors as f32) as usize).min(factors - 1);
        let mut order: Vec<usize> = (0..blocks).collect();
        order.sort_by(|a, b| draws[*a].total_cmp(&draws[*b]));
        let mut mask = vec![0f32; count];
        for block in order.iter().take((self.dropout.probability() * blocks as f64) as usize) {
            mask[factor * blocks + block] = 1.0;
        }
        let mask = Tensor::<1>::from_data(TensorData::new(mask, [count]), &device).reshape([count, 1, 1]);
        let identity = Tensor::<2>::eye(size, &device).unsqueeze::<3>();
        rotations * (mask.clone().neg().add_scalar(1.0)) + identity * mask
    }

    fn order(orders: &Tensor<2, Int>, factor: usize) -> Tensor<1, Int> {
        let width = orders.dims()[1];
        orders.clone().slice([factor..factor + 1, 0..width]).reshape([width])
    }

    /// `x · B` or, with transposed blocks, `x · Bᵀ`.
    fn turn(&self, x: Tensor<2>, factor: usize, blocks: Tensor<3>) -> Tensor<2> {
        if self.orders.dims()[0] == 1 {
            return rotation::turn(x, blocks); // a single factor leaves the inputs in their order
        }
        let sorted = x.select(1, Self::order(&self.back, factor));
        rotation::turn(sorted, blocks).select(1, Self::order(&self.orders, factor))
    }

    fn scale(&self) -> Tensor<1> {
        let scale = self.boft_s.val();
        let [rows, columns] = scale.dims();
        scale.reshape([rows * columns])
    }
}

impl Adapter for BoftLayer {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let (d_in, d_out) = param.features();
        let is_conv = param.kind == ParamKind::Conv;
        let weight =
            if is_conv { weight.reshape([d_out, d_in]) } else { param.out_in(weight.reshape([dims[0], dims[1]])) };
        let turned = self
            .factors()
            .into_iter()
            .enumerate()
            .fold(weight, |weight, (factor, blocks)| self.turn(weight, factor, blocks.swap_dims(1, 2)));
        let scaled = turned * self.scale().unsqueeze_dim(1);
        if is_conv { scaled.reshape(dims) } else { param.out_in(scaled).reshape(dims) }
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let factors = self.factors().into_iter().enumerate().rev();
        let turned = factors.fold(input, |x, (factor, blocks)| self.turn(x, factor, blocks));
        let output = below.forward(turned);
        let scale = self.scale().unsqueeze::<2>();
        match below.bias() {
            Some(bias) => (output - bias.clone().unsqueeze()) * scale + bias.unsqueeze(),
            None => output * scale,
        }
    }
}

/// Configuration of BOFT, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct BoftConfig {
    /// Size of a block; 0 leaves it to `boft_block_num`.
    pub boft_block_size: usize,
    /// Number of blocks; 0 leaves it to `boft_block_size`.
    pub boft_block_num: usize,
    /// Number of sparse factors.
    pub boft_n_butterfly_factor: usize,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Share of the blocks of one factor that are the identity in a training step.
    pub boft_dropout: f64,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Start without rotation; `false` starts at random.
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

impl Default for BoftConfig {
    fn default() -> Self {
        Self {
            boft_block_size: 4,
            boft_block_num: 0,
            boft_n_butterfly_factor: 1,
            target_modules: None,
            exclude_modules: None,
            boft_dropout: 0.0,
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

impl BoftConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "BOFT",
            target_modules: &self.target_modules,
            exclude_modules: &self.exclude_modules,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: self.bias,
            bias_only: "boft_only",
            other: &self.other,
        }
    }

    fn row(&self, param: &Arc<ParamSpec>) -> Result<PlanRow> {
        if param.kind == ParamKind::Embedding {
            let reason = format!("names `{}`, an embedding; BOFT adapts linear layers and convolutions", param.module);
            return Err(PeftError::config("target_modules", reason));
        }
        let (width, d_out) = param.features();
        let factors = self.boft_n_butterfly_factor;
        let (field, given) = if self.boft_block_size == 0 {
            ("boft_block_num", self.boft_block_num)
        } else {
            ("boft_block_size", self.boft_block_size)
        };
        if !width.is_multiple_of(given) {
            let reason = format!("is {given}, which does not divide the {width} inputs of `{}`", param.module);
            return Err(PeftError::config(field, reason));
        }
        let (size, blocks) = if self.boft_block_size == 0 { (width / given, given) } else { (given, width / given) };
        let halvings = 1usize.checked_shl(factors as u32 - 1).unwrap_or(usize::MAX);
        if factors > 1 && !(size.is_multiple_of(2) && blocks.is_multiple_of(halvings)) {
            let reason = format!(
                "is {factors}: `{}` then needs blocks of an even size, and a multiple of {halvings} of them, not \
                 {blocks} of {size}",
                param.module
            );
            return Err(PeftError::config("boft_n_butterfly_factor", reason));
        }
        let parameters = factors * blocks * size * size + d_out;
        let label = format!("{factors} × {blocks} blocks of {size}");
        let build = BuildBoft { factors, blocks, size, dropout: self.boft_dropout, identity: self.init_weights };
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }
}

impl Tuner for BoftConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "BOFT",
        peft_type: PEFT_TYPE,
        what: "a butterfly of rotations of the input",
        paper: "arXiv 2311.06243",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for BoftConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    /// Files of before 0.13 hold the permutations.
    fn passes_over(&self, key: &str) -> bool {
        key.ends_with(".boft_P")
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        if (self.boft_block_size == 0) == (self.boft_block_num == 0) {
            let (size, num) = (self.boft_block_size, self.boft_block_num);
            let reason = format!("and `boft_block_num` are {size} and {num}: give one, and 0 for the other");
            return Err(PeftError::config("boft_block_size", reason));
        }
        fields::check_positive("boft_n_butterfly_factor", self.boft_n_butterfly_factor)?;
        fields::check_dropout("boft_dropout", self.boft_dropout)?;
        let mut plan = self.common().plan(spec, |_| None, |param| self.row(param))?;
        self.common().note_conv1d(&mut plan);
        if self.boft_n_butterfly_factor > 1 {
            let note = "boft_n_butterfly_factor above 1: PEFT loads this adapter only with its CUDA extension";
            plan.notes.push(note.into());
        }
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

/// The order of `width` inputs in a factor whose butterflies span `span` of them: blocks of `half` inputs, those at even
/// places first, then those at odd ones.
fn butterfly(width: usize, span: usize, half: usize) -> Vec<usize> {
    let steps = span / half;
    let within = (0..steps).step_by(2).chain((1..steps).step_by(2)).flat_map(|step| step * half..(step + 1) * half);
    let within: Vec<usize> = within.collect();
    (0..width / span).flat_map(|at| within.iter().map(move |it| at * span + it)).collect()
}

#[derive(Debug, Clone)]
struct BuildBoft {
    factors: usize,
    blocks: usize,
    size: usize,
    dropout: f64,
    identity: bool,
}

impl AdapterBuilder for BuildBoft {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (width, d_out) = base.param().features();
        let shape = [self.factors, self.blocks, self.size, self.size];
        let scales = if base.param().kind == ParamKind::Conv { [1, d_out] } else { [d_out, 1] };
        let (boft_R, boft_s) = if self.identity {
            (init.constant(shape, 0.0), init.constant(scales, 1.0))
        } else {
            let moved = init.normal(scales, 0.1).val().detach().add_scalar(1.0);
            (init.normal(shape, 0.1), init.given(moved))
        };
        let mut orders = Vec::new();
        let mut back = Vec::new();
        for factor in 0..self.factors {
            let order: Vec<usize> = if self.factors == 1 {
                (0..width).collect()
            } else {
                butterfly(width, self.size << factor, self.size / 2)
            };
            let mut inverse = vec![0i64; width];
            for (at, it) in order.iter().enumerate() {
                inverse[*it] = at as i64;
            }
            orders.extend(order.into_iter().map(|it| it as i64));
            back.extend(inverse);
        }
        let table = |values: Vec<i64>| {
            Tensor::<2, Int>::from_data(TensorData::new(values, [self.factors, width]), init.device())
        };
        let (orders, back) = (table(orders), table(back));
        AnyAdapter::new(BoftLayer { boft_R, boft_s, orders, back, dropout: Dropout::new(self.dropout) })
    }
}
