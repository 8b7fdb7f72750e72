//! Single layers of plain torch against `burn::nn` layers with adapters: the dense path.

use burn::module::{Module, ModuleDisplay, Param, ParamId};
use burn::nn::conv::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, PaddingConfig1d, PaddingConfig2d};
use burn::tensor::{Tensor, TensorData};
use peft::core::files::checkpoint::{TensorFile, model_tensors};
use peft::core::{DEFAULT_ADAPTER, ModelSpec, PeftModel};
use serde_json::Value;

use crate::support::{assert_close, device, expected, find, fixtures, numbers};

#[derive(Module, Debug)]
struct Net<L: Module + ModuleDisplay> {
    layer: L,
}

fn floats<const D: usize>(file: &TensorFile, key: &str) -> Tensor<D> {
    Tensor::from_data(file.floats(key).unwrap(), &device())
}

fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), tensor.set_require_grad(false))
}

/// Runs a recorded layer: output, gradients, merged output and merged weights.
fn run<L: Module + ModuleDisplay, const D: usize>(
    name: &str,
    layer: L,
    forward: impl Fn(&L, &TensorFile) -> Tensor<D>,
) {
    run_described(name, layer, ModelSpec::of, forward);
}

/// The same with a layer that has more to say of itself.
fn run_described<L: Module + ModuleDisplay, const D: usize>(
    name: &str,
    layer: L,
    spec: impl Fn(&Net<L>) -> ModelSpec,
    forward: impl Fn(&L, &TensorFile) -> Tensor<D>,
) {
    let folder = fixtures().join("layers").join(name);
    let wanted = expected(&folder.join("expected.safetensors"));
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let net = Net { layer };
    let spec = spec(&net);
    let mut peft = PeftModel::with_spec(net, spec);
    assert_close("y_base", &forward(&peft.layer, &inputs).into_data(), &wanted["y_base"]);
    peft.load_adapter(folder.join("default"), DEFAULT_ADAPTER, &peft::methods()).unwrap();

    let output = forward(&peft.layer, &inputs);
    // Dilation: the reference's live forward drops it from lora_A and disagrees with its own merged form, which is ours.
    // Overlapping patches: its live OFT adds them up.
    let is_odd = ["conv2d_lora_dilation", "conv2d_oft"].contains(&name);
    let live = if is_odd { "merged.y" } else { "y" };
    assert_close(live, &output.to_data(), &wanted[live]);
    if !is_odd {
        let gradients = (output * floats::<D>(&inputs, "c")).sum().backward();
        let ours = peft.adapter_gradients(DEFAULT_ADAPTER, &gradients).unwrap();
        for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("grad.")) {
            // The reference's hand-written backward of LoHa's effective form takes the other factor for these two.
            if name.ends_with("loha_effective") && (key.ends_with("hada_w1_a") || key.ends_with("hada_w2_a")) {
                continue;
            }
            assert_close(key, find(&ours, key.trim_start_matches("grad.")), wanted);
        }
    }
    let merged = peft.merge().unwrap();
    assert_close("merged.y", &forward(&merged.layer, &inputs).into_data(), &wanted["merged.y"]);
    let weights = model_tensors(&merged);
    for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("merged.") && *key != "merged.y") {
        assert_close(key, find(&weights, key.trim_start_matches("merged.")), wanted);
    }
}

fn description(name: &str) -> (TensorFile, Value) {
    let folder = fixtures().join("layers").join(name);
    let text = std::fs::read_to_string(folder.join("case.json")).unwrap();
    let case: Value = serde_json::from_str(&text).unwrap();
    (TensorFile::open(folder.join("base.safetensors")).unwrap(), case["layer"].clone())
}

fn sizes<const N: usize>(layer: &Value, field: &str) -> [usize; N] {
    let list = |value: &Value| match value.as_array() {
        Some(items) => items.iter().map(|it| it.as_u64().unwrap() as usize).collect(),
        None => vec![value.as_u64().unwrap() as usize; N],
    };
    list(&layer[field]).try_into().unwrap()
}

fn bias(base: &TensorFile) -> Option<Param<Tensor<1>>> {
    base.shape("layer.bias").map(|_| frozen(floats(base, "layer.bias")))
}

