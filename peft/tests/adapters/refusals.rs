//! Configurations that contradict themselves, and numbers that cannot be merged.

use burn::tensor::TensorData;
use peft::core::files::checkpoint::Stored;
use peft::core::{Names, PeftConfig};
use peft::ia3::Ia3Config;
use peft::lora::{AdaLoraConfig, Bias, LoraConfig};

use super::nets::{lora, methods, mlp, output};
use crate::support::numbers;

#[test]
fn what_contradicts_itself_is_refused() {
    let refused =
        |config: Box<dyn PeftConfig>| mlp().add_adapter_as("one", config, 1).map(|_| ()).unwrap_err().to_string();
    // A regular expression says all there is to say about layers.
    let regex = Some(Names::Pattern("lin.".into()));
    let indexed = LoraConfig {
        target_modules: regex.clone(),
        layers_to_transform: Some(peft::core::Indices::One(0)),
        ..LoraConfig::default()
    };
    assert!(refused(Box::new(indexed)).contains("layers_to_transform"));
    let pattern = LoraConfig { layers_pattern: Some(Names::list(["layers"])), ..lora(&["lin0"]) };
    assert!(refused(Box::new(pattern)).contains("layers_pattern"));
    assert!(refused(Box::new(LoraConfig::new(3, 5.0))).contains("target_modules"));
    let excluded = LoraConfig { exclude_modules: Some(Names::list(["lin0"])), ..lora(&["lin0"]) };
    assert!(refused(Box::new(excluded)).contains("exclude"));
    let tokens = LoraConfig {
        trainable_token_indices: Some(serde_json::from_str("{\"lin0\": [1]}").unwrap()),
        ..lora(&["lin0"])
    };
    assert!(refused(Box::new(tokens)).contains("both"));
    for (other, what) in [
        (LoraConfig { use_dora: true, ..lora(&["lin0"]) }, "dora"),
        (LoraConfig { bias: Bias::All, ..lora(&["lin0"]) }, "bias"),
        (LoraConfig { init_lora_weights: "pissa".into(), ..lora(&["lin0"]) }, "pissa"),
    ] {
        assert!(refused(Box::new(LoraConfig { lora_bias: true, ..other })).contains("lora_bias"), "{what}");
    }
    let outside = Ia3Config {
        target_modules: Some(Names::list(["lin0"])),
        feedforward_modules: Some(Names::list(["lin1"])),
        ..Ia3Config::default()
    };
    assert!(refused(Box::new(outside)).contains("feedforward_modules"));
    let ada = |change: fn(&mut AdaLoraConfig)| {
        let mut config = AdaLoraConfig { lora: lora(&["lin0"]), total_step: Some(100), ..AdaLoraConfig::default() };
        change(&mut config);
        refused(Box::new(config))
    };
    assert!(ada(|it| it.total_step = None).contains("total_step"));
    assert!(ada(|it| it.total_step = Some(0)).contains("total_step"));
    assert!(ada(|it| (it.tinit, it.tfinal) = (60, 50)).contains("tinit"));
    assert!(ada(|it| it.orth_reg_weight = -0.1).contains("orth_reg_weight"));
    assert!(ada(|it| it.lora.use_dora = true).contains("use_dora"));
}

#[test]
fn what_is_no_number_is_not_merged_and_the_base_stays_as_it_is() {
    for bad in [f32::NAN, f32::INFINITY] {
        for (what, config) in methods(&["lin0"]) {
            let mut peft = mlp();
            let before = output(&peft);
            peft.add_adapter_as("one", config, 1).unwrap();
            let spoil = |it: Stored| {
                let shape = it.data.shape().clone();
                if !it.data.dtype().is_float() {
                    return it;
                }
                let mut values = vec![0.5f32; shape.num_elements()];
                values[0] = bad;
                Stored { data: TensorData::new(values, shape), ..it }
            };
            let tensors = peft.adapter_tensors("one").unwrap().into_iter().map(spoil).collect();
            peft.assign_adapter("one", tensors).unwrap();
            let error = peft.merge().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("NaN or infinity") && error.contains("lin0"), "{what}: {error}");
            peft.set_enabled(false);
            peft.merge().unwrap();
            assert_eq!(numbers(&output(&peft)), numbers(&before), "{what}");
        }
    }
}
