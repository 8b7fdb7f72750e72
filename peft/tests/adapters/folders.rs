//! What a saved folder holds, and what is loaded from it.

use burn::tensor::TensorData;
use peft::core::files::checkpoint::Stored;
use peft::core::laws;
use peft::core::{AdapterFolder, Names, PeftModel, read_config, write_folder};
use peft::lora::{BoftConfig, LoraConfig};

use super::nets::{lora, mlp, output, reached, reached_quietly};
use crate::support::{device, numbers};

#[test]
fn names_that_contain_one_another_are_kept_apart() {
    let mut peft = mlp();
    for (seed, name) in ["adapter", "adapter1", "my_adapter", "lora", "weight", "lin0"].into_iter().enumerate() {
        peft.add_adapter_as(name, lora(&["lin0"]), seed as u64).unwrap();
        laws::disturb(&mut peft, name, 0.1 + seed as f64, &device()).unwrap();
    }
    let names: Vec<String> = peft.adapters().keys().cloned().collect();
    let mut seen = Vec::new();
    for name in &names {
        let folder = tempfile::tempdir().unwrap();
        peft.save_adapter(folder.path(), name).unwrap();
        let file = AdapterFolder::open(folder.path()).unwrap();
        // The name is not in the keys, and the values are those of this adapter.
        let keys = ["base_model.model.lin0.lora_A.weight", "base_model.model.lin0.lora_B.weight"];
        assert_eq!(file.tensors.keys(), keys, "{name}");
        seen.push(numbers(&file.tensors.floats(keys[0]).unwrap())[0].to_bits());
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), names.len());
}

#[test]
fn the_name_of_an_adapter_makes_no_difference_to_what_is_loaded() {
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0", "lin1"]), 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), "one").unwrap();
    let wanted = output(&peft);
    let base = peft.unload();
    for name in ["default", "other", "lin0", "lora_A", "weight"] {
        let mut again = PeftModel::of_module(base.clone());
        again.load_adapter(folder.path(), name, &peft::methods()).unwrap();
        assert_eq!(numbers(&output(&again)), numbers(&wanted), "{name}");
    }
    assert!(PeftModel::of_module(base).add_adapter_as("a.b", lora(&["lin0"]), 1).is_err());
}

#[test]
fn a_folder_keeps_the_files_of_others() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), "mine").unwrap();
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    peft.save_adapter(folder.path(), "one").unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("README.md")).unwrap(), "mine");
    let mut files: Vec<String> =
        std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    // No weight of the base, no configuration of the base.
    assert_eq!(files, ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    let config = read_config(folder.path()).unwrap();
    assert_eq!((&config["inference_mode"], &config["peft_version"]), (&true.into(), &"0.21.2".into()));
}

#[test]
fn what_is_loaded_is_trained_or_not_as_told() {
    let mut peft = mlp();
    let saved = LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(&["lin0"]) };
    peft.add_adapter_as("one", saved, 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), "one").unwrap();
    let mut again = PeftModel::of_module(peft.unload());
    again.load_adapter(folder.path(), "one", &peft::methods()).unwrap();
    assert_eq!(reached(&again, "one").len(), 4);
    again.set_trainable::<&str>(&[]).unwrap();
    assert!(reached_quietly(&again, "one").is_empty());
    again.add_adapter_as("two", lora(&["lin0"]), 1).unwrap();
    again.set_active(&["one", "two"]).unwrap();
    assert!(reached(&again, "one").is_empty() && !reached(&again, "two").is_empty());
    again.set_trainable(&["one", "two"]).unwrap();
    assert_eq!(reached(&again, "one").len(), 4);
    assert_eq!(again.trainable().0, again.status().trainable_parameters);
}

#[test]
fn an_old_file_of_boft_with_its_permutations_is_read() {
    let config =
        BoftConfig { boft_block_size: 4, target_modules: Some(Names::list(["lin0"])), ..BoftConfig::default() };
    let mut peft = mlp();
    peft.add_adapter_as("one", config, 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let wanted = output(&peft);
    let mut tensors = peft.adapter_tensors("one").unwrap();
    let old =
        Stored { key: "base_model.model.lin0.boft_P".into(), data: TensorData::new(vec![0.0f32; 144], [1, 12, 12]) };
    tensors.push(old);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &peft.adapter_config("one").unwrap(), tensors).unwrap();
    let mut again = PeftModel::of_module(peft.unload());
    again.load_adapter(folder.path(), "one", &peft::methods()).unwrap();
    assert_eq!(numbers(&output(&again)), numbers(&wanted));
}
