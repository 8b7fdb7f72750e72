//! Any bytes as an adapter folder: its configuration and its tensors.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use peft_core::{AdapterFolder, MethodRegistry};
use peft_lora::LoraConfig;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (config, tensors) = rest.split_at((u16::from_le_bytes(*length) as usize).min(rest.len()));
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("adapter_config.json"), config).expect("a file");
    fs::write(folder.path().join("adapter_model.safetensors"), tensors).expect("a file");
    let Ok(adapter) = AdapterFolder::open(folder.path()) else { return };
    let _ = MethodRegistry::new().with(peft_lora::PEFT_TYPE, LoraConfig::parse).parse(adapter.config.clone());
    for key in adapter.tensors.keys() {
        let _ = adapter.tensors.floats(&key);
    }
});
