//! Weighted combinations of adapters, against the reference.

use peft::core::Names;
use peft::core::laws::{self, distance};
use peft::ia3::CombineIa3;
use peft::lora::combine::weighted::{Combination, Combine, Majority};
use peft::lora::{Bias, LoraConfig, OftConfig};

use super::nets::{WEIGHTS, deltas, llama, loaded, lora, mlp, output};
use crate::support::{assert_close, device, expected, find, fixtures};

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
    let mut peft = llama();
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
fn combinations_add_updates_with_their_signs() {
    let mut peft = mlp();
    let pattern = LoraConfig { rank_pattern: [("lin1".to_owned(), 5)].into(), ..lora(&["lin0", "lin1"]) };
    peft.add_adapter_as("one", pattern, 1).unwrap();
    peft.add_adapter_as("two", LoraConfig::new(4, 9.0).targets(["lin0", "lin1"]), 2).unwrap();
    for name in ["one", "two"] {
        laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
    }
    let (one, two) = (deltas(&peft, "one"), deltas(&peft, "two"));
    let same = |ours: &[Vec<f64>], a: f64, b: f64| {
        for ((ours, one), two) in ours.iter().zip(&one).zip(&two) {
            for ((ours, one), two) in ours.iter().zip(one).zip(two) {
                assert!((ours - (a * one + b * two)).abs() < 1e-5);
            }
        }
    };
    let svd = Combination::parse("svd", None, Majority::Total, Some(9)).unwrap();
    for (name, how, adapters) in [
        ("cat", Combination::Cat, &[("one", 0.5), ("two", 1.5)][..]),
        ("difference", Combination::Cat, &[("one", 1.0), ("two", -1.0)]),
        ("svd", svd, &[("one", 0.5), ("two", 1.5)]),
        ("negated", Combination::parse("linear", None, Majority::Total, None).unwrap(), &[("two", -1.0)]),
        ("same", svd, &[("two", 1.0)]),
    ] {
        peft.combine(name, adapters, how, 0).unwrap();
        let weight = |of: &str| adapters.iter().find(|it| it.0 == of).map_or(0.0, |it| it.1);
        same(&deltas(&peft, name), weight("one"), weight("two"));
    }
    // Both at once is their concatenation with weights of 1.
    peft.combine("sum", &[("one", 1.0), ("two", 1.0)], Combination::Cat, 0).unwrap();
    peft.set_active(&["one", "two"]).unwrap();
    let both = output(&peft);
    peft.set_active(&["sum"]).unwrap();
    assert!(distance(&output(&peft), &both) < 1e-5);
    assert!(peft.combine("none", &[], Combination::Cat, 0).is_err());
    assert!(peft.combine("absent", &[("three", 1.0)], Combination::Cat, 0).unwrap_err().to_string().contains("three"));
    assert!(peft.combine("cat", &[("one", 1.0)], Combination::Cat, 0).unwrap_err().to_string().contains("already"));
}

#[test]
fn adapters_that_save_modules_are_not_combined() {
    let mut peft = mlp();
    let saved = LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(&["lin0"]) };
    peft.add_adapter_as("saved", saved, 1).unwrap();
    peft.add_adapter_as("dora", LoraConfig { use_dora: true, ..lora(&["lin0"]) }, 1).unwrap();
    peft.add_adapter_as("biased", LoraConfig { bias: Bias::AdaptedOnly, ..lora(&["lin0"]) }, 1).unwrap();
    peft.add_adapter_as("pissa", LoraConfig { init_lora_weights: "pissa".into(), ..lora(&["lin0"]) }, 1).unwrap();
    peft.add_adapter_as(
        "oft",
        OftConfig { oft_block_size: 4, target_modules: Some(Names::list(["lin0"])), ..OftConfig::default() },
        1,
    )
    .unwrap();
    let parameters = Some(vec!["lin0.weight".into()]);
    peft.add_adapter_as("parameters", LoraConfig { target_parameters: parameters, ..LoraConfig::new(4, 6.0) }, 1)
        .unwrap();
    for name in ["saved", "dora", "biased", "pissa", "oft", "parameters"] {
        let error = peft.combine("new", &[(name, 1.0)], Combination::Cat, 0).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert_eq!(peft.adapters().len(), 6);
}
