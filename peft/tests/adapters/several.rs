//! Several adapters on one model: which is trained, which act, and which may act together.

use burn::tensor::Tensor;
use peft::core::files::checkpoint::model_tensors;
use peft::core::laws::{self, distance};
use peft::core::{Names, PeftModel};
use peft::lora::{Bias, LoraConfig, TrainableTokensConfig};
use peft::models::auto::AutoCausalLm;

use super::nets::{Mlp, input, llama, lora, methods, mlp, output, reached};
use crate::support::{assert_unchanged, device, find, numbers};

#[test]
fn of_two_adapters_the_chosen_one_is_trained_on_the_same_layers_and_on_others() {
    for (first, second) in [(["lin0"], ["lin0"]), (["lin0"], ["lin1"])] {
        for ((what, one), (_, two)) in methods(&first).into_iter().zip(methods(&second)) {
            let mut peft = mlp();
            peft.add_adapter_as("one", one, 1).unwrap();
            peft.add_adapter_as("two", two, 2).unwrap();
            for name in ["one", "two"] {
                laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
            }
            // Adding makes the newest the one that acts and is trained.
            assert_eq!((peft.active(), peft.adapters()["one"].trainable), (&["two".to_owned()][..], false), "{what}");
            for (chosen, other) in [("one", "two"), ("two", "one")] {
                peft.set_active(&[chosen]).unwrap();
                peft.set_trainable(&[chosen]).unwrap();
                assert!(!reached(&peft, chosen).is_empty(), "{what}: {chosen} is not trained");
                assert!(reached(&peft, other).is_empty(), "{what}: {other} is trained");
            }
        }
    }
}

#[test]
fn several_active_adapters_act_together_and_merge_together() {
    for ((what, one), (_, two)) in methods(&["lin0", "lin1"]).into_iter().zip(methods(&["lin0"])) {
        if what == "ln_tuning" {
            continue; // whole copies, of which one would hide the other: see below
        }
        let mut peft = mlp();
        let base = output(&peft);
        peft.add_adapter_as("one", one, 1).unwrap();
        peft.add_adapter_as("two", two, 2).unwrap();
        for name in ["one", "two"] {
            laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
        }
        let of = |peft: &mut PeftModel<Mlp>, names: &[&str]| {
            peft.set_active(names).unwrap();
            output(peft)
        };
        let (one, two) = (of(&mut peft, &["one"]), of(&mut peft, &["two"]));
        let both = of(&mut peft, &["one", "two"]);
        for (a, b) in [(&one, &two), (&one, &both), (&two, &both), (&one, &base)] {
            assert!(distance(a, b) > 1e-5, "{what}");
        }
        let merged = peft.merge().unwrap();
        assert!(distance(&merged.forward(input()).into_data(), &both) < 1e-5, "{what}");
        // Merging is a function: again it gives the same, and the adapters still act.
        let again = peft.merge().unwrap();
        assert_eq!(numbers(&again.forward(input()).into_data()), numbers(&merged.forward(input()).into_data()));
        assert_eq!(numbers(&output(&peft)), numbers(&both), "{what}");
        // One after the other is both at once, where the second does not look at the weight.
        if ["lora", "ia3", "loha", "lokr", "miss", "shira", "fourierft", "randlora", "adalora"].contains(&what) {
            of(&mut peft, &["one"]);
            let half = peft.merge().unwrap();
            let mut rest = PeftModel::of_module(half);
            let config = methods(&["lin0"]).into_iter().find(|it| it.0 == what).unwrap().1;
            rest.add_adapter_as("two", config, 2).unwrap();
            rest.assign_adapter("two", peft.adapter_tensors("two").unwrap()).unwrap();
            assert!(distance(&output(&rest), &both) < 1e-4, "{what}");
        }
        assert_eq!(numbers(&peft.unload().forward(input()).into_data()), numbers(&base), "{what}");
    }
}

#[test]
fn different_methods_act_together_on_one_layer_and_on_others() {
    let kinds = methods(&["lin0"]).len();
    for first in 0..kinds {
        // With the method after it, on the same layer, on another, and on both.
        let second = (first + 1) % kinds;
        for targets in [&["lin0"][..], &["lin1"], &["lin0", "lin1"]] {
            let mut peft = mlp();
            let base = output(&peft);
            let (one, config) = methods(&["lin0"]).remove(first);
            peft.add_adapter_as("one", config, 1).unwrap();
            let (two, config) = methods(targets).remove(second);
            peft.add_adapter_as("two", config, 2).unwrap();
            for name in ["one", "two"] {
                laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
            }
            peft.set_active(&["one"]).unwrap();
            let alone = output(&peft);
            peft.set_active(&["one", "two"]).unwrap();
            let both = output(&peft);
            assert!(distance(&alone, &base) > 1e-6 && distance(&both, &alone) > 1e-6, "{one} and {two}");
            let merged = peft.merge().unwrap().forward(input()).into_data();
            assert!(distance(&merged, &both) < 1e-5, "{one} and {two} on {targets:?}");
            // Saved apart and loaded in turn they give the same.
            let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            peft.save_adapter(folders[0].path(), "one").unwrap();
            peft.save_adapter(folders[1].path(), "two").unwrap();
            let mut again = PeftModel::of_module(peft.unload());
            again.load_adapter(folders[0].path(), "one", &peft::methods()).unwrap();
            again.load_adapter(folders[1].path(), "two", &peft::methods()).unwrap();
            assert!(distance(&output(&again), &both) < 1e-6, "{one} and {two} on {targets:?}");
            assert_eq!(numbers(&again.unload().forward(input()).into_data()), numbers(&base));
        }
    }
}

