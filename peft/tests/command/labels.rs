//! What a classifier's outputs mean travels with its adapter.

use std::fs;
use std::path::Path;
use std::process::Command;

use peft::core::{AdapterFolder, DEFAULT_ADAPTER, LABELS_FILE, Labels, PeftModel};
use peft::load::AdapterSource;
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoSequenceClassifier, ClassifierOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{device, fixtures, registry};

/// The command on GPT-2 of the demo; what it printed, or said to be wrong.
pub(crate) fn command(name: &str, rest: &[&str]) -> Result<String, String> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base");
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.args([name, "--model", base.to_str().unwrap()]).args(rest).args(["--device", "flex"]);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A folder with a data file for every name.
pub(crate) fn data(files: &[(&str, &[Value])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, rows) in files {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        fs::write(folder.path().join(name), lines.join("\n")).unwrap();
    }
    folder
}

pub(crate) fn at(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn classifier() -> PeftModel<AutoSequenceClassifier> {
    let folder = fixtures().join("models/llama-cls");
    let (model, _) = auto::load_sequence_classifier(folder, &device(), &ClassifierOptions::default()).unwrap();
    PeftModel::new(model)
}

fn labels(names: &[&str]) -> Labels {
    let names = names.iter().map(|it| (*it).to_owned()).collect();
    Labels { problem_type: Some("single_label_classification".into()), names }
}

#[test]
fn they_are_saved_loaded_and_saved_again() {
    let mut peft = classifier();
    peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0), 0).unwrap();
    let wanted = labels(&["spam", "ham", "eggs"]);
    peft.set_labels(DEFAULT_ADAPTER, Some(wanted.clone())).unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    peft.save_adapter(first.path(), DEFAULT_ADAPTER).unwrap();
    let json: Value = serde_json::from_str(&fs::read_to_string(first.path().join(LABELS_FILE)).unwrap()).unwrap();
    assert_eq!(json["id2label"], json!({"0": "spam", "1": "ham", "2": "eggs"}));
    assert_eq!(json["label2id"], json!({"spam": 0, "ham": 1, "eggs": 2}));

    let mut other = classifier();
    other.load_adapter(first.path(), "mail", &peft::methods()).unwrap();
    other.save_adapter(second.path(), "mail").unwrap();
    assert_eq!(AdapterFolder::open(second.path()).unwrap().labels, Some(wanted));
    // An adapter without labels does not keep those of another that was there.
    other.set_labels("mail", None).unwrap();
    other.save_adapter(second.path(), "mail").unwrap();
    assert_eq!(AdapterFolder::open(second.path()).unwrap().labels, None);
}

#[test]
fn a_damaged_file_and_adapters_that_disagree_are_refused() {
    let folder = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LABELS_FILE), text).unwrap();
        folder
    };
    let error = |folders: &[&TempDir]| {
        let paths: Vec<AdapterSource> = folders.iter().map(|it| AdapterSource::new(it.path())).collect();
        peft::run::labels::of_adapters(&paths).unwrap_err().to_string()
    };
    assert!(error(&[&folder("{}")]).contains("it has no `id2label`"));
    assert!(error(&[&folder(r#"{"id2label": {"1": "a"}}"#)]).contains("does not count from 0"));
    let [a, b] = ["a", "b"].map(|it| folder(&format!(r#"{{"id2label": {{"0": "{it}"}}}}"#)));
    assert!(error(&[&a, &b]).contains("differ from those of"));
    assert_eq!(peft::run::labels::of_adapters(&[AdapterSource::new(a.path())]).unwrap().unwrap().names, ["a"]);
}

/// Three colours are learned; a file with two of them, in another order, is read with the same numbers.
#[test]
fn an_evaluation_reads_its_file_with_the_adapters_labels() {
    let row = |text: &str, label: &str| json!({"text": text, "label": label});
    let files = data(&[
        ("train.jsonl", &[row("grass", "green"), row("blood", "red"), row("sky", "blue"), row("leaf", "green")]),
        ("eval.jsonl", &[row("rose", "red"), row("tree", "green")]),
        ("odd.jsonl", &[row("rose", "red"), row("plum", "purple")]),
    ]);
    let adapter = at(&files, "adapter");
    let train = ["--task", "seq-cls", "--output", &adapter, "--steps", "1", "--batch-size", "2"];
    let printed = command("train", &[&["--data", &at(&files, "train.jsonl")], &train[..]].concat()).unwrap();
    assert!(printed.contains("labels: blue, green, red"), "{printed}");
    assert_eq!(AdapterFolder::open(&adapter).unwrap().labels, Some(labels(&["blue", "green", "red"])));

    let eval = |file: &str| command("eval", &["--task", "seq-cls", "--adapter", &adapter, "--data", &at(&files, file)]);
    assert!(eval("eval.jsonl").unwrap().contains("accuracy"));
    let error = eval("odd.jsonl").unwrap_err();
    assert!(error.contains("odd.jsonl, line 2: label `purple` is not one of the classes"), "{error}");

    let found = peft::folder::inspect::inspect(Path::new(&adapter), None, registry()).unwrap();
    assert!(found.to_string().contains("labels: blue, green, red"), "{found}");

    let merged = at(&files, "merged");
    command("merge", &["--task", "seq-cls", "--adapter", &adapter, "--output", &merged]).unwrap();
    let (model, report) = auto::load_sequence_classifier(&merged, &device(), &ClassifierOptions::default()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(model.labels().label_names().unwrap(), ["blue", "green", "red"]);
}

#[test]
fn tags_are_labels_too() {
    let row = |words: &[&str], tags: &[&str]| json!({"tokens": words, "ner_tags": tags});
    let files = data(&[
        ("train.jsonl", &[row(&["Ann", "sings"], &["B-PER", "O"]), row(&["in", "Rome"], &["O", "B-LOC"])]),
        ("eval.jsonl", &[row(&["Bob", "left"], &["B-PER", "O"])]),
        ("odd.jsonl", &[row(&["IBM"], &["B-ORG"])]),
    ]);
    let adapter = at(&files, "adapter");
    let train = ["--task", "token-cls", "--output", &adapter, "--steps", "1", "--batch-size", "2"];
    command("train", &[&["--data", &at(&files, "train.jsonl")], &train[..]].concat()).unwrap();
    let wanted = Labels { problem_type: None, names: ["B-LOC", "B-PER", "O"].map(str::to_owned).to_vec() };
    assert_eq!(AdapterFolder::open(&adapter).unwrap().labels, Some(wanted));
    let eval =
        |file: &str| command("eval", &["--task", "token-cls", "--adapter", &adapter, "--data", &at(&files, file)]);
    assert!(eval("eval.jsonl").unwrap().contains("f1"));
    assert!(eval("odd.jsonl").unwrap_err().contains("tag `B-ORG` is none of B-LOC, B-PER, O"));
    // Without the file the tags of the data are too few for the head, and that is said.
    fs::remove_file(Path::new(&adapter).join(LABELS_FILE)).unwrap();
    let error = eval("eval.jsonl").unwrap_err();
    assert!(error.contains("the head has 3 outputs, but the data names 2"), "{error}");
}
