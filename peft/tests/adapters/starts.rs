//! How fresh values are spread.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Tensor, TensorData};
use peft::core::PeftModel;
use peft::core::files::checkpoint::Stored;
use peft::core::laws::distance;
use peft::lora::LoraConfig;

use super::nets::{lora, mlp, output};
use crate::support::{device, find, numbers};

/// Mean, standard deviation and largest value.
fn spread(data: &TensorData) -> (f64, f64, f64) {
    let values = numbers(data);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt(), values.iter().fold(0.0, |max: f64, it| max.max(it.abs())))
}

#[derive(Module, Debug)]
struct Wide {
    linear: Linear,
    table: Embedding,
    conv: Conv2d,
}

#[test]
fn fresh_factors_are_spread_as_in_the_reference() {
    let start = |init: serde_json::Value| {
        let net = Wide {
            linear: LinearConfig::new(400, 300).init(&device()),
            table: EmbeddingConfig::new(500, 100).init(&device()),
            conv: Conv2dConfig::new([40, 60], [3, 3]).init(&device()),
        };
        let mut peft = PeftModel::of_module(net);
        let config =
            LoraConfig { init_lora_weights: init, ..LoraConfig::new(40, 40.0).targets(["linear", "table", "conv"]) };
        peft.add_adapter_as("one", config, 7).unwrap();
        peft.adapter_tensors("one").unwrap()
    };
    let of = |tensors: &[Stored], key: &str| spread(find(tensors, &format!("base_model.model.{key}")));
    let is = |(mean, deviation, largest): (f64, f64, f64), wanted: f64, bound: f64| {
        assert!(mean.abs() < 0.1 * wanted, "mean {mean}");
        assert!((deviation - wanted).abs() < 0.05 * wanted, "deviation {deviation} for {wanted}");
        assert!(largest <= bound, "{largest} beyond {bound}");
    };
    // Kaiming's uniform with a = √5 lies within 1 / √in, where a kernel counts into `in`.
    let kaiming = |tensors: &[Stored], key: &str, d_in: f64| {
        let bound = 1.0 / d_in.sqrt();
        is(of(tensors, key), bound / 3f64.sqrt(), bound);
    };
    let zero = |tensors: &[Stored], key: &str| assert_eq!(of(tensors, key).2, 0.0, "{key}");

    let tensors = start(true.into());
    kaiming(&tensors, "linear.lora_A.weight", 400.0);
    kaiming(&tensors, "conv.lora_A.weight", 360.0);
    is(of(&tensors, "table.lora_embedding_B"), 1.0, f64::INFINITY);
    for key in ["linear.lora_B.weight", "conv.lora_B.weight", "table.lora_embedding_A"] {
        zero(&tensors, key);
    }

    let tensors = start("gaussian".into());
    is(of(&tensors, "linear.lora_A.weight"), 1.0 / 40.0, f64::INFINITY);
    is(of(&tensors, "conv.lora_A.weight"), 1.0 / 40.0, f64::INFINITY);
    zero(&tensors, "linear.lora_B.weight");
    zero(&tensors, "conv.lora_B.weight");

    let tensors = start(false.into());
    kaiming(&tensors, "linear.lora_A.weight", 400.0);
    kaiming(&tensors, "linear.lora_B.weight", 40.0);
    kaiming(&tensors, "conv.lora_B.weight", 40.0);
    is(of(&tensors, "table.lora_embedding_A"), 1.0, f64::INFINITY);
    is(of(&tensors, "table.lora_embedding_B"), 1.0, f64::INFINITY);
}

#[test]
fn an_orthogonal_start_is_orthogonal_and_wants_an_even_rank() {
    let mut peft = mlp();
    let config = |r| LoraConfig { r, init_lora_weights: "orthogonal".into(), ..lora(&["lin0"]) };
    assert!(peft.add_adapter_as("one", config(5), 1).unwrap_err().to_string().contains("even"));
    let base = output(&peft);
    peft.add_adapter_as("one", config(6), 1).unwrap();
    assert!(distance(&output(&peft), &base) < 1e-5);
    let tensors = peft.adapter_tensors("one").unwrap();
    let matrix = |name: &str| {
        Tensor::<2>::from_data(find(&tensors, &format!("base_model.model.lin0.{name}.weight")).clone(), &device())
    };
    let (a, b) = (matrix("lora_A"), matrix("lora_B"));
    assert!(spread(&a.clone().into_data()).2 > 1e-3 && spread(&b.clone().into_data()).2 > 1e-3);
    assert!(spread(&b.matmul(a).into_data()).2 < 1e-6);
}
