//! A run as data: the flags of `peft train` fill it, a file holds it, and the library runs it.

use std::fs;
use std::path::Path;

use peft::run::{RUN_FILE, RunConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::adapters::peft;
use super::labels::{at, data};
use crate::support::{fixtures, registry};

pub(super) fn base() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base").display().to_string()
}

/// A folder with two short data files.
pub(super) fn texts() -> TempDir {
    let row = |text: &str| json!({ "text": text });
    let rows = [row("In the beginning was a test."), row("It was small, and it was quick."), row("And it was green.")];
    data(&[("train.jsonl", &rows), ("eval.jsonl", &rows[..1])])
}

pub(super) fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
}

/// A run of three steps in a folder.
fn yaml(folder: &TempDir, output: &str) -> String {
    format!(
        "model: {}\ndata: {{ train: {}, eval: {} }}\nmethod: {{ r: 3, target_modules: [c_attn] }}\n\
         training: {{ learning_rate: 1e-2, max_steps: 3, batch_size: 2, lr_scheduler_type: constant }}\noutput: {}\n",
        base(),
        at(folder, "train.jsonl"),
        at(folder, "eval.jsonl"),
        at(folder, output)
    )
}

#[cfg(unix)]
const PEFT: &str = env!("CARGO_BIN_EXE_peft");

#[test]
fn a_run_file_and_flags_are_the_same_run() {
    let folder = texts();
    fs::write(at(&folder, "run.yaml"), yaml(&folder, "by-file")).unwrap();
    peft(&["train", "--config", &at(&folder, "run.yaml")]).unwrap();
    let (train, eval, output) = (at(&folder, "train.jsonl"), at(&folder, "eval.jsonl"), at(&folder, "by-flags"));
    let flags = ["--r", "3", "--targets", "c_attn", "--lr", "1e-2", "--steps", "3", "--batch-size", "2"];
    let files = ["train", "--model", &base(), "--data", &train, "--eval-data", &eval, "--output", &output];
    peft(&[&files[..], &flags, &["--schedule", "constant"]].concat()).unwrap();
    let weights = |output: &str| fs::read(folder.path().join(output).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("by-file"), weights("by-flags"));
    // Flags go before the file.
    let more = at(&folder, "more");
    peft(&["train", "--config", &at(&folder, "run.yaml"), "--lr", "1e-3", "--r", "2", "--output", &more]).unwrap();
    assert_ne!(weights("by-file"), weights("more"));
    assert_eq!(config(Path::new(&more))["r"], 2);
}

#[test]
fn the_run_lies_beside_its_adapter_and_repeats_it() {
    let folder = texts();
    let run = RunConfig::parse(&yaml(&folder, "first")).unwrap();
    let report = peft::run::train(&run, registry(), false, &mut ()).unwrap();
    assert_eq!(report.outcome.steps, 3);
    let again = RunConfig::read(folder.path().join("first").join(RUN_FILE)).unwrap();
    assert_eq!(again, run);
    let again = RunConfig { output: folder.path().join("second"), ..again };
    let repeated = peft::run::train(&again, registry(), false, &mut ()).unwrap();
    assert_eq!(repeated.outcome.last_loss.to_bits(), report.outcome.last_loss.to_bits());
    let written = config(&folder.path().join("first"));
    assert_eq!(
        (written["task_type"].as_str(), written["base_model_name_or_path"].as_str()),
        (Some("CAUSAL_LM"), Some(&*base()))
    );
}

#[test]
fn a_printed_run_is_whole_and_can_be_read_again() {
    let folder = texts();
    fs::write(at(&folder, "run.yaml"), yaml(&folder, "never")).unwrap();
    let printed = peft(&["train", "--config", &at(&folder, "run.yaml"), "--dora", "--print-config"]).unwrap();
    assert!(!folder.path().join("never").exists());
    let run = RunConfig::parse(&printed).unwrap();
    assert_eq!((run.training.max_steps, run.training.learning_rate), (Some(3), 1e-2));
    for (field, value) in
        [("use_dora", json!(true)), ("r", json!(3)), ("lora_alpha", json!(8)), ("peft_type", json!("LORA"))]
    {
        assert_eq!(run.method[field], value, "{field}");
    }
    // From another program, too.
    #[cfg(unix)]
    {
        let line =
            format!("cat {} | {} train --config /dev/stdin --dora --print-config", at(&folder, "run.yaml"), PEFT);
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), printed);
    }
    fs::write(at(&folder, "printed.yaml"), &printed).unwrap();
    assert_eq!(peft(&["train", "--config", &at(&folder, "printed.yaml"), "--print-config"]).unwrap(), printed);
    peft(&["train", "--config", &at(&folder, "printed.yaml"), "--steps", "1"]).unwrap();
    assert_eq!(config(&folder.path().join("never"))["use_dora"], true);
}

