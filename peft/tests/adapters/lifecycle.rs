//! An adapter is deleted, swapped, renamed, switched, scaled and described.

use burn::module::Module;
use peft::core::files::checkpoint::model_tensors;
use peft::core::laws::{self, distance};
use peft::core::{Names, PeftModel};
use peft::lora::{LoHaConfig, LoraConfig};
use peft::models::auto::AutoCausalLm;
use peft::prompt::AdaptionPromptConfig;

use super::nets::{input, llama, loaded, logits, logits_of, lora, methods, mlp, output, two_rows};
use crate::support::{device, numbers};

#[test]
fn a_deleted_adapter_leaves_the_others_and_nothing_of_itself() {
    for ((what, one), (_, two)) in methods(&["lin0"]).into_iter().zip(methods(&["lin1"])) {
        let mut peft = mlp();
        let base = output(&peft);
        peft.add_adapter_as("one", one, 1).unwrap();
        peft.add_adapter_as("two", two, 2).unwrap();
        laws::disturb(&mut peft, "two", 0.1, &device()).unwrap();
        let acting = output(&peft);
        // An inactive one: nothing changes.
        peft.delete_adapter("one").unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&acting), "{what}");
        assert!(peft.status().layers.iter().all(|it| it.adapters == ["two"]), "{what}");
        // The active one: the base is back.
        peft.delete_adapter("two").unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&base), "{what}");
        assert!(peft.active().is_empty() && peft.status().layers.is_empty(), "{what}");
        peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    }
}

#[test]
fn an_adapter_is_swapped_for_another_of_other_rank_and_scale() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut made = mlp();
    let mut outputs = Vec::new();
    for (folder, config) in [(&one, lora(&["lin0"])), (&two, LoraConfig::new(5, 9.0).targets(["lin0", "lin1"]))] {
        made.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut made, "one", 0.1, &device()).unwrap();
        made.save_adapter(folder.path(), "one").unwrap();
        outputs.push(output(&made));
        made.delete_adapter("one").unwrap();
    }
    let base = model_tensors(made.model());
    let mut peft = PeftModel::of_module(made.unload());
    for at in [0, 1, 0, 1] {
        peft.load_adapter([&one, &two][at].path(), "one", &peft::methods()).unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&outputs[at]));
        peft.delete_adapter("one").unwrap();
    }
    for (before, after) in base.iter().zip(model_tensors(&peft.unload())) {
        assert_eq!(numbers(&before.data), numbers(&after.data), "{}", before.key);
    }
}

#[test]
fn a_renamed_adapter_is_the_same_adapter() {
    let mut peft = loaded();
    let before = logits_of(&peft.model().valid(), two_rows());
    peft.rename_adapter("second", "other").unwrap();
    assert_eq!(distance(&logits_of(&peft.model().valid(), two_rows()), &before), 0.0);
    let status = peft.status();
    let names: Vec<&str> = status.adapters.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["first", "other", "third"]);
    assert!(status.layers.iter().any(|it| it.active == ["first", "other", "third"]));
    assert!(peft.rename_adapter("first", "third").unwrap_err().to_string().contains("already"));
}

#[test]
fn gated_prompts_are_added_switched_and_deleted() {
    let mut peft = llama();
    let of = |peft: &PeftModel<AutoCausalLm>| logits(&peft.model().valid(), 2);
    let base = of(&peft);
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        peft.add_adapter_as(name, AdaptionPromptConfig::new(3, 1 + seed), seed as u64).unwrap();
        assert!(distance(&of(&peft), &base) < 1e-6, "its gate starts at zero");
        laws::disturb(&mut peft, name, 0.5, &device()).unwrap();
    }
    let two = of(&peft);
    assert!(distance(&two, &base) > 1e-4);
    peft.set_active(&["one"]).unwrap();
    let one = of(&peft);
    assert!(distance(&one, &base) > 1e-4 && distance(&one, &two) > 1e-4);
    // Added and chosen while nothing acts.
    peft.set_enabled(false);
    assert_eq!(numbers(&of(&peft)), numbers(&base));
    peft.add_adapter_as("three", AdaptionPromptConfig::new(2, 2), 9).unwrap();
    peft.set_active(&["two"]).unwrap();
    assert_eq!(numbers(&of(&peft)), numbers(&base));
    peft.set_enabled(true);
    assert_eq!(numbers(&of(&peft)), numbers(&two));
    peft.delete_adapter("two").unwrap();
    assert_eq!(numbers(&of(&peft)), numbers(&base));
    peft.set_active(&["one"]).unwrap();
    assert_eq!(numbers(&of(&peft)), numbers(&one));
}

