//! Adapters as things: combined, converted, renamed, scaled, and different ones in the rows of one batch.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use peft::core::laws::{self, distance};
use peft::core::{DEFAULT_ADAPTER, PeftModel};
use peft::ia3::CombineIa3;
use peft::lora::combine::convert::{ConvertToLora, Rank};
use peft::lora::combine::weighted::{Combination, Combine, Majority};
use peft::lora::{LoraConfig, OftConfig};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};

use crate::support::{assert_close, device, expected, find, fixtures};

const WEIGHTS: [(&str, f64); 3] = [("first", 0.7), ("second", -1.3), ("third", 0.4)];

fn base() -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/llama-tiny"), &device()).unwrap();
    PeftModel::new(model)
}

fn loaded() -> PeftModel<AutoCausalLm> {
    let mut peft = base();
    for (name, _) in WEIGHTS {
        peft.load_adapter(fixtures().join("combined").join(name), name, &peft::methods()).unwrap();
    }
    peft
}

fn logits(model: &AutoCausalLm, ids: Tensor<2, Int>) -> TensorData {
    peft::core::nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids), None).into_data()
}

fn ids() -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from([[5i64, 17, 3, 88, 41, 9], [60, 2, 77, 13, 1, 30]]), &device())
}

#[test]
fn combinations_have_the_numbers_of_the_reference() {
    let wanted = expected(&fixtures().join("combined/expected.safetensors"));
    for (name, kind, adapters, density, sign, rank) in [
        ("linear", "linear", 2, None, Majority::Total, None),
        ("cat", "cat", 3, None, Majority::Total, None),
        ("ties", "ties", 2, Some(0.6), Majority::Total, None),
        ("ties_frequency", "ties", 2, Some(0.6), Majority::Frequency, None),
        ("magnitude_prune", "magnitude_prune", 2, Some(0.4), Majority::Total, None),
        ("svd", "svd", 3, None, Majority::Total, None),
        ("svd_rank", "svd", 2, None, Majority::Total, Some(2)),
        ("ties_svd", "ties_svd", 2, Some(0.6), Majority::Total, None),
        ("magnitude_prune_svd", "magnitude_prune_svd", 2, Some(0.4), Majority::Total, None),
        ("dare_linear", "dare_linear", 2, Some(0.7), Majority::Total, None),
        ("dare_ties", "dare_ties", 2, Some(0.7), Majority::Total, None),
        ("dare_linear_svd", "dare_linear_svd", 3, Some(0.7), Majority::Total, None),
        ("dare_ties_svd", "dare_ties_svd", 3, Some(0.7), Majority::Total, None),
    ] {
        let mut peft = loaded();
        let how = Combination::parse(kind, density, sign, rank).unwrap();
        // The seed from which the reference drew the masks of `dare`.
        peft.combine("new", &WEIGHTS[..adapters], how, 5).unwrap();
        assert_eq!(peft.active(), ["first", "second", "third"]);
        let prefix = format!("{name}/");
        let tensors = peft.adapter_tensors("new").unwrap();
        let updates = peft.updates("new").unwrap();
        let mut seen = 0;
        for (key, wanted) in wanted.iter().filter_map(|(key, it)| Some((key.strip_prefix(&prefix)?, it))) {
            seen += 1;
            if key.contains("lora_") {
                assert_close(&format!("{name} {key}"), find(&tensors, key), wanted);
            } else {
                let update = updates.iter().find(|it| it.param.module == key).unwrap();
                assert_close(&format!("{name} {key}"), &update.delta.to_data(), wanted);
            }
        }
        assert!(seen > 0, "{name}");
    }
}

#[test]
fn vectors_are_added_up_as_in_the_reference() {
    let wanted = expected(&fixtures().join("combined/expected.safetensors"));
    let mut peft = base();
    for name in ["ia3_first", "ia3_second"] {
        peft.load_adapter(fixtures().join("combined").join(name), name, &peft::methods()).unwrap();
    }
    peft.combine_ia3("new", &[("ia3_first", 0.7), ("ia3_second", 0.4)]).unwrap();
    assert_eq!(peft.active(), ["ia3_first", "ia3_second"]);
    let tensors = peft.adapter_tensors("new").unwrap();
    let wanted: Vec<_> = wanted.iter().filter_map(|(key, it)| Some((key.strip_prefix("ia3/")?, it))).collect();
    assert_eq!(tensors.len(), wanted.len());
    for (key, wanted) in wanted {
        assert_close(key, find(&tensors, key), wanted);
    }
    peft.add_adapter_as("lora", LoraConfig::new(2, 4.0).targets(["q_proj"]), 1).unwrap();
    assert!(peft.combine_ia3("more", &[("lora", 1.0)]).unwrap_err().to_string().contains("not IA3"));
    assert!(peft.combine_ia3("more", &[]).is_err());
}

