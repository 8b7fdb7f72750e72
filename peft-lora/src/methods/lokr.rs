//! LoKr: the update is a Kronecker product. Source: arXiv 2309.14859 and `peft/tuners/lokr`.
//!
//! `ΔW = α / r · w1 ⊗ w2`, where either factor may itself be a product of low rank. As with LoHa, `Gpt2Linear` is adapted
//! here although the reference does not.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use indexmap::IndexMap;
use peft_core::config::fields::{self, Bias};
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Indices, Init, MethodInfo, ModelSpec, Names, ParamSpec, Patterns,
    PeftConfig, PeftError, Plan, PlanRow, Result, Tuner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::Common;
use crate::methods::dense_update::{self, UpdateDropout};

/// `peft_type` of LoKr.
pub const PEFT_TYPE: &str = "LOKR";

/// The update of one layer whose weight has `K` axes: `out = a · b`, `in = c · d`.
#[derive(Module, Debug)]
pub struct LoKr<const K: usize> {
    /// `[a, c]`
    pub lokr_w1: Option<Param<Tensor<2>>>,
    /// `[a, rank]`
    pub lokr_w1_a: Option<Param<Tensor<2>>>,
    /// `[rank, c]`
    pub lokr_w1_b: Option<Param<Tensor<2>>>,
    /// `[b, d, kernel…]`
    pub lokr_w2: Option<Param<Tensor<K>>>,
    /// `[b, rank]`; in the effective form `[rank, b]`.
    pub lokr_w2_a: Option<Param<Tensor<2>>>,
    /// `[rank, d · kernel]`; in the effective form `[rank, d]`.
    pub lokr_w2_b: Option<Param<Tensor<2>>>,
    /// The core of the effective form, `[rank, rank, kernel…]`; a kernel of one axis ends in a 1.
    pub lokr_t2: Option<Param<Tensor<4>>>,
    dropout: UpdateDropout,
    scale: f64,
}

fn value<const D: usize>(param: &Option<Param<Tensor<D>>>) -> Tensor<D> {
    param.as_ref().expect("a factor is whole or has both its parts").val()
}

impl<const K: usize> LoKr<K> {
    /// `[out, in · kernel]`
    fn update(&self) -> Tensor<2> {
        let first = match &self.lokr_w1 {
            Some(first) => first.val(),
            None => value(&self.lokr_w1_a).matmul(value(&self.lokr_w1_b)),
        };
        let [a, c] = first.dims();
        let product = match (&self.lokr_w2, &self.lokr_t2) {
            // The reference pads `w1` to the axes of `w2` in front for a kernel of one axis, not behind as for one of
            // two. That permutes the update; its files mean it so.
            (Some(second), _) if K == 3 => {
                let dims = second.shape();
                let [b, d, taps] = [dims[0], dims[1], dims[2]];
                let second = second.val().reshape([b, 1, d, 1, taps]);
                (first.reshape([1, a, 1, c, 1]) * second).reshape([a * b, c * d * taps])
            }
            (Some(second), _) => {
                let b = second.shape()[0];
                let width = second.shape().num_elements() / b;
                kronecker(first, second.val().reshape([b, width]))
            }
            (None, Some(core)) => {
                let second = dense_update::from_core(core.val(), value(&self.lokr_w2_a), value(&self.lokr_w2_b));
                kronecker(first, second)
            }
            (None, None) => kronecker(first, value(&self.lokr_w2_a).matmul(value(&self.lokr_w2_b))),
        };
        self.dropout.forward(product.mul_scalar(self.scale))
    }
}

/// `[a, c]` and `[b, d]` to `[a · b, c · d]`.
fn kronecker(first: Tensor<2>, second: Tensor<2>) -> Tensor<2> {
    let ([a, c], [b, d]) = (first.dims(), second.dims());
    (first.reshape([a, 1, c, 1]) * second.reshape([1, b, 1, d])).reshape([a * b, c * d])
}

