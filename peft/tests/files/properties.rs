//! Properties that hold for any input: codecs give back what they were given, readers survive any bytes.

use std::fs;

use burn::tensor::TensorData;
use peft::core::files::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
use peft::core::{AdapterFolder, Names, PeftConfig, contains_module, is_suffix};
use peft::lora::LoraConfig;
use proptest::prelude::*;
use serde_json::Value;

fn names() -> impl Strategy<Value = Option<Names>> {
    let name = "[a-z_]{1,8}(\\.[a-z0-9_]{1,6}){0,3}";
    prop_oneof![
        Just(None),
        name.prop_map(|it| Some(Names::Pattern(it))),
        prop::collection::vec(name, 0..4).prop_map(|it| Some(Names::List(it))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_configuration_survives_its_json(
        r in 1usize..300,
        alpha in prop_oneof![(1u32..512).prop_map(f64::from), (1u32..1024).prop_map(|it| f64::from(it) / 16.0)],
        dropout in (0u32..16).prop_map(|it| f64::from(it) / 16.0),
        targets in names(),
        exclude in names(),
        flags in any::<[bool; 3]>(),
        rank in prop::collection::btree_map("[a-z]{1,6}", 1usize..64, 0..4),
    ) {
        let config = LoraConfig {
            lora_dropout: dropout,
            target_modules: targets,
            exclude_modules: exclude,
            use_rslora: flags[0],
            use_dora: flags[1],
            fan_in_fan_out: flags[2],
            rank_pattern: rank.into_iter().collect(),
            ..LoraConfig::new(r, alpha)
        };
        let json = config.to_json().unwrap();
        let text = serde_json::to_string(&Value::Object(json.clone())).unwrap();
        let again = LoraConfig::parse(serde_json::from_str(&text).unwrap()).unwrap();
        prop_assert_eq!(again.to_json().unwrap(), json);
    }

    #[test]
    fn tensors_survive_their_file(
        values in prop::collection::vec(-1e6f32..1e6, 1..64),
        keys in prop::collection::btree_set("[a-zA-Z0-9_.]{1,20}", 1..5),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let stored = |key: &String| Stored { key: key.clone(), data: TensorData::new(values.clone(), [values.len()]) };
        write_tensors(&path, keys.iter().map(stored).collect(), FloatType::F32).unwrap();
        let file = TensorFile::open(&path).unwrap();
        prop_assert_eq!(file.keys(), keys.iter().cloned().collect::<Vec<_>>());
        for key in &keys {
            let data = file.floats(key).unwrap();
            prop_assert_eq!(data.as_slice::<f32>().unwrap(), values.as_slice());
        }
    }

    #[test]
    fn any_bytes_are_a_file_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_config.json"), &bytes).unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), &bytes).unwrap();
        let _ = AdapterFolder::open(folder.path());
        let _ = TensorFile::open(folder.path().join("adapter_model.safetensors"));
    }

    /// One flipped byte in a real file: either it is refused, or every tensor that it lists can still be read.
    #[test]
    fn a_flipped_byte_never_panics(at in 0usize..2000, bit in 0u8..8) {
        let from = crate::support::fixtures().join("cases/llama_lora_default/default/adapter_model.safetensors");
        let mut bytes = fs::read(from).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        fs::write(&path, &bytes).unwrap();
        if let Ok(file) = TensorFile::open(&path) {
            for key in file.keys() {
                let _ = file.floats(&key);
                let _ = file.integers(&key);
            }
        }
    }

    #[test]
    fn a_suffix_is_contained(head in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}", tail in "[a-z]{1,5}", below in "[a-z]{1,5}") {
        let path = format!("{head}.{tail}");
        prop_assert!(is_suffix(&path, &tail));
        let inner = format!("{path}.{below}");
        prop_assert!(contains_module(&inner, &tail));
        let glued = format!("{head}x{tail}");
        prop_assert!(!is_suffix(&glued, &tail) || glued.rsplit('.').next() == Some(tail.as_str()));
    }
}