#[test]
fn a_copy_that_would_hide_another_is_not_activated_beside_it() {
    let mut peft = mlp();
    let saved = |targets: &[&str]| LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(targets) };
    peft.add_adapter_as("one", saved(&["lin0"]), 1).unwrap();
    peft.add_adapter_as("two", saved(&["lin0"]), 2).unwrap();
    peft.add_adapter_as("three", lora(&["lin0"]), 3).unwrap();
    let error = peft.set_active(&["one", "two"]).unwrap_err().to_string();
    assert!(error.contains("lin1") && error.contains("at a time"), "{error}");
    assert_eq!(peft.active(), ["three"]);
    peft.set_active(&["one", "three"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), "two").unwrap();
    // Loading would activate it: refused, and nothing has changed.
    assert!(peft.load_adapter(folder.path(), "four", &peft::methods()).unwrap_err().to_string().contains("at a time"));
    assert_eq!((peft.adapters().len(), peft.active().len()), (3, 2));
    let biased = |name: &str| LoraConfig { bias: Bias::All, ..lora(&[name]) };
    let mut peft = mlp();
    peft.add_adapter_as("one", biased("lin0"), 1).unwrap();
    peft.add_adapter_as("two", biased("lin1"), 2).unwrap();
    assert!(peft.set_active(&["one", "two"]).is_err());
}

#[test]
fn saved_modules_belong_to_their_adapter() {
    let saved = LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(&["lin0"]) };
    let mut peft = mlp();
    let base = output(&peft);
    peft.add_adapter_as("one", saved.clone(), 1).unwrap();
    peft.add_adapter_as("two", lora(&["lin0"]), 2).unwrap();
    peft.set_active(&["one"]).unwrap();
    peft.set_trainable(&["one"]).unwrap();
    let keys = reached(&peft, "one");
    let wanted = ["lin0.lora_A.weight", "lin0.lora_B.weight", "lin1.bias", "lin1.weight"];
    assert_eq!(keys, wanted.map(|it| format!("base_model.model.{it}")));
    laws::disturb(&mut peft, "one", 0.2, &device()).unwrap();
    let one = output(&peft);
    assert!(distance(&one, &base) > 1e-3);
    // Another adapter, or none, sees the frozen module.
    peft.set_active(&["two"]).unwrap();
    assert_unchanged(&output(&peft), &base);
    peft.set_active(&["one"]).unwrap();
    peft.set_enabled(false);
    assert_unchanged(&output(&peft), &base);
    peft.set_enabled(true);
    assert_unchanged(&output(&peft), &one);
    peft.delete_adapter("one").unwrap();
    peft.set_active(&["two"]).unwrap();
    assert_unchanged(&output(&peft), &base);
    assert!(peft.delete_adapter("one").unwrap_err().to_string().contains("there are two"));
}

#[test]
fn rows_of_tables_are_trained_by_one_adapter_each() {
    let tokens = |rows: &[usize]| TrainableTokensConfig {
        token_indices: rows.to_vec(),
        target_modules: Some(Names::list(["embed_tokens"])),
        ..TrainableTokensConfig::default()
    };
    let mut peft = llama();
    for (name, rows) in [("one", [3, 5]), ("two", [5, 7]), ("three", [7, 9])] {
        peft.add_adapter_as(name, tokens(&rows), 1).unwrap();
        laws::disturb(&mut peft, name, 0.3, &device()).unwrap();
    }
    let table = |peft: &PeftModel<AutoCausalLm>| {
        let weights = model_tensors(&peft.merge().unwrap());
        Tensor::<2>::from_data(find(&weights, "model.embed_tokens.weight").clone(), &device())
    };
    peft.set_enabled(false);
    let base = table(&peft);
    peft.set_enabled(true);
    let changed = |peft: &PeftModel<AutoCausalLm>| {
        let moved = (table(peft) - base.clone()).abs().sum_dim(1).into_data();
        numbers(&moved).iter().enumerate().filter(|it| *it.1 > 0.0).map(|it| it.0).collect::<Vec<_>>()
    };
    peft.set_active(&["one", "three"]).unwrap();
    assert_eq!(changed(&peft), [3, 5, 7, 9]);
    for both in [["one", "two"], ["three", "two"]] {
        let error = peft.set_active(&both).unwrap_err().to_string();
        assert!(error.contains("same rows") && error.contains("embed_tokens"), "{error}");
    }
    assert_eq!(peft.active(), ["one", "three"]);
    peft.delete_adapter("one").unwrap();
    assert_eq!(changed(&peft), [7, 9]);
    // Beside LoRA the rows are an adapter of their own.
    let beside = LoraConfig {
        trainable_token_indices: Some(serde_json::from_str("[7]").unwrap()),
        ..LoraConfig::new(2, 4.0).targets(["q_proj"])
    };
    peft.add_adapter_as("beside", beside, 1).unwrap();
    assert!(peft.set_active(&["three", "beside"]).is_err());
}

#[test]
fn all_linear_means_the_same_layers_beside_another_adapter() {
    let mut peft = llama();
    let paths = |peft: &PeftModel<AutoCausalLm>, name: &str| {
        let rows = &peft.adapters()[name].plan.rows;
        rows.iter().map(|it| it.param.module.clone()).collect::<Vec<_>>()
    };
    peft.add_adapter_as("one", LoraConfig::new(2, 4.0).all_linear(), 1).unwrap();
    peft.add_adapter_as("two", LoraConfig::new(3, 4.0).all_linear(), 1).unwrap();
    assert_eq!(paths(&peft, "one"), paths(&peft, "two"));
    assert_eq!(paths(&peft, "one").len(), 14);
    assert!(!paths(&peft, "one").contains(&"lm_head".to_owned()));
}
