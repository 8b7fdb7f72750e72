//! Any bytes as a checkpoint of codes: `quantization_config` with its tensors, as bitsandbytes, GPTQ and AWQ have them.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use peft_core::files::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (config, tensors) = rest.split_at((u16::from_le_bytes(*length) as usize).min(rest.len()));
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("model.safetensors"), tensors).expect("a file");
    fs::write(folder.path().join("config.json"), config).expect("a file");
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return };
    let keys: Vec<String> = checkpoint.keys().map(str::to_owned).collect();
    for key in keys {
        let _ = checkpoint.widened(&key);
    }
});
