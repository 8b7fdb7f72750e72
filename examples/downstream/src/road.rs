//! RoAd: outputs of a linear layer, rotated and scaled in pairs. A method of one's own, in one file.
//!
//! Paper: Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability",
//! arXiv 2409.00119. Formulas, names, shapes and defaults follow `peft/tuners/road/layer.py` (`_prepare_cols`,
//! `_apply_road`, `_get_delta_weight`) and `peft/tuners/road/config.py` of PEFT 0.19.1, read from its wheel.
//!
//! A layer computes `y = W x + b`; the adapter makes `y' = c1 ∘ y + c2 ∘ rotate(y)` of it, `c1 = α cos θ` and
//! `c2 = α sin θ`. `rotate` works within groups of features: the halves `(a, b)` of a group become `(−b, a)`. This is
//! linear in `y`, so it folds into `W` and `b` alike.

use std::sync::Arc;

use peft::core::burn;
use peft::core::burn::module::{Module, Param};
use peft::core::burn::tensor::Tensor;
use peft::core::config::fields::{self, SavedModules};
use peft::core::forward::LinearBelow;
use peft::core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, BiasAdapter, Init, Layout, MethodInfo, ModelSpec, Names,
    ParamKind, ParamSpec, PeftConfig, PeftError, Plan, PlanRow, Result, Selection, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `peft_type` of RoAd.
pub const PEFT_TYPE: &str = "ROAD";

/// How many angles and scales a layer has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variant {
    /// One angle and one scale for both features of a pair.
    #[default]
    #[serde(rename = "road_1")]
    Pair,
    /// One of each for every feature.
    #[serde(rename = "road_2")]
    Feature,
    /// Two of each for every feature: one for its own column, one for its partner's.
    #[serde(rename = "road_4")]
    Entry,
}

impl Variant {
    /// Angles of a layer with `d_out` outputs, and as many scales.
    fn len(self, d_out: usize) -> usize {
        match self {
            Self::Pair => d_out / 2,
            Self::Feature => d_out,
            Self::Entry => 2 * d_out,
        }
    }
}

/// The rotation of one layer's outputs.
#[derive(Module, Debug)]
pub struct Road {
    /// Angles, `[out / 2]`, `[out]` or `[2 · out]`.
    pub road_theta: Param<Tensor<1>>,
    /// Scales, as many.
    pub road_alpha: Param<Tensor<1>>,
    #[module(skip)]
    variant: Variant,
    group_size: usize,
}

impl Road {
    /// What a feature and what its partner is multiplied by, each `[groups, 2, group / 2]`.
    fn columns(&self) -> (Tensor<3>, Tensor<3>) {
        let (theta, alpha) = (self.road_theta.val(), self.road_alpha.val());
        let half = self.group_size / 2;
        let count = theta.dims()[0];
        match self.variant {
            Variant::Pair | Variant::Feature => {
                // A pair that shares its angle has one row for both halves of a group.
                let rows = if self.variant == Variant::Pair { 1 } else { 2 };
                let shape = [count / (rows * half), rows, half];
                let (theta, alpha) = (theta.reshape(shape), alpha.reshape(shape));
                (alpha.clone() * theta.clone().cos(), alpha * theta.sin())
            }
            Variant::Entry => {
                // In every group the first half of the numbers is for the feature itself, the second for its partner.
                let shape = [count / (4 * half), 4, half];
                let (theta, alpha) = (theta.reshape(shape), alpha.reshape(shape));
                let part = |it: &Tensor<3>, from: usize| it.clone().narrow(1, from, 2);
                (part(&alpha, 0) * part(&theta, 0).cos(), part(&alpha, 2) * part(&theta, 2).sin())
            }
        }
    }

    /// The rotation of every row.
    ///
    /// # Shapes
    /// - outputs, output: `[rows, out]`
    fn turn(&self, outputs: Tensor<2>) -> Tensor<2> {
        let [rows, d_out] = outputs.dims();
        let half = self.group_size / 2;
        let grouped = outputs.reshape([rows, d_out / self.group_size, 2, half]);
        let (first, second) = (grouped.clone().narrow(2, 0, 1), grouped.clone().narrow(2, 1, 1));
        let turned = Tensor::cat(vec![second.neg(), first], 2);
        let (own, partner) = self.columns();
        // Both broadcast over rows, and over the halves of a group if pairs share their numbers.
        (grouped * own.unsqueeze::<4>() + turned * partner.unsqueeze::<4>()).reshape([rows, d_out])
    }
}

impl Adapter for Road {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        // `out_in` is its own inverse; what is turned are the outputs of every input, `[in, out]`.
        let weight = param.out_in(weight.reshape([dims[0], dims[1]]));
        param.out_in(self.turn(weight.transpose()).transpose()).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        self.turn(below.forward(input))
    }

    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        Some(self)
    }
}

