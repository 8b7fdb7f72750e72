//! OFT: rotates the input of a layer, block by block. Source: arXiv 2306.07280 and 2506.19847,
//! `peft/tuners/oft/layer.py`.
//!
//! `y = x R Wᵀ + b` with `R = blockdiag(R₁, R₂, …)`, each the Cayley transform of a skew-symmetric matrix. On an
//! embedding the rows are rotated, on a convolution the flattened patches.
//!
//! Where the reference disagrees with itself, ours is its merged form. Its live forward of a convolution folds rotated
//! patches back into an image, which adds up where patches overlap and ignores stride and padding: only 1 × 1 kernels
//! come out right. Two adapters on one layer act in one order live and in the other merged.

#![allow(non_snake_case)] // field names are the keys of the file

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::config::fields::{self, Bias};
use peft_core::forward::{EmbeddingBelow, LinearBelow};
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamKind, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;
use crate::methods::rotation;

/// `peft_type` of OFT.
pub const PEFT_TYPE: &str = "OFT";

/// The rotations of one layer.
#[derive(Module, Debug)]
pub struct Rotation {
    /// What stands above the diagonals, `[blocks, b (b − 1) / 2]`; one row serves all blocks with `block_share`.
    pub weight: Param<Tensor<2>>,
    block_size: usize,
    blocks: usize,
    /// COFT's bound.
    eps: Option<f64>,
    /// Terms of Neumann's series, or the exact transform.
    terms: Option<usize>,
}

impl Rotation {
    /// `[blocks, b, b]`
    fn blocks(&self) -> Tensor<3> {
        let skew = rotation::skew(self.bounded(), self.block_size);
        let rotations = match self.terms {
            Some(terms) => rotation::cayley_neumann(skew, terms),
            None => rotation::cayley(skew),
        };
        let own = rotations.dims()[0];
        if own == 1 && self.blocks > 1 { rotations.repeat_dim(0, self.blocks) } else { rotations }
    }

    /// COFT keeps every skew matrix within `eps / √blocks` of zero.
    ///
    /// The reference overwrites the parameter with its projection in every forward. Here it is projected when it is
    /// read, and the gradient passes straight through, as it does there.
    fn bounded(&self) -> Tensor<2> {
        let weight = self.weight.val();
        let Some(eps) = self.eps else { return weight };
        let own = weight.clone().detach();
        // A skew matrix has every number twice.
        let norm = (own.clone() * own.clone()).sum_dim(1).mul_scalar(2.0).sqrt();
        let bound = eps / (own.dims()[0] as f64).sqrt();
        let factor = norm.clamp_min(bound).recip().mul_scalar(bound);
        weight - own.clone() + own * factor
    }

    /// `x · R`
    fn turn(&self, x: Tensor<2>) -> Tensor<2> {
        rotation::turn(x, self.blocks())
    }

    /// `x · Rᵀ`
    fn turn_back(&self, x: Tensor<2>) -> Tensor<2> {
        rotation::turn(x, self.blocks().swap_dims(1, 2))
    }
}

/// OFT on a linear layer or a convolution.
#[derive(Module, Debug)]
pub struct OftLayer {
    /// The rotations of the input.
    pub oft_R: Rotation,
}

impl Adapter for OftLayer {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        if param.kind == ParamKind::Conv {
            let flat = [dims[0], dims[1..].iter().product()];
            return self.oft_R.turn_back(weight.reshape(flat)).reshape(dims);
        }
        let weight = param.out_in(weight.reshape([dims[0], dims[1]]));
        param.out_in(self.oft_R.turn_back(weight)).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        below.forward(self.oft_R.turn(input))
    }
}

/// OFT on a table of vectors.
#[derive(Module, Debug)]
pub struct OftEmbedding {
    /// The rotations of the rows.
    pub oft_embedding_R: Rotation,
}

impl Adapter for OftEmbedding {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        self.oft_embedding_R.turn(weight.reshape([dims[0], dims[1]])).reshape(dims)
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let rows = below.forward(ids);
        let [batch, seq, d_model] = rows.dims();
        self.oft_embedding_R.turn(rows.reshape([batch * seq, d_model])).reshape([batch, seq, d_model])
    }
}

/// Configuration of OFT, field for field.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct OftConfig {
    /// Number of blocks; 0 leaves it to `oft_block_size`.
    pub r: usize,
    /// Size of a block; 0 leaves it to `r`. Moved to the nearest divisor of the layer's width.
    pub oft_block_size: usize,
    /// Read and written, but without effect, as in the reference.
    pub module_dropout: f64,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Start without rotation; `false` starts at random.
    pub init_weights: bool,
    /// Numbers of the layers that list-style targets are restricted to.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    pub layers_pattern: Option<Names>,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Keep rotations near the identity (COFT).
    pub coft: bool,
    /// How near.
    pub eps: f64,
    /// One rotation for all blocks of a layer.
    pub block_share: bool,
    /// Neumann's series in place of the inverse.
    pub use_cayley_neumann: bool,
    /// Its terms.
    pub num_cayley_neumann_terms: usize,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for OftConfig {
    fn default() -> Self {
        Self {
            r: 0,
            oft_block_size: 32,
            module_dropout: 0.0,
            target_modules: None,
            fan_in_fan_out: false,
            bias: Bias::None,
            exclude_modules: None,
            init_weights: true,
            layers_to_transform: None,
            layers_pattern: None,
            modules_to_save: None,
            coft: false,
            eps: 6e-5,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
            task_type: None,
            other: Map::new(),
        }
    }
}

