//! Parameters of a module of one's own: experts that lie in one tensor, and how much each counts.

use burn::module::{Module, Param};
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Tensor, TensorData};
use peft::core::{DEFAULT_ADAPTER, ModelSpec, PeftConfig, PeftError, PeftModel, Result};
use peft::lora::LoraConfig;

use super::{Net, description, floats, frozen, run_described};
use crate::support::{device, numbers};

/// A gated mixture: every expert sees every row.
#[derive(Module, Debug)]
struct Experts {
    /// `[experts, 2 · hidden, in]`, or `[experts, in, 2 · hidden]`
    gate_up_proj: Param<Tensor<3>>,
    /// `[experts, in, hidden]`, or `[experts, hidden, in]`
    down_proj: Param<Tensor<3>>,
    /// `[experts, in]`
    mix: Param<Tensor<2>>,
    transposed: bool,
}

impl Experts {
    fn recorded(name: &str) -> Self {
        let (base, layer) = description(name);
        Self {
            gate_up_proj: frozen(floats(&base, "layer.gate_up_proj")),
            down_proj: frozen(floats(&base, "layer.down_proj")),
            mix: frozen(floats(&base, "layer.mix")),
            transposed: layer["transposed"].as_bool().unwrap(),
        }
    }

    /// `[rows, in]` to the same.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let product =
            |x: Tensor<3>, weight: Tensor<3>| x.matmul(if self.transposed { weight } else { weight.swap_dims(1, 2) });
        let weights = softmax(x.clone().matmul(self.mix.val().transpose()), 1);
        let experts = weights.dims()[1];
        let each = x.unsqueeze::<3>().repeat_dim(0, experts);
        let halves = product(each, self.gate_up_proj.val()).chunk(2, 2);
        let hidden = sigmoid(halves[0].clone()) * halves[1].clone();
        let y = product(hidden, self.down_proj.val());
        (y * weights.transpose().unsqueeze_dim::<3>(2)).sum_dim(0).squeeze_dim(0)
    }
}

fn spec(net: &Net<Experts>) -> ModelSpec {
    let spec = ModelSpec::of(net);
    if net.layer.transposed { spec.with_transposed(["layer"]) } else { spec }
}

fn check(name: &str) {
    run_described(name, Experts::recorded(name), spec, |layer, inputs| layer.forward(floats::<2>(inputs, "x")));
}

layers! {
    experts_lora, experts_lora_both, experts_lora_one, experts_lora_transposed,
}

fn net() -> PeftModel<Net<Experts>> {
    PeftModel::of_module(Net { layer: Experts::recorded("experts_lora") })
}

fn on(names: &[&str]) -> LoraConfig {
    LoraConfig { target_parameters: Some(names.iter().map(|it| (*it).to_owned()).collect()), ..LoraConfig::new(2, 3.0) }
}

fn output(peft: &PeftModel<Net<Experts>>) -> TensorData {
    let x = Tensor::<1, burn::tensor::Int>::arange(0..12, &device()).float().reshape([2, 6]).div_scalar(7.0);
    peft.layer.forward(x).into_data()
}

#[test]
fn a_fresh_adapter_on_experts_is_spread_as_in_the_reference_and_changes_nothing() {
    let mut peft = net();
    let untouched = numbers(&output(&peft));
    let config = LoraConfig { init_lora_weights: "gaussian".into(), ..on(&["gate_up_proj", "down_proj"]) };
    let plan = peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap();
    assert_eq!(plan.trainable(), 2 * 3 * (6 + 20 + 10 + 6));
    let tensors = plan.tensors().unwrap();
    let ours = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    assert_eq!(tensors.len(), ours.len());
    assert!(ours.iter().all(|it| tensors[&it.key] == it.data.shape().as_slice()));
    assert_eq!(numbers(&output(&peft)), untouched);
    let a: Vec<f64> =
        ours.iter().filter(|it| it.key.ends_with("lora_A.weight")).flat_map(|it| numbers(&it.data)).collect();
    let spread = (a.iter().map(|it| it * it).sum::<f64>() / a.len() as f64).sqrt();
    assert!((0.4..0.6).contains(&spread), "1 / r whatever the number of experts: {spread}");
}