#[test]
fn dare_keeps_everything_at_a_density_of_one_and_draws_from_the_seed_below() {
    let mut peft = loaded();
    let dare = Combination::parse("dare_linear", Some(0.5), Majority::Total, None).unwrap();
    for (name, seed) in [("one", 1), ("again", 1), ("two", 2)] {
        peft.combine(name, &WEIGHTS[..2], dare, seed).unwrap();
    }
    let sum = |name: &str| {
        let tensors = peft.adapter_tensors(name).unwrap();
        tensors.iter().flat_map(|it| crate::support::numbers(&it.data)).map(f64::abs).sum::<f64>()
    };
    assert_eq!(sum("one"), sum("again"));
    assert_ne!(sum("one"), sum("two"));
    for (name, kind, density) in [("plain", "linear", None), ("dare", "dare_linear", Some(1.0))] {
        let how = Combination::parse(kind, density, Majority::Total, None).unwrap();
        peft.combine(name, &WEIGHTS[..2], how, 0).unwrap();
    }
    for (a, b) in peft.adapter_tensors("plain").unwrap().iter().zip(peft.adapter_tensors("dare").unwrap()) {
        assert!(distance(&b.data, &a.data) < 1e-6);
    }
}

#[test]
fn unlike_ranks_and_unknown_kinds_are_refused() {
    let mut peft = loaded();
    let linear = Combination::parse("linear", None, Majority::Total, None).unwrap();
    assert!(peft.combine("new", &WEIGHTS, linear, 0).unwrap_err().to_string().contains("differs"));
    assert!(Combination::parse("mean", None, Majority::Total, None).is_err());
    assert!(Combination::parse("ties", None, Majority::Total, None).unwrap_err().to_string().contains("density"));
    assert_eq!(peft.adapters().len(), 3);
}

#[test]
fn rows_use_their_own_adapters() {
    let wanted = expected(&fixtures().join("combined/expected.safetensors"));
    let file =
        peft::core::files::checkpoint::TensorFile::open(fixtures().join("combined/expected.safetensors")).unwrap();
    let ids = Tensor::from_data(file.integers("rows.ids").unwrap(), &device());
    let peft = loaded();
    let rows = [Some("second"), None, Some("third"), Some("second")];
    let output = peft.with_adapter_names(&rows, |model| logits(&model.valid(), ids.clone())).unwrap();
    assert_close("rows", &output, &wanted["rows.logits"]);
    assert!(peft.with_adapter_names(&[Some("fourth")], |_| ()).unwrap_err().to_string().contains("fourth"));
}

#[test]
fn an_orthogonal_adapter_becomes_lora() {
    let mut peft = base();
    let config = OftConfig { oft_block_size: 8, ..OftConfig::default() };
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.2, &device()).unwrap();
    let wanted = logits(&peft.model().valid(), ids());
    let low = peft.convert_to_lora(DEFAULT_ADAPTER, "low", Rank::Fixed(4)).unwrap();
    let full = peft.convert_to_lora(DEFAULT_ADAPTER, "full", Rank::Fixed(32)).unwrap();
    assert!(low.iter().all(|it| it.error > 0.01 && it.error < 1.0) && full.iter().all(|it| it.error < 1e-5));
    peft.set_active(&["full"]).unwrap();
    assert!(distance(&logits(&peft.model().valid(), ids()), &wanted) < 1e-4);
}

#[test]
fn strength_is_a_factor_of_loras_scale_live_and_merged() {
    let (mut half, mut plain) = (base(), base());
    plain.add_adapter_as("a", LoraConfig::new(4, 3.0).all_linear(), 1).unwrap();
    half.add_adapter_as("a", LoraConfig::new(4, 6.0).all_linear(), 1).unwrap();
    laws::disturb(&mut plain, "a", 0.1, &device()).unwrap();
    laws::disturb(&mut half, "a", 0.1, &device()).unwrap();
    half.set_strength("a", 0.5).unwrap();
    let wanted = logits(&plain.model().valid(), ids());
    assert!(distance(&logits(&half.model().valid(), ids()), &wanted) < 1e-5);
    assert!(distance(&logits(&half.merge().unwrap(), ids()), &wanted) < 1e-5);
    assert_eq!(half.status().adapters[0].strength, 0.5);
}

#[test]
fn a_renamed_adapter_is_the_same_adapter() {
    let mut peft = loaded();
    let before = logits(&peft.model().valid(), ids());
    peft.rename_adapter("second", "other").unwrap();
    assert_eq!(distance(&logits(&peft.model().valid(), ids()), &before), 0.0);
    let status = peft.status();
    let names: Vec<&str> = status.adapters.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["first", "other", "third"]);
    assert!(status.layers.iter().any(|it| it.active == ["first", "other", "third"]));
    assert!(peft.rename_adapter("first", "third").unwrap_err().to_string().contains("already"));
}
