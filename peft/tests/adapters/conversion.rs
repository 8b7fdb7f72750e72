//! Adapters of other methods become LoRA.

use burn::module::Module;
use burn::tensor::TensorData;
use peft::core::checkpoint::Stored;
use peft::core::laws::{self, distance};
use peft::core::{DEFAULT_ADAPTER, Names};
use peft::lora::combine::convert::{ConvertToLora, Rank};
use peft::lora::{Bias, LoraConfig, MissConfig, OftConfig};

use super::nets::{deltas, llama, logits_of, lora, methods, mlp, output, two_rows};
use crate::support::{assert_close, device};

#[test]
fn every_weight_method_becomes_lora() {
    for (what, config) in methods(&["lin0", "lin1"]) {
        let mut peft = mlp();
        peft.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
        let wanted = output(&peft);
        if ["ia3", "ln_tuning"].contains(&what) {
            // They change biases too, or modules whole.
            assert!(peft.convert_to_lora("one", "low", Rank::Fixed(4)).is_err(), "{what}");
            continue;
        }
        let low = peft.convert_to_lora("one", "low", Rank::Fixed(2)).unwrap();
        assert_eq!(peft.active(), ["one"]);
        let full = peft.convert_to_lora("one", "full", Rank::Fixed(20)).unwrap();
        assert_eq!(low.len(), 2);
        assert!(full.iter().all(|it| it.error < 1e-5 && it.rank_needed <= 12), "{what}: {full:?}");
        peft.set_active(&["full"]).unwrap();
        assert!(distance(&output(&peft), &wanted) < 1e-4, "{what}");
        // The error is what it says: the norm of what is lost.
        let norm = |it: &[f64]| it.iter().map(|it| it * it).sum::<f64>().sqrt();
        for ((low, one), told) in deltas(&peft, "low").iter().zip(deltas(&peft, "one")).zip(&low) {
            let lost: Vec<f64> = low.iter().zip(&one).map(|(a, b)| a - b).collect();
            assert!((norm(&lost) / norm(&one) - told.error).abs() < 1e-3, "{what}: {told:?}");
            assert!((norm(&one) - told.norm).abs() < 1e-4 * norm(&one), "{what}: {told:?}");
        }
        assert!(peft.convert_to_lora("one", "none", Rank::Fixed(0)).is_err());
        // A rank for each layer, no higher than it takes.
        let kept = peft.convert_to_lora("one", "kept", Rank::Share(0.9)).unwrap();
        for told in &kept {
            assert!(told.error.powi(2) <= 0.1 + 1e-6 && told.rank <= told.rank_needed.max(1), "{what}: {told:?}");
        }
        let lower = peft.convert_to_lora("one", "lower", Rank::Share(0.2)).unwrap();
        assert!(lower.iter().zip(&kept).all(|(a, b)| a.rank <= b.rank), "{what}");
        for share in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(peft.convert_to_lora("one", "none", Rank::Share(share)).is_err());
        }
    }
    let mut peft = llama();
    peft.add_adapter_as("prompt", peft::prompt::PromptTuningConfig::new(2, "CAUSAL_LM"), 1).unwrap();
    assert!(peft.convert_to_lora("prompt", "low", Rank::Fixed(2)).is_err());
}

