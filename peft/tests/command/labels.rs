//! What a classifier's outputs mean travels with its adapter.

use std::fs;
use std::path::Path;
use std::process::Command;

use peft::core::files::checkpoint::{FloatType, Stored, write_tensors};
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
    let odd = error(&[&folder(r#"{"id2label": {"0": "a"}, "problem_type": "guess"}"#)]);
    assert!(odd.contains("labels.json") && odd.contains("multi_label_classification"), "{odd}");
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
    assert!(eval("odd.jsonl").unwrap_err().contains("tag `B-ORG` is none of `B-LOC`, `B-PER`, `O`"));
    // Without the file the tags of the data are too few for the head, and that is said.
    fs::remove_file(Path::new(&adapter).join(LABELS_FILE)).unwrap();
    let error = eval("eval.jsonl").unwrap_err();
    assert!(error.contains("the data names 2 classes, but the head has 3 outputs"), "{error}");
}

/// A base whose configuration names no padding: training and evaluation both take the tokenizer's, and merging writes it.
#[test]
fn rows_of_a_batch_end_where_their_text_ends() {
    let row = |text: &str, label: &str| json!({"text": text, "label": label});
    let rows = [
        row("grass", "green"),
        row("the blood of the lamb that was slain in the beginning", "red"),
        row("sky over the waters", "blue"),
        row("leaf", "green"),
    ];
    let files = data(&[("train.jsonl", &rows)]);
    let base = demo_base_with(&files, |config| drop(config.remove("pad_token_id")));
    let (file, adapter, merged) = (at(&files, "train.jsonl"), at(&files, "adapter"), at(&files, "merged"));
    let on = |model: &str, name: &str, rest: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        command.args([name, "--model", model]).args(rest).args(["--device", "flex"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    on(&base, "train", &["--task", "seq-cls", "--data", &file, "--output", &adapter, "--steps", "2", "--lr", "1e-2"]);
    let alone = on(&base, "eval", &["--adapter", &adapter, "--data", &file, "--batch-size", "1"]);
    let together = on(&base, "eval", &["--adapter", &adapter, "--data", &file, "--batch-size", "4"]);
    assert_eq!(alone, together);
    on(&base, "merge", &["--adapter", &adapter, "--output", &merged, "--dtype", "float32"]);
    assert_eq!(on(&merged, "eval", &["--data", &file, "--batch-size", "4"]), alone);
}

/// The base of the demo with other fields in its configuration.
fn demo_base_with(folder: &TempDir, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    let (from, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base"), folder.path().join("base"));
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let mut config: serde_json::Map<String, Value> =
        serde_json::from_str(&fs::read_to_string(to.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(to.join("config.json"), Value::Object(config).to_string()).unwrap();
    to.to_str().unwrap().to_owned()
}

/// BERT's pooler is no part of a masked language model: it is drawn, named, trained and saved.
#[test]
fn what_the_base_lacks_is_saved_with_the_adapter() {
    let row = |text: &str, label: &str| json!({"text": text, "label": label});
    let rows = [row("a b", "yes"), row("c d a", "no"), row("b", "yes")];
    let files = data(&[("train.jsonl", &rows)]);
    let base = files.path().join("base");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join("models/bert-masked").join(name), base.join(name)).unwrap();
    }
    let vocab = json!({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "c": 6, "d": 7});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(base.join("tokenizer_config.json"), json!({"pad_token": "[PAD]"}).to_string()).unwrap();
    let (base, file, adapter) = (base.to_str().unwrap(), at(&files, "train.jsonl"), at(&files, "adapter"));
    let run = |name: &str, rest: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        let output = command.args([name, "--model", base, "--data", &file]).args(rest).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        assert!(output.status.success(), "{err}");
        (out, err)
    };
    let (_, said) = run("train", &["--task", "seq-cls", "--output", &adapter, "--steps", "2"]);
    assert!(said.contains("no weights for bert.pooler, classifier"), "{said}");
    let folder = AdapterFolder::open(&adapter).unwrap();
    assert!(folder.tensors.shape("base_model.model.bert.pooler.dense.weight").is_some());
    assert_eq!(folder.config["modules_to_save"], json!(["bert.pooler", "classifier", "score"]));
    let (with, said) = run("eval", &["--adapter", &adapter]);
    assert!(!said.contains("random"), "{said}");
    assert_eq!(run("eval", &["--adapter", &adapter]).0, with);
    // As PEFT leaves it: the classifier alone. What is merged of it would compute with another pooler at each load.
    let forgetful = at(&files, "forgetful");
    fs::create_dir(&forgetful).unwrap();
    let mut config = folder.config.clone();
    config.insert("modules_to_save".into(), json!(["classifier", "score"]));
    fs::write(Path::new(&forgetful).join("adapter_config.json"), Value::Object(config).to_string()).unwrap();
    let kept = folder.tensors.keys().into_iter().filter(|it| !it.contains("pooler"));
    let kept = kept.map(|key| Stored { data: folder.tensors.floats(&key).unwrap(), key }).collect();
    write_tensors(Path::new(&forgetful).join("adapter_model.safetensors"), kept, FloatType::F32).unwrap();
    let merge = |adapter: &str| {
        let output = at(&files, "merged");
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        let output =
            command.args(["merge", "--model", base, "--adapter", adapter, "--output", &output]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (succeeds, said) = merge(&forgetful);
    assert!(
        !succeeds && said.contains("refusing to merge: neither the base nor an adapter holds `bert.pooler"),
        "{said}"
    );
    assert!(!Path::new(&at(&files, "merged")).exists());
    assert!(merge(&adapter).0);
    let (_, said) = run("eval", &["--task", "seq-cls", "--label-column", "label"]);
    assert!(said.contains("these weights are random"), "{said}");
}

/// An adapter that says no labels has those of the base, if its head has as many outputs; a file with some of them is read.
#[test]
fn an_adapter_without_labels_takes_the_names_of_the_base() {
    let row = |text: &str, label: &str| json!({"text": text, "label": label});
    let files = data(&[
        ("train.jsonl", &[row("grass", "green"), row("blood", "red"), row("sky", "blue")]),
        ("eval.jsonl", &[row("rose", "red"), row("tree", "green")]),
    ]);
    let names = json!({"0": "blue", "1": "green", "2": "red"});
    let base = demo_base_with(&files, |config| drop(config.insert("id2label".into(), names)));
    let adapter = at(&files, "adapter");
    let run = |rest: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_peft")).args(rest).args(["--model", &base]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let train = at(&files, "train.jsonl");
    run(&["train", "--task", "seq-cls", "--data", &train, "--output", &adapter, "--steps", "1"]);
    let eval = at(&files, "eval.jsonl");
    let with = run(&["eval", "--adapter", &adapter, "--data", &eval]);
    fs::remove_file(Path::new(&adapter).join(LABELS_FILE)).unwrap();
    assert_eq!(run(&["eval", "--adapter", &adapter, "--data", &eval]), with);
}