#[test]
fn status_says_what_there_is() {
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    let loha = LoHaConfig { r: 2, target_modules: Some(Names::list(["lin0", "lin1"])), ..LoHaConfig::default() };
    peft.add_adapter_as("two", loha, 1).unwrap();
    peft.set_strength("two", 0.5).unwrap();
    let status = peft.status();
    let base = 12 * 20 + 20 + 20 * 8 + 8;
    let (one, two) = (3 * (12 + 20), 2 * 2 * (12 + 20) + 2 * 2 * (20 + 8));
    assert_eq!((status.trainable_parameters, status.total_parameters), (two, base + one + two));
    let told: Vec<_> = status
        .adapters
        .iter()
        .map(|it| (it.name.as_str(), it.peft_type.as_str(), it.active, it.trainable, it.strength, it.parameters))
        .collect();
    assert_eq!(told, [("one", "LORA", false, false, 1.0, one), ("two", "LOHA", true, true, 0.5, two)]);
    let layers: Vec<_> = status
        .layers
        .iter()
        .map(|it| (it.path.as_str(), it.owner.as_str(), it.shape.clone(), it.adapters.len(), it.active.clone()))
        .collect();
    assert_eq!(
        layers,
        [
            ("lin0.weight", "Linear", vec![12, 20], 2, vec!["two".to_owned()]),
            ("lin1.weight", "Linear", vec![20, 8], 1, vec!["two".to_owned()]),
        ]
    );
    peft.set_enabled(false);
    let status = peft.status();
    assert!(!status.enabled && status.adapters.iter().all(|it| !it.active));
    assert!(status.layers.iter().all(|it| it.active.is_empty()));
    assert!(serde_json::to_string(&status).unwrap().contains("\"peft_type\":\"LOHA\""));
    assert!(mlp().status().layers.is_empty());
}

#[test]
fn strength_is_set_anew_each_time_and_zero_is_the_base() {
    for (what, config) in methods(&["lin0", "lin1"]) {
        if what == "ln_tuning" {
            continue; // whole copies stay as they are
        }
        let mut peft = mlp();
        let base = output(&peft);
        peft.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
        let full = output(&peft);
        for strength in [0.5, 0.0, 2.0] {
            peft.set_strength("one", strength).unwrap();
            let live = output(&peft);
            assert!(distance(&peft.merge().unwrap().forward(input()).into_data(), &live) < 1e-5, "{what} {strength}");
            assert_eq!(strength == 0.0, distance(&live, &base) < 1e-6, "{what} {strength}");
        }
        peft.set_strength("one", 1.0).unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&full), "{what}");
        assert!(peft.set_strength("one", f64::NAN).is_err() && peft.set_strength("two", 1.0).is_err());
    }
}

#[test]
fn strength_is_a_factor_of_loras_scale_live_and_merged() {
    let (mut half, mut plain) = (llama(), llama());
    plain.add_adapter_as("a", LoraConfig::new(4, 3.0).all_linear(), 1).unwrap();
    half.add_adapter_as("a", LoraConfig::new(4, 6.0).all_linear(), 1).unwrap();
    laws::disturb(&mut plain, "a", 0.1, &device()).unwrap();
    laws::disturb(&mut half, "a", 0.1, &device()).unwrap();
    half.set_strength("a", 0.5).unwrap();
    let wanted = logits_of(&plain.model().valid(), two_rows());
    assert!(distance(&logits_of(&half.model().valid(), two_rows()), &wanted) < 1e-5);
    assert!(distance(&logits_of(&half.merge().unwrap(), two_rows()), &wanted) < 1e-5);
    assert_eq!(half.status().adapters[0].strength, 0.5);
}