impl BiasAdapter for Road {
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        let d_out = bias.dims()[0];
        self.turn(bias.unsqueeze::<2>()).reshape([d_out])
    }

    /// Nothing, turned, is nothing.
    fn needs_bias(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct BuildRoad {
    variant: Variant,
    group_size: usize,
    /// Start without a rotation; otherwise at random.
    identity: bool,
}

impl AdapterBuilder for BuildRoad {
    fn build(&self, base: BaseTensor<'_>, init: &mut Init) -> AnyAdapter {
        let (_, d_out) = base.param().features();
        let shape = [self.variant.len(d_out)];
        let (road_theta, road_alpha) = if self.identity {
            (init.constant(shape, 0.0), init.constant(shape, 1.0))
        } else {
            let theta = init.normal(shape, 0.5);
            let alpha = init.normal(shape, 0.5).val().add_scalar(1.0);
            (theta, init.given(alpha))
        };
        AnyAdapter::new(Road { road_theta, road_alpha, variant: self.variant, group_size: self.group_size })
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        let shape = vec![self.variant.len(param.features().1)];
        Some(["road_theta", "road_alpha"].map(|it| (param.file_key(it), shape.clone())).into())
    }
}

/// RoAd's configuration, field for field. Defaults are the reference's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct RoadConfig {
    /// How many angles and scales a layer has.
    pub variant: Variant,
    /// Features of a group, within which the first half is paired with the second. It divides the outputs of every layer.
    pub group_size: usize,
    /// Start without a rotation; `false` starts at random.
    pub init_weights: bool,
    /// Layers to adapt.
    pub target_modules: Option<Names>,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for RoadConfig {
    fn default() -> Self {
        Self {
            variant: Variant::Pair,
            group_size: 64,
            init_weights: true,
            target_modules: None,
            modules_to_save: None,
            task_type: None,
            other: Map::new(),
        }
    }
}

impl RoadConfig {
    fn saved(&self) -> SavedModules {
        SavedModules::new(self.modules_to_save.as_ref(), self.task_type.as_deref())
    }

    fn row(&self, param: &Arc<ParamSpec>) -> Result<PlanRow> {
        if !matches!(param.kind, ParamKind::Linear(_)) {
            let reason = format!("names `{}`, {}; RoAd adapts linear layers only", param.module, param.kind);
            return Err(PeftError::config("target_modules", reason));
        }
        let (_, d_out) = param.features();
        if !d_out.is_multiple_of(self.group_size) {
            let reason = format!(
                "is {}, which does not divide the {d_out} outputs of `{}`: take a smaller one",
                self.group_size, param.module
            );
            return Err(PeftError::config("group_size", reason));
        }
        let build = BuildRoad { variant: self.variant, group_size: self.group_size, identity: self.init_weights };
        Ok(PlanRow {
            param: param.clone(),
            label: format!("groups of {}", self.group_size),
            parameters: 2 * self.variant.len(d_out),
            build: Arc::new(build),
        })
    }
}

impl PeftConfig for RoadConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        if self.group_size == 0 || !self.group_size.is_multiple_of(2) {
            let reason = format!("is {}, but groups are halved: give an even number above 0", self.group_size);
            return Err(PeftError::config("group_size", reason));
        }
        let saved = self.saved();
        let selection = Selection {
            target_modules: self.target_modules.clone(),
            modules_to_save: saved.names(),
            ..Selection::default()
        };
        let selected = selection.resolve(spec, spec.model_type.as_deref().and_then(default_targets))?;
        let mut plan = Plan::new("RoAd", spec);
        plan.rows = selected.params.iter().map(|it| self.row(it)).collect::<Result<_>>()?;
        // transformers' `Conv1D`. `burn::nn::Linear` lies the same way, but a file holds it as torch's `Linear`.
        let is_conv1d = |it: &ParamSpec| it.kind == ParamKind::Linear(Layout::InOut) && !it.is_transposed_on_disk();
        if plan.rows.iter().any(|it| is_conv1d(&it.param)) {
            plan.not_in_reference.push("PEFT has no RoAd for Conv1D layers".into());
        }
        saved.add_to(&mut plan, spec)?;
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        fields::config_json(self, &self.saved())
    }
}

impl Tuner for RoadConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "RoAd",
        peft_type: PEFT_TYPE,
        what: "rotations of the outputs, pair by pair",
        paper: "arXiv 2409.00119",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }
}

/// Layers to adapt where none are named: those of LoRA (`TRANSFORMERS_MODELS_TO_ROAD_TARGET_MODULES_MAPPING` is a copy of
/// its table), for the model types that this program is likely to meet, and ALBERT, which the reference leaves out.
fn default_targets(model_type: &str) -> Option<&'static [&'static str]> {
    Some(match model_type {
        "albert" | "bert" | "roberta" => &["query", "value"],
        "gpt2" => &["c_attn"],
        "gemma2" | "gemma3_text" | "llama" | "mistral" | "qwen2" | "qwen3" => &["q_proj", "v_proj"],
        _ => return None,
    })
}
