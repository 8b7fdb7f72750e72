//! LoRA on parameters instead of layers, `target_parameters`: `W + s · B A`, for every expert of a stack.
//! Source: `ParamWrapper` in `peft/tuners/lora/layer.py`, `_inject_parameters` in `peft/tuners/tuners_utils.py`.
//!
//! What the two factors map from and to goes by the axes alone, whatever the layer makes of them: a matrix `[out, in]`, a
//! stack `[experts, out, in]`, or `[experts, in, out]` in a module that [`ModelSpec::with_transposed`] names. So the factors
//! of a `Gpt2Linear`, whose weight lies as `[in, out]`, are exchanged here, and those of an embedding are not `lora_embedding_*`.
//! A kernel of `Conv1d` is a stack too.
//!
//! What differs from the reference:
//! - Several adapters of one model need not name the same parameters, since here none wraps another. PEFT
//!   loads each of them alone.
//! - A field that matches nothing while the other one does is a warning there. Here a new adapter is refused, as with any
//!   name that matches nothing, and a folder is read.
//! - Layers below a module whose parameter is named get other keys there, and named parameters below it fail; both are
//!   refused.

#![allow(non_snake_case)] // field names are the keys of the file

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use peft_core::forward::{EmbeddingBelow, LinearBelow};
use peft_core::nn::Dropout;
use peft_core::ops::LowRank;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, Layout, ModelSpec, ParamKind, ParamSpec, PeftError, Plan,
    PlanRow, Result, is_suffix,
};

use crate::lora::config::LoraConfig;
use crate::lora::init_weights::InitWeights;
use crate::lora::layers::Layer;
use crate::lora::linear::Factor;

const FIELD: &str = "target_parameters";

/// How the reference names what a wrapper wraps.
const WRAPPED: &str = "base_layer.";

/// The low-rank update of a matrix, or of every matrix of a stack.
#[derive(Module, Debug)]
pub struct LoraParameter {
    /// `[experts · rank, in]`, expert by expert.
    pub lora_A: Factor<2>,
    /// `[out, rank · experts]`, the experts side by side.
    pub lora_B: Factor<2>,
    experts: usize,
    transposed: bool,
    wrappers: usize,
    dropout: Dropout,
    scale: f64,
}

impl LoraParameter {
    /// `s · B A` of every expert, `[experts, out, in]`.
    fn delta(&self) -> Tensor<3> {
        let (a, b) = (self.lora_A.weight.val(), self.lora_B.weight.val());
        let ([rows, d_in], [d_out, _]) = (a.dims(), b.dims());
        let rank = rows / self.experts;
        let a = a.reshape([self.experts, rank, d_in]);
        let b = b.reshape([d_out, rank, self.experts]).permute([2, 0, 1]);
        b.matmul(a).mul_scalar(self.scale)
    }
}

impl Adapter for LoraParameter {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        let delta = self.delta();
        let delta = if self.transposed { delta.swap_dims(1, 2) } else { delta };
        let dims = weight.dims();
        weight + delta.reshape(dims)
    }

    /// Only a `Gpt2Linear` comes here: other linear layers have [`LoraLinear`](crate::LoraLinear). As a map from its input its
    /// update is `A` after `B`.
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let (a, b) = (self.lora_A.weight.val(), self.lora_B.weight.val());
        let (a, b) = match below.layout() {
            Layout::InOut => (b.transpose(), a.transpose()),
            Layout::OutIn => (a, b),
        };
        below.with_low_rank(input, LowRank { a, b, scale: self.scale, dropout: self.dropout.rate() })
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let rows = below.forward(ids.clone());
        let [batch, seq, d_model] = rows.dims();
        let low = below.look_up(ids, self.lora_B.weight.val());
        let rank = low.dims()[2];
        let update = low.reshape([batch * seq, rank]).matmul(self.lora_A.weight.val());
        rows + update.mul_scalar(self.scale).reshape([batch, seq, d_model])
    }

    fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        format!("{}.{}{field}", param.module, WRAPPED.repeat(self.wrappers))
    }
}

/// Builds [`LoraParameter`].
#[derive(Debug, Clone)]
struct BuildParameter {
    rank: usize,
    scale: f64,
    start: InitWeights,
    axes: Axes,
    wrappers: usize,
}

/// How a parameter is read.
#[derive(Debug, Clone, Copy)]
struct Axes {
    experts: usize,
    d_in: usize,
    d_out: usize,
    transposed: bool,
}

impl Axes {
    fn of(param: &ParamSpec, spec: &ModelSpec) -> Result<Self> {
        match param.shape[..] {
            [d_out, d_in] => Ok(Self { experts: 1, d_in, d_out, transposed: false }),
            [experts, d_in, d_out] if spec.is_transposed(param) => Ok(Self { experts, d_in, d_out, transposed: true }),
            [experts, d_out, d_in] => Ok(Self { experts, d_in, d_out, transposed: false }),
            _ => {
                let axes = param.shape.len();
                let reason =
                    format!("names `{}`, which has {axes} axes; parameters of 2 and 3 axes are known", param.path());
                Err(PeftError::config(FIELD, reason))
            }
        }
    }

    /// Shapes of `A` and `B`.
    fn factors(&self, rank: usize) -> ([usize; 2], [usize; 2]) {
        ([rank * self.experts, self.d_in], [self.d_out, rank * self.experts])
    }
}

