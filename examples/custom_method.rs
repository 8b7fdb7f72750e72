//! Dear newcomer,
//!
//! in this file we invent a fine-tuning method, and every other thing that a method needs is there already: finding the
//! layers, training, the adapter folder, loading, merging. Nothing below is known to the library beforehand.
//!
//! The method is called *row scale*. A linear layer computes `y = W x + b`. We freeze `W` and `b` and learn, for every
//! output, how much louder it should be and by how much it should be moved: `y' = (1 + scale) · y + shift`. That is
//! two numbers per output, and since both start at zero, an untrained adapter changes nothing.
//!
//! You write three things: the numbers (an `Adapter`), how they start (a `AdapterBuilder`), and the configuration (a `PeftConfig`).
//!
//! ```text
//! cargo run -p peft-examples --example custom_method
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::forward::LinearBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, BiasAdapter, Init, Layout, MethodRegistry, ModelSpec, Names,
    ParamKind, ParamSpec, PeftConfig, PeftError, PeftModel, Plan, PlanRow, Result, Selection, nn,
};
use peft_models::auto::{AutoCausalLm, load_causal_lm};
use peft_models::{CausalLm, ModelInput};
use peft_tasks::tasks::loss;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

// 1. The numbers of one adapted layer. It is a Burn module, so optimizers find its parameters, and its field names are
//    the keys of the file: `base_model.model.transformer.h.0.attn.c_attn.row_scale`.

#[derive(Module, Debug)]
struct RowScale {
    /// `[out]`
    row_scale: Param<Tensor<1>>,
    /// `[out]`
    row_shift: Param<Tensor<1>>,
}

impl Adapter for RowScale {
    /// The definition: `diag(1 + scale) · W`. Merging uses it, and so does any layer that knows nothing of adapters.
    ///
    /// Some layers store `W` as `[out, in]` and others as `[in, out]`; the site says which axis is the output.
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let out_axis = if param.kind == ParamKind::Linear(Layout::OutIn) { 0 } else { D - 1 };
        let mut shape = [1; D];
        shape[out_axis] = weight.dims()[out_axis];
        weight * self.row_scale.val().add_scalar(1.0).reshape(shape)
    }

    /// The scale reaches the bias too, for it acts on the whole output.
    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        Some(self)
    }

    /// The same thing, cheaper: scale the output of the layer below instead of building a second `W`. You may leave
    /// this out. Then the library composes the dense weight, which is right as well but takes memory and time.
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let scale = self.row_scale.val().add_scalar(1.0).unsqueeze::<2>();
        below.forward(input) * scale + self.row_shift.val().unsqueeze::<2>()
    }
}

impl BiasAdapter for RowScale {
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        bias * self.row_scale.val().add_scalar(1.0) + self.row_shift.val()
    }
}

// 2. How an adapter starts. `init` draws values that depend on the seed and the layer's path alone, never on the order
//    in which layers are built. A method that starts from the frozen weight finds it in `base.matrix()`.

#[derive(Debug)]
struct BuildRowScale;

impl AdapterBuilder for BuildRowScale {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (_, d_out) = base.param().features();
        AnyAdapter::new(RowScale { row_scale: init.constant([d_out], 0.0), row_shift: init.constant([d_out], 0.0) })
    }
}

// 3. The configuration: `adapter_config.json`, and what it does to a model. A plan is data. Everything that can be wrong
//    is said here, before a single tensor is touched.

const PEFT_TYPE: &str = "ROW_SCALE";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RowScaleConfig {
    target_modules: Names,
}

impl RowScaleConfig {
    fn parse(json: Map<String, Value>) -> Result<Self> {
        serde_json::from_value(Value::Object(json)).map_err(|error| PeftError::Invalid(error.to_string()))
    }

    fn row(param: &Arc<ParamSpec>, spec: &ModelSpec) -> Result<PlanRow> {
        if !matches!(param.kind, ParamKind::Linear(_)) || !spec.has_bias(param) {
            let reason = format!("names `{}`, but row scale needs a linear layer with a bias", param.module);
            return Err(PeftError::config("target_modules", reason));
        }
        let (_, d_out) = param.features();
        let (label, build) = ("scale + shift".to_owned(), Arc::new(BuildRowScale));
        Ok(PlanRow { param: param.clone(), label, parameters: 2 * d_out, build })
    }
}

impl PeftConfig for RowScaleConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        let selection = Selection { target_modules: Some(self.target_modules.clone()), ..Selection::default() };
        let selected = selection.resolve(spec, None)?;
        let mut plan = Plan::new("row scale", spec);
        plan.rows = selected.spec.iter().map(|param| Self::row(param, spec)).collect::<Result<_>>()?;
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        Ok(Map::from_iter([("target_modules".to_owned(), serde_json::json!(self.target_modules))]))
    }
}

// That was the method. What follows only uses it, on a GPT-2 small enough to train while you read this sentence.

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let device = peft::device::device("flex")?;
    let tokens = TensorData::from([[5, 17, 42, 8, 99, 3, 61, 20], [7, 7, 30, 88, 14, 2, 54, 76]]);
    let ids = Tensor::<2, Int>::from_data(tokens, &device);
    let input = ModelInput::ids(ids.clone());

    let mut model = tiny_gpt2(&device)?;
    let config = RowScaleConfig { target_modules: Names::list(["c_attn", "c_proj", "c_fc"]) };
    println!("{}", model.add_adapter_as("default", config, 0)?);
    let before = model.logits(&input, None);

    // An ordinary Burn training loop. Only the adapter has gradients, so only the adapter moves.
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for step in 0..30 {
        let loss = loss::causal_lm(model.logits(&input, None), ids.clone());
        losses.push(loss.clone().into_scalar::<f32>());
        if step % 10 == 0 || step == 29 {
            println!("step {step:2}  loss {:.4}", losses[step]);
        }
        let gradients = GradientsParams::from_grads(loss.backward(), model.model());
        model.set_model(optimizer.step(0.05, model.model().clone(), gradients));
    }
    assert!(losses[29] < 0.9 * losses[0], "the loss must fall, but went from {} to {}", losses[0], losses[29]);

    // The folder is the same as for any method. `MethodRegistry` is how a reader learns that `ROW_SCALE` is ours.
    let folder = tempfile::tempdir()?;
    model.save_adapter(folder.path(), "default")?;
    let mut loaded = tiny_gpt2(&device)?;
    loaded.load_adapter(folder.path(), "default", &MethodRegistry::new().with(PEFT_TYPE, RowScaleConfig::parse))?;
    let live = model.logits(&input, None);
    let difference = distance(&live, &loaded.logits(&input, None));
    println!("saved and loaded: logits differ by {difference:e}");
    assert!(difference == 0.0, "a loaded adapter must be the saved one");

    // Merged, the model is a plain GPT-2 again: same answers up to rounding, no adapter, no extra cost.
    let merged = model.merge()?;
    let difference = distance(&live, &merged.logits(&input, None));
    println!("merged: logits differ by {difference:e}; training had moved them by {:.2}", distance(&live, &before));
    assert!(difference < 1e-4, "merging must not change what the model says");
    Ok(())
}

/// The tiny model among the fixtures, frozen, with its own dropout off so that the losses are comparable.
fn tiny_gpt2(device: &Device) -> Result<PeftModel<AutoCausalLm>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models/gpt2-tiny");
    let (model, _) = load_causal_lm(folder, device)?;
    let model = nn::set_training(model, false);
    Ok(PeftModel::new(model))
}

fn distance(a: &Tensor<3>, b: &Tensor<3>) -> f32 {
    (a.clone() - b.clone()).abs().max().into_scalar()
}