/// The divisor of `width` nearest to `wanted`; the smaller of two.
fn nearest_divisor(width: usize, wanted: usize) -> usize {
    if wanted >= width {
        return width;
    }
    let above = (wanted..=width).find(|it| width.is_multiple_of(*it)).unwrap_or(width);
    let below = (1..=wanted).rev().find(|it| width.is_multiple_of(*it)).unwrap_or(1);
    if wanted - below <= above - wanted { below } else { above }
}

impl OftConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        // Every saved adapter is in inference mode; a template that somebody wrote by hand may say as little as `r`.
        let is_saved = json.contains_key("peft_version") || json.get("inference_mode") == Some(&Value::Bool(true));
        if is_saved && !json.contains_key("oft_block_size") {
            let reason = "is missing: adapters of PEFT before 0.15 have another form, which nothing newer reads; merge it \
                          with PEFT 0.13, or train it again";
            return Err(PeftError::config("oft_block_size", reason));
        }
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "OFT",
            target_modules: &self.target_modules,
            exclude_modules: &self.exclude_modules,
            layers_to_transform: &self.layers_to_transform,
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
            task_type: &self.task_type,
            bias: self.bias,
            bias_only: "oft_only",
            other: &self.other,
        }
    }

    fn row(&self, param: &Arc<ParamSpec>) -> Result<PlanRow> {
        let (d_in, d_out) = param.features();
        let width = if param.kind == ParamKind::Embedding { d_out } else { d_in };
        let (blocks, size) = if self.r == 0 {
            let size = nearest_divisor(width, self.oft_block_size);
            (width / size, size)
        } else {
            let blocks = nearest_divisor(width, self.r);
            (blocks, width / blocks)
        };
        let own = if self.block_share { 1 } else { blocks };
        let parameters = own * size * (size - 1) / 2;
        let label = format!("{blocks} blocks of {size}{}", if self.block_share { ", shared" } else { "" });
        let build = BuildOft {
            blocks,
            own,
            size,
            eps: self.coft.then_some(self.eps),
            terms: self.use_cayley_neumann.then_some(self.num_cayley_neumann_terms),
            identity: self.init_weights,
        };
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }

    /// The series changed in 0.18; the reference warns about older files.
    fn is_of_old_series(&self) -> bool {
        let version = self.other.get("peft_version").and_then(Value::as_str).unwrap_or("");
        let mut numbers = version.split('.').map(|it| it.parse::<usize>().unwrap_or(0));
        let pair = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        self.use_cayley_neumann && !version.is_empty() && pair < (0, 18)
    }
}

impl Tuner for OftConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "OFT",
        peft_type: PEFT_TYPE,
        what: "rotations of the input, block by block",
        paper: "arXiv 2306.07280",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for OftConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        if (self.r == 0) == (self.oft_block_size == 0) {
            let reason = format!(
                "and `oft_block_size` are {} and {}: give one, and 0 for the other. (A file without `oft_block_size` that is not \
                 a template is of PEFT before 0.15, which nothing newer reads)",
                self.r, self.oft_block_size
            );
            return Err(PeftError::config("r", reason));
        }
        let mut plan = self.common().plan(spec, |_| None, |param| self.row(param))?;
        self.common().note_conv1d(&mut plan);
        if self.module_dropout > 0.0 {
            plan.notes.push("module_dropout has no effect on OFT, as in PEFT".into());
        }
        if self.is_of_old_series() {
            plan.notes.push("PEFT before 0.18 computed the Cayley-Neumann series otherwise; the numbers differ".into());
        }
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.common().to_json(self)
    }
}

#[derive(Debug, Clone)]
struct BuildOft {
    blocks: usize,
    own: usize,
    size: usize,
    eps: Option<f64>,
    terms: Option<usize>,
    identity: bool,
}

impl AdapterBuilder for BuildOft {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let shape = [self.own, self.size * (self.size - 1) / 2];
        let weight = if self.identity { init.constant(shape, 0.0) } else { init.normal(shape, 0.1) };
        let rotation =
            Rotation { weight, block_size: self.size, blocks: self.blocks, eps: self.eps, terms: self.terms };
        match base.param().kind {
            ParamKind::Embedding => AnyAdapter::new(OftEmbedding { oft_embedding_R: rotation }),
            _ => AnyAdapter::new(OftLayer { oft_R: rotation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_move_to_the_nearest_divisor() {
        let cases = [(32, 32, 32), (48, 32, 24), (768, 100, 96), (37, 8, 1), (32, 50, 32), (36, 5, 4), (30, 8, 6)];
        for (width, wanted, given) in cases {
            assert_eq!(nearest_divisor(width, wanted), given, "{wanted} of {width}");
        }
    }
}