impl AdapterBuilder for BuildParameter {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (a, b) = self.axes.factors(self.rank);
        let lora_A = match self.start {
            InitWeights::Gaussian => init.normal(a, 1.0 / self.rank as f64),
            _ => init.kaiming(a),
        };
        let lora_B = match self.start {
            InitWeights::Random => init.kaiming(b),
            _ => init.constant(b, 0.0),
        };
        AnyAdapter::new(LoraParameter {
            lora_A: Factor::new(lora_A),
            lora_B: Factor::new(lora_B),
            experts: self.axes.experts,
            transposed: self.axes.transposed,
            wrappers: self.wrappers,
            dropout: Dropout::new(0.0),
            scale: self.scale,
        })
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        let (a, b) = self.axes.factors(self.rank);
        let key = |factor: &str| param.file_key(&format!("{}{factor}.weight", WRAPPED.repeat(self.wrappers)));
        Some(vec![(key("lora_A"), a.to_vec()), (key("lora_B"), b.to_vec())])
    }
}

impl LoraConfig {
    /// The names of parameters to adapt.
    pub(crate) fn parameter_names(&self) -> &[String] {
        self.target_parameters.as_deref().unwrap_or_default()
    }

    /// Refuses what does not go with parameters, for there is no input that it could act on.
    pub(crate) fn check_parameters(&self) -> Result<()> {
        if self.parameter_names().is_empty() {
            return Ok(());
        }
        let refused = |field: &str, reason: &str| {
            Err(PeftError::config(field, format!("cannot be combined with `{FIELD}`{reason}; switch it off")))
        };
        if self.lora_dropout != 0.0 {
            return refused("lora_dropout", ", which change the weight before any input is there");
        }
        for (field, is_on) in
            [("fan_in_fan_out", self.fan_in_fan_out), ("lora_bias", self.lora_bias), ("use_dora", self.use_dora)]
        {
            if is_on {
                return refused(field, "");
            }
        }
        match self.start()? {
            InitWeights::Eva | InitWeights::Corda => {
                refused("init_lora_weights", " where it starts from data, which layers have")
            }
            _ => Ok(()),
        }
    }

    /// The parameters that are meant, with the names that mean none.
    pub(crate) fn parameters(&self, spec: &ModelSpec) -> Result<(Vec<Layer>, Vec<String>)> {
        let names = self.parameter_names();
        let scales = self.scales()?;
        let mut found = Vec::new();
        for param in spec.iter().filter(|it| it.kind != ParamKind::Buffer) {
            if names.iter().any(|name| is_suffix(&param.path(), name)) {
                if param.module.is_empty() {
                    let reason = format!(
                        "names `{}`, which lies in no module, so that its file would have no name for it",
                        param.name
                    );
                    return Err(PeftError::config(FIELD, reason));
                }
                found.push(self.layer(&scales, param, &param.path())?);
            }
        }
        let is_hit = |name: &String| found.iter().any(|it: &Layer| is_suffix(&it.param.path(), name));
        let unmatched = names.iter().filter(|it| !is_hit(it)).cloned().collect();
        Ok((found, unmatched))
    }

    /// The row of a plan for one of these parameters.
    pub(crate) fn parameter_row(&self, layer: &Layer, all: &[Layer], spec: &ModelSpec) -> Result<PlanRow> {
        let Layer { param, rank, alpha, scale } = layer;
        // The same update as on the layer: its factored form and its starts serve here too.
        if param.kind == ParamKind::Linear(Layout::OutIn) || param.is_transposed_on_disk() {
            return self.row(layer);
        }
        let axes = Axes::of(param, spec)?;
        let start = self.start()?;
        if !matches!(start, InitWeights::Kaiming | InitWeights::Gaussian | InitWeights::Random) {
            let reason = format!(
                "is {} on `{}`; bare parameters start from true, false or gaussian",
                self.init_lora_weights,
                param.path()
            );
            return Err(PeftError::config("init_lora_weights", reason));
        }
        // The wrapper of a module's last parameter is the outermost.
        let later = all.iter().rev().take_while(|it| it.param.path() != param.path());
        let wrappers = later.filter(|it| it.param.module == param.module).count();
        let (a, b) = axes.factors(*rank);
        let experts = if param.shape.len() == 3 { format!(" ×{}", axes.experts) } else { String::new() };
        let label = format!("r={rank} α={alpha}{experts}{}", if self.use_rslora { " rslora" } else { "" });
        let build = BuildParameter { rank: *rank, scale: *scale, start, axes, wrappers };
        let parameters = a.iter().product::<usize>() + b.iter().product::<usize>();
        Ok(PlanRow { param: param.clone(), label, parameters, build: Arc::new(build) })
    }

    /// Refuses a plan that does more to the modules of these parameters.
    pub(crate) fn check_around(&self, parameters: &[Layer], plan: &Plan) -> Result<()> {
        for Layer { param, .. } in parameters {
            let mut same = plan.rows.iter().filter(|it| it.param.path() == param.path());
            if same.nth(1).is_some() {
                let reason = format!(
                    "names `{}`, and so do `target_modules` (defaults of the model included: an empty list prevents \
                     them), `modules_to_save` or `trainable_token_indices`",
                    param.path()
                );
                return Err(PeftError::config(FIELD, reason));
            }
            let inside = format!("{}.", param.module);
            if let Some(row) = plan.rows.iter().find(|it| it.param.module.starts_with(&inside)) {
                let reason = format!(
                    "names `{}`, so that nothing inside its module can be adapted: `{}`",
                    param.path(),
                    row.param.path()
                );
                return Err(PeftError::config(FIELD, reason));
            }
            if self.saved_modules().contains(&param.module) {
                let reason = format!("names `{}`, which `modules_to_save` saves whole", param.path());
                return Err(PeftError::config(FIELD, reason));
            }
        }
        Ok(())
    }
}