#[test]
fn a_field_that_nobody_knows_is_refused_wherever_it_stands() {
    for (text, field) in [
        ("modle: here", "modle"),
        ("data: { trian: here }", "trian"),
        ("data: { columns: { texts: here } }", "texts"),
        ("training: { learning_rat: 1 }", "learning_rat"),
        ("dtype: float8", "float8"),
        ("training: { max_steps: many }", "many"),
    ] {
        let error = RunConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains(field), "{text}: {error}");
    }
    let folder = texts();
    fs::write(at(&folder, "run.yaml"), yaml(&folder, "out").replace("r: 3", "r: 3, use_magic: true")).unwrap();
    let error = peft(&["train", "--config", &at(&folder, "run.yaml")]).unwrap_err();
    assert!(error.contains("use_magic"), "{error}");
    fs::write(at(&folder, "broken.yaml"), "model: [").unwrap();
    let error = peft(&["train", "--config", &at(&folder, "broken.yaml")]).unwrap_err();
    assert!(error.contains("broken.yaml"), "{error}");
    assert!(peft(&["train"]).unwrap_err().contains("`model` is not given"));
    assert!(
        peft(&["train", "--task", "seq-clss", "--config", &at(&folder, "run.yaml")]).unwrap_err().contains("seq-cls")
    );
}

#[test]
fn a_method_is_named_or_comes_from_its_own_file() {
    let folder = texts();
    fs::write(at(&folder, "run.yaml"), yaml(&folder, "out")).unwrap();
    let method = at(&folder, "ia3.json");
    fs::write(&method, r#"{"peft_type": "IA3", "target_modules": ["c_attn"], "feedforward_modules": []}"#).unwrap();
    let of = |more: &[&str]| {
        let files =
            ["train", "--model", &base(), "--data", &at(&folder, "train.jsonl"), "--output", &at(&folder, "out")];
        let printed = peft(&[&files[..], more, &["--print-config"]].concat())?;
        Ok::<_, String>(RunConfig::parse(&printed).unwrap())
    };
    // As before there were run files, `--config` takes an `adapter_config.json`.
    for flag in ["--config", "--method-config"] {
        let run = of(&[flag, &method]).unwrap();
        assert_eq!(
            (run.method["peft_type"].as_str(), &run.method["target_modules"]),
            (Some("IA3"), &json!(["c_attn"]))
        );
    }
    for (name, peft_type) in [("vera", "VERA"), ("p-tuning", "P_TUNING"), ("LoRA", "LORA"), ("ADALORA", "ADALORA")] {
        assert_eq!(of(&["--method", name]).unwrap().method["peft_type"], peft_type);
    }
    let error = of(&["--method", "verra"]).unwrap_err();
    assert!(error.contains("VERA"), "{error}");
    let error = of(&["--method-config", &method, "--r", "4"]).unwrap_err();
    assert!(error.contains("`--r` sets `r`, which IA3 has not"), "{error}");
    let error = of(&["--method-config", &at(&folder, "run.yaml")]).unwrap_err();
    assert!(error.contains("peft_type") && error.contains("--config"), "{error}");
    let error = of(&["--loraplus-lr-embedding", "1"]).unwrap_err();
    assert!(error.contains("--loraplus-lr-ratio"), "{error}");
}

#[test]
fn a_masked_language_model_is_trained_like_any_other() {
    // The words of this tokenizer are not those of the model, but its numbers are: ids below the model's.
    let folder = texts();
    let base = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join("models/bert-masked")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.path().join(entry.file_name())).unwrap();
    }
    let vocab: serde_json::Map<String, Value> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "in", "the", "it", "was"]
            .iter()
            .enumerate()
            .map(|(id, word)| ((*word).to_owned(), id.into()))
            .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 4, "content": "[MASK]", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    fs::write(base.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(base.path().join("tokenizer_config.json"), r#"{"mask_token": "[MASK]", "pad_token": "[PAD]"}"#).unwrap();
    let model = base.path().display().to_string();
    let (train, output) = (at(&folder, "train.jsonl"), at(&folder, "masked"));
    let wanted = ["--task", "masked-lm", "--masked", "0.5", "--lr", "5e-2", "--steps", "30", "--batch-size", "3"];
    peft(&[&["train", "--model", &model, "--data", &train, "--output", &output][..], &wanted].concat()).unwrap();
    let loss = |more: &[&str]| {
        let eval = ["eval", "--model", &model, "--task", "masked-lm", "--masked", "0.5", "--data", &train];
        let printed = peft(&[&eval[..], more].concat()).unwrap();
        printed.lines().find_map(|it| it.strip_prefix("loss ")).unwrap().parse::<f64>().unwrap()
    };
    assert!(loss(&["--adapter", &output]) < loss(&[]) - 0.05);
    assert_eq!(config(Path::new(&output))["task_type"], Value::Null);
}