/// Two factors of a number, the smaller first unless `limit` divides it: the reference's `factorization`.
fn factors(number: usize, limit: Option<usize>) -> (usize, usize) {
    if let Some(limit) = limit.filter(|it| number.is_multiple_of(*it)) {
        return (limit, number / limit);
    }
    let limit = limit.unwrap_or(number);
    let (mut m, mut n) = (1, number);
    let length = m + n;
    while m < n {
        let Some(next) = (m + 1..=number).find(|it| number.is_multiple_of(*it)) else { break };
        if next + number / next > length || next > limit {
            break;
        }
        (m, n) = (next, number / next);
    }
    (m.min(n), m.max(n))
}

impl<const K: usize> Adapter for LoKr<K> {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        dense_update::add(weight, self.update(), param)
    }
}

/// How the factors start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InitWeights {
    /// The first is zero.
    First,
    /// The second is zero, as LyCORIS does it.
    Second,
    Random,
}

/// Builds [`LoKr`].
#[derive(Debug, Clone)]
struct BuildLoKr {
    rank: usize,
    /// `[a, c]`
    first: [usize; 2],
    /// `[b, d]`
    second: [usize; 2],
    taps: Vec<usize>,
    first_is_whole: bool,
    second_is_whole: bool,
    effective: bool,
    scale: f64,
    start: InitWeights,
    dropout: (f64, f64, bool),
}

impl BuildLoKr {
    fn parameters(&self) -> usize {
        let ([a, c], [b, d], rank) = (self.first, self.second, self.rank);
        let taps: usize = self.taps.iter().product();
        let first = if self.first_is_whole { a * c } else { rank * (a + c) };
        let second = match (self.second_is_whole, self.effective) {
            (true, _) => b * d * taps,
            (false, true) => rank * (b + d) + rank * rank * taps,
            (false, false) => rank * (b + d * taps),
        };
        first + second
    }

    fn typed<const K: usize>(&self, init: &mut Init) -> AnyAdapter {
        let draw = |init: &mut Init, shape: [usize; 2], zero: bool| {
            Some(if zero { init.constant(shape, 0.0) } else { init.kaiming(shape) })
        };
        let ([a, c], [b, d], rank) = (self.first, self.second, self.rank);
        let (first_is_zero, second_is_zero) = (self.start == InitWeights::First, self.start == InitWeights::Second);
        let mut adapter = LoKr::<K> {
            lokr_w1: None,
            lokr_w1_a: None,
            lokr_w1_b: None,
            lokr_w2: None,
            lokr_w2_a: None,
            lokr_w2_b: None,
            lokr_t2: None,
            dropout: UpdateDropout::new(self.dropout.0, self.dropout.1, self.dropout.2),
            scale: self.scale,
        };
        if self.first_is_whole {
            adapter.lokr_w1 = draw(init, [a, c], first_is_zero);
        } else {
            adapter.lokr_w1_a = draw(init, [a, rank], first_is_zero);
            adapter.lokr_w1_b = draw(init, [rank, c], false);
        }
        if self.second_is_whole {
            let shape: [usize; K] =
                std::array::from_fn(|axis| if axis < 2 { self.second[axis] } else { self.taps[axis - 2] });
            adapter.lokr_w2 = Some(if second_is_zero { init.constant(shape, 0.0) } else { init.kaiming(shape) });
        } else if self.effective {
            adapter.lokr_w2_a = draw(init, [rank, b], false);
            adapter.lokr_w2_b = draw(init, [rank, d], second_is_zero);
            let (height, width) = (self.taps[0], self.taps.get(1).copied().unwrap_or(1));
            adapter.lokr_t2 = Some(init.kaiming([rank, rank, height, width]));
        } else {
            adapter.lokr_w2_a = draw(init, [b, rank], false);
            adapter.lokr_w2_b = draw(init, [rank, d * self.taps.iter().product::<usize>()], second_is_zero);
        }
        AnyAdapter::new(adapter)
    }
}