fn check(name: &str) {
    let (base, layer) = description(name);
    let [d_in] = sizes::<1>(&layer, "in");
    let [d_out] = sizes::<1>(&layer, "out");
    let device = device();
    match layer["type"].as_str().unwrap() {
        "linear" => {
            let mut linear: Linear = LinearConfig::new(d_in, d_out).init(&device);
            linear.weight = frozen(floats::<2>(&base, "layer.weight").transpose());
            linear.bias = bias(&base);
            run(name, linear, |linear, inputs| linear.forward(floats::<3>(inputs, "x")));
        }
        "embedding" => {
            let mut table: Embedding = EmbeddingConfig::new(d_in, d_out).init(&device);
            table.weight = frozen(floats(&base, "layer.weight"));
            run(name, table, |table, inputs| {
                table.forward(Tensor::from_data(inputs.integers("x").unwrap(), &crate::support::device()))
            });
        }
        "conv1d" => {
            let config = Conv1dConfig::new(d_in, d_out, sizes::<1>(&layer, "kernel")[0])
                .with_stride(sizes::<1>(&layer, "stride")[0])
                .with_dilation(sizes::<1>(&layer, "dilation")[0])
                .with_groups(sizes::<1>(&layer, "groups")[0])
                .with_padding(PaddingConfig1d::Explicit(
                    sizes::<1>(&layer, "padding")[0],
                    sizes::<1>(&layer, "padding")[0],
                ));
            let mut conv: Conv1d = config.init(&device);
            conv.weight = frozen(floats(&base, "layer.weight"));
            conv.bias = bias(&base);
            run(name, conv, |conv, inputs| conv.forward(floats::<3>(inputs, "x")));
        }
        "conv2d" => {
            let [top, left] = sizes::<2>(&layer, "padding");
            let config = Conv2dConfig::new([d_in, d_out], sizes(&layer, "kernel"))
                .with_stride(sizes(&layer, "stride"))
                .with_dilation(sizes(&layer, "dilation"))
                .with_groups(sizes::<1>(&layer, "groups")[0])
                .with_padding(PaddingConfig2d::Explicit(top, left, top, left));
            let mut conv: Conv2d = config.init(&device);
            conv.weight = frozen(floats(&base, "layer.weight"));
            conv.bias = bias(&base);
            run(name, conv, |conv, inputs| conv.forward(floats::<4>(inputs, "x")));
        }
        other => panic!("unknown layer {other}"),
    }
}

macro_rules! layers {
    ($($case:ident),+ $(,)?) => {
        $(#[test] fn $case() { check(stringify!($case)) })+

        pub(super) const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}

mod experts;
mod lora;
mod other_methods;

/// Recorded, but not computed by `burn::nn` layers: each with the reason.
const ELSEWHERE: &[(&str, &str)] = &[
    ("conv1d_lora_groups", "the reference's ungrouped lora_A has no merged form; refused by shape, see below"),
    ("conv2d_lora_groups", "the same"),
    ("conv2d_lora_same", "padding by name; the same kernel arithmetic as conv2d_lora"),
    ("conv2d_lora_bias", "lora_bias on a convolution is refused, see below"),
    ("embedding_tokens", "the same as the next"),
    ("embedding_lora_padding", "burn::nn has no padding_idx; our Embedding has, see the parity cases of BERT"),
    ("embedding_dora_padding", "the same"),
    ("linear_lora_bias", "a burn::nn layer reads its bias itself; our Projection takes lora_bias, see gpt2_lora_bias"),
];

#[test]
fn every_recorded_layer_is_accounted_for() {
    let unknown: Vec<String> = std::fs::read_dir(fixtures().join("layers"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            ![experts::CASES, lora::CASES, other_methods::CASES].concat().contains(&name.as_str())
                && !ELSEWHERE.iter().any(|(it, _)| it == name)
        })
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn a_grouped_convolution_refuses_the_references_ungrouped_factors() {
    let (base, layer) = description("conv2d_lora_groups");
    let [d_in] = sizes::<1>(&layer, "in");
    let [d_out] = sizes::<1>(&layer, "out");
    let config = Conv2dConfig::new([d_in, d_out], sizes(&layer, "kernel")).with_groups(sizes::<1>(&layer, "groups")[0]);
    let mut conv: Conv2d = config.init(&device());
    conv.weight = frozen(floats(&base, "layer.weight"));
    let mut peft = PeftModel::of_module(Net { layer: conv });
    let folder = fixtures().join("layers/conv2d_lora_groups/default");
    let error = peft.load_adapter(folder, DEFAULT_ADAPTER, &peft::methods()).unwrap_err().to_string();
    assert!(error.contains("lora_A.weight: file"), "{error}");
}

#[test]
fn the_comparison_itself_can_fail() {
    let a = TensorData::from([1.0f32, 2.0]);
    let b = TensorData::from([1.0f32, 2.001]);
    assert!(crate::support::distance(&a, &b) > crate::support::TOLERANCE);
    assert_eq!(numbers(&a), [1.0, 2.0]);
}