/// The reference refuses the second; here its keys do not depend on the first.
#[test]
fn adapters_on_parameters_need_not_name_the_same() {
    let mut peft = net();
    let random = |names: &[&str]| LoraConfig { init_lora_weights: false.into(), ..on(names) };
    peft.add_adapter_as("first", random(&["gate_up_proj", "mix"]), 1).unwrap();
    let first = numbers(&output(&peft));
    peft.add_adapter_as("second", random(&["down_proj"]), 2).unwrap();
    let second = numbers(&output(&peft));
    assert_ne!(first, second);
    peft.set_active(&["first", "second"]).unwrap();
    let live = numbers(&output(&peft));
    let keys = |peft: &PeftModel<Net<Experts>>, name| {
        let tensors = peft.adapter_tensors(name).unwrap();
        tensors.iter().map(|it| it.key.trim_start_matches("base_model.model.layer.").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&peft, "second"), ["lora_A.weight", "lora_B.weight"]);
    assert_eq!(keys(&peft, "first")[0], "base_layer.lora_A.weight");
    let merged = PeftModel::of_module(peft.merge().unwrap());
    for (merged, live) in numbers(&output(&merged)).iter().zip(&live) {
        assert!((merged - live).abs() < 1e-4, "{merged} for {live}");
    }
    peft.set_active(&["first"]).unwrap();
    assert_eq!(numbers(&output(&peft)), first);
}

#[test]
fn what_parameters_cannot_have_is_refused() {
    let refused = |config: LoraConfig| {
        let mut peft = net();
        let error = peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).map(|_| ()).unwrap_err().to_string();
        assert!(peft.adapters().is_empty());
        error
    };
    let plain = || on(&["gate_up_proj"]);
    assert!(refused(LoraConfig { lora_dropout: 0.1, ..plain() }).contains("`lora_dropout`"));
    assert!(refused(LoraConfig { use_dora: true, ..plain() }).contains("`use_dora`"));
    assert!(refused(LoraConfig { lora_bias: true, ..plain() }).contains("`lora_bias`"));
    assert!(refused(LoraConfig { fan_in_fan_out: true, ..plain() }).contains("`fan_in_fan_out`"));
    assert!(refused(LoraConfig { init_lora_weights: "pissa".into(), ..plain() }).contains("init_lora_weights"));
    assert!(refused(LoraConfig { modules_to_save: Some(vec!["layer".into()]), ..plain() }).contains("modules_to_save"));
    let misspelt = refused(on(&["layer.gate_up_prj"]));
    assert!(
        misspelt.contains("target_parameters") && misspelt.contains("did you mean layer.gate_up_proj"),
        "{misspelt}"
    );
    // One of two names, and one of two fields.
    assert!(refused(on(&["gate_up_proj", "down"])).contains(r#"target_parameters ["down"]"#));
    // The reference warns.
    let mut other = net();
    let config = LoraConfig { target_modules: Some(peft::core::Names::list(["q_proj"])), ..plain() };
    let plan = other.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap();
    assert!(plan.notes.iter().any(|it| it.contains("`q_proj`")), "{plan}");
    // A text is no list.
    let text = serde_json::from_str(r#"{"peft_type": "LORA", "target_parameters": "mix"}"#).unwrap();
    assert!(LoraConfig::parse(text).is_err());
    // A parameter of the model itself has no module that could name its file's keys.
    let own = PeftModel::of_module(Experts::recorded("experts_lora"));
    let top: Result<()> = on(&["mix"]).plan(own.spec()).map(|_| ());
    assert!(matches!(&top, Err(PeftError::NothingMatched { .. } | PeftError::Config { .. })), "{top:?}");
}