impl AdapterBuilder for BuildLoKr {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        match self.taps.len() {
            0 => self.typed::<2>(init),
            1 => self.typed::<3>(init),
            _ => self.typed::<4>(init),
        }
    }
}

/// LoKr's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct LoKrConfig {
    /// Rank of factors that are decomposed.
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
    /// Decompose the first factor too.
    pub decompose_both: bool,
    /// What the dimensions are divided by; −1 looks for factors near the root.
    pub decompose_factor: i64,
    /// Divide by the share of outputs that `rank_dropout` keeps.
    pub rank_dropout_scale: bool,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// `true`, `false`, or `"lycoris"`: which factor starts as zero.
    pub init_weights: Value,
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

impl Default for LoKrConfig {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            use_effective_conv2d: false,
            decompose_both: false,
            decompose_factor: -1,
            rank_dropout_scale: false,
            target_modules: None,
            exclude_modules: None,
            init_weights: Value::Bool(true),
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

impl LoKrConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn common(&self) -> Common<'_> {
        Common {
            method: "LoKr",
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
            Value::Bool(true) | Value::Null => Ok(InitWeights::First),
            Value::Bool(false) => Ok(InitWeights::Random),
            Value::String(name) if name == "lycoris" => Ok(InitWeights::Second),
            other => {
                Err(PeftError::unsupported(format!("init_weights = {other}"), "true, false and lycoris are known"))
            }
        }
    }

    fn factors(&self, number: usize) -> Result<(usize, usize)> {
        match self.decompose_factor {
            -1 => Ok(factors(number, None)),
            limit if limit > 0 => Ok(factors(number, Some(limit as usize))),
            other => Err(PeftError::config("decompose_factor", format!("is {other}, take −1 or a number above 0"))),
        }
    }

    fn row(&self, param: &Arc<ParamSpec>, rank: usize, alpha: f64) -> Result<PlanRow> {
        fields::check_positive("r", rank)?;
        let (out, inner, taps) = dense_update::shape(param, "LoKr")?;
        let ((a, b), (c, d)) = (self.factors(out)?, self.factors(inner)?);
        let build = BuildLoKr {
            rank,
            first: [a, c],
            second: [b, d],
            first_is_whole: !(self.decompose_both && 2 * rank < a.max(c)),
            second_is_whole: 2 * rank >= b.max(d),
            effective: dense_update::is_effective(self.use_effective_conv2d, &taps),
            taps,
            scale: alpha / rank as f64,
            start: self.start()?,
            dropout: (self.rank_dropout, self.module_dropout, self.rank_dropout_scale),
        };
        let label = format!("r={rank} α={alpha} {a}·{b} × {c}·{d}");
        Ok(PlanRow { param: param.clone(), label, parameters: build.parameters(), build: Arc::new(build) })
    }
}

impl Tuner for LoKrConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "LoKr",
        peft_type: PEFT_TYPE,
        what: "a Kronecker product",
        paper: "arXiv 2309.14859",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for LoKrConfig {
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

#[cfg(test)]
mod tests {
    use super::factors;

    // Values of the reference's `factorization`.
    #[test]
    fn numbers_factor_as_in_the_reference() {
        let cases = [
            (127, [(1, 127), (1, 127), (1, 127)]),
            (128, [(8, 16), (4, 32), (8, 16)]),
            (250, [(10, 25), (2, 125), (5, 50)]),
            (360, [(18, 20), (4, 90), (8, 45)]),
            (1024, [(32, 32), (4, 256), (8, 128)]),
        ];
        for (number, expected) in cases {
            assert_eq!([None, Some(4), Some(8)].map(|limit| factors(number, limit)), expected, "{number}");
        }
        assert_eq!(factors(128, Some(16)), (16, 8));
    }
}
