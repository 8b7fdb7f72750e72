//! Any bytes as a checkpoint: an index and a tensor file.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use peft_core::files::checkpoint::{Checkpoint, TensorFile};

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (index, tensors) = rest.split_at((u16::from_le_bytes(*length) as usize).min(rest.len()));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("model.safetensors");
    fs::write(&file, tensors).expect("a file");
    if !index.is_empty() {
        fs::write(folder.path().join("model.safetensors.index.json"), index).expect("a file");
    }
    if let Ok(file) = TensorFile::open(&file) {
        for key in file.keys() {
            let _ = file.shape(&key);
            let _ = file.floats(&key);
            let _ = file.integers(&key);
        }
    }
    if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
        for key in checkpoint.keys() {
            if let Some(file) = checkpoint.file(key) {
                let _ = file.floats(key);
            }
        }
    }
});