/// Its vectors act on the bias of a layer, where there is one: Llama's layers have none.
#[test]
fn ia3_becomes_lora_where_layers_have_no_bias() {
    let mut peft = llama();
    let targets = ["k_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
    let config = peft::ia3::Ia3Config {
        target_modules: Some(Names::List(targets)),
        feedforward_modules: Some(Names::List(vec!["down_proj".to_owned()])),
        ..Default::default()
    };
    peft.add_adapter_as("one", config, 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let wanted = logits_of(peft.model(), two_rows());
    let report = peft.convert_to_lora("one", "full", Rank::Fixed(64)).unwrap();
    assert!(report.iter().all(|it| it.error < 1e-4), "{report:?}");
    peft.set_active(&["full"]).unwrap();
    assert_close("logits", &logits_of(peft.model(), two_rows()), &wanted);
}

#[test]
fn moved_starts_become_lora_with_patterns_and_rslora() {
    for start in ["pissa", "olora"] {
        for config in [
            lora(&["lin0", "lin1"]),
            LoraConfig { rank_pattern: [("lin1".to_owned(), 4)].into(), ..lora(&["lin0", "lin1"]) },
            LoraConfig { alpha_pattern: [("lin1".to_owned(), 7.0)].into(), ..lora(&["lin0", "lin1"]) },
            LoraConfig { use_rslora: true, ..lora(&["lin0", "lin1"]) },
        ] {
            let mut peft = mlp();
            let base = output(&peft);
            peft.add_adapter_as("one", LoraConfig { init_lora_weights: start.into(), ..config }, 1).unwrap();
            assert!(distance(&output(&peft), &base) < 1e-5);
            laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
            let wanted = output(&peft);
            // Twice the rank holds what was learned less what it started from.
            let report = peft.convert_to_lora("one", "plain", Rank::Fixed(8)).unwrap();
            assert!(report.iter().all(|it| it.error < 1e-5 && it.rank_needed <= 8), "{start}: {report:?}");
            peft.set_active(&["plain"]).unwrap();
            assert!(distance(&output(&peft), &wanted) < 1e-4, "{start}");
        }
    }
}

#[test]
fn conversion_takes_saved_modules_along() {
    for bias in [Bias::None, Bias::AdaptedOnly, Bias::All] {
        let config = MissConfig {
            r: 4,
            bias,
            target_modules: Some(Names::list(["lin0"])),
            modules_to_save: Some(vec!["lin1".into()]),
            ..MissConfig::default()
        };
        let mut peft = mlp();
        peft.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
        let wanted = output(&peft);
        peft.convert_to_lora("one", "plain", Rank::Fixed(12)).unwrap();
        peft.set_active(&["plain"]).unwrap();
        assert!(distance(&output(&peft), &wanted) < 1e-5, "{bias:?}");
        assert_eq!(peft.adapter_config("plain").unwrap()["modules_to_save"], serde_json::json!(["lin1"]));
    }
}

#[test]
fn an_orthogonal_adapter_becomes_lora() {
    let mut peft = llama();
    let config = OftConfig { oft_block_size: 8, ..OftConfig::default() };
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.2, &device()).unwrap();
    let wanted = logits_of(&peft.model().valid(), two_rows());
    let low = peft.convert_to_lora(DEFAULT_ADAPTER, "low", Rank::Fixed(4)).unwrap();
    let full = peft.convert_to_lora(DEFAULT_ADAPTER, "full", Rank::Fixed(32)).unwrap();
    assert!(low.iter().all(|it| it.error > 0.01 && it.error < 1.0) && full.iter().all(|it| it.error < 1e-5));
    peft.set_active(&["full"]).unwrap();
    assert!(distance(&logits_of(&peft.model().valid(), two_rows()), &wanted) < 1e-4);
}

/// A number that is none would spread over all singular values.
#[test]
fn numbers_that_are_none_are_not_converted() {
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    let spoil = |it: Stored| {
        let shape = it.data.shape().clone();
        let mut values = vec![0.5f32; shape.num_elements()];
        values[0] = f32::NAN;
        Stored { data: TensorData::new(values, shape), ..it }
    };
    let tensors = peft.adapter_tensors("one").unwrap().into_iter().map(spoil).collect();
    peft.assign_adapter("one", tensors).unwrap();
    let error = peft.convert_to_lora("one", "two", Rank::Fixed(1)).unwrap_err().to_string();
    assert!(error.contains("the update of `lin0` by `one` is not finite"), "{error}");
    assert!(!peft.adapters().contains_key("two"));
}
