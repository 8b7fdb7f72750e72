//! A base whose numbers are none is said to be damaged, whatever is done with it.

use std::fs;
use std::path::Path;

use peft::core::files::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
use serde_json::json;

use super::labels::{at, data};

#[test]
fn nan_in_the_base_is_not_blamed_on_the_training() {
    let files = data(&[("train.jsonl", &[json!({"text": "In the beginning"}), json!({"text": "there was light"})])]);
    let (from, base) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base"), files.path().join("base"));
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let file = TensorFile::open(from.join("model.safetensors")).unwrap();
    let stored = |key: String| {
        let mut data = file.floats(&key).unwrap();
        if key.ends_with("ln_f.weight") {
            data.as_mut_slice::<f32>().unwrap()[7] = f32::NAN;
        }
        Stored { key, data }
    };
    let tensors = file.keys().into_iter().map(stored).collect();
    write_tensors(base.join("model.safetensors"), tensors, FloatType::F32).unwrap();

    let (base, train) = (base.to_str().unwrap(), at(&files, "train.jsonl"));
    let sound = at(&files, "sound");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_peft"));
    command.args(["train", "--model", from.to_str().unwrap(), "--data", &train, "--output", &sound, "--steps", "1"]);
    assert!(command.output().unwrap().status.success());
    for (name, rest) in [
        ("train", vec!["--data", &train, "--output", &at(&files, "adapter"), "--steps", "3"]),
        ("eval", vec!["--data", &train]),
        ("merge", vec!["--adapter", &sound, "--output", &at(&files, "merged")]),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_peft"));
        command.args([name, "--model", base]).args(rest);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name} succeeds");
        assert!(
            said.contains("base/model.safetensors is not usable: `transformer.ln_f.weight` holds NaN"),
            "{name}: {said}"
        );
        assert!(!said.contains("learning rate"), "{name}: {said}");
    }
}
