//! The program that the README shows, on real files.

use std::fs;
use std::path::Path;

use peft::core::LABELS_FILE;
use peft::prelude::*;
use serde_json::{Value, json};

use crate::support::{device, fixtures, numbers, registry};

fn demo(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(file).display().to_string()
}

fn read(folder: &Path, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

#[test]
fn a_language_model_is_loaded_trained_saved_and_loaded_again() {
    let base = AutoCausalLm::load(demo("base"), &device()).unwrap();
    let data = TextData::file(demo("voice_eval.txt")).causal_lm(&base).unwrap();
    let mut model = PeftModel::new(base);
    let plan = model.add_adapter(LoraConfig::new(4, 8.0).targets(["c_attn"])).unwrap();
    assert!(plan.trainable() > 0);
    let before = data.evaluate(&nn::eval(model.model()), 8, &device()).unwrap().loss;
    let config = TrainConfig { learning_rate: 1e-2, max_steps: Some(4), ..Default::default() };
    let folder = tempfile::tempdir().unwrap();
    let outcome = Trainer::new(&mut model, &data, config).output(folder.path()).run().unwrap();
    model.save(folder.path()).unwrap();
    assert_eq!(outcome.steps, 4);

    let written = read(folder.path(), "adapter_config.json");
    assert_eq!(written["base_model_name_or_path"], demo("base").as_str());
    assert_eq!((&written["task_type"], &written["r"]), (&json!("CAUSAL_LM"), &json!(4)));
    assert!(folder.path().join("train_log.jsonl").is_file());
    assert!(!folder.path().join(LABELS_FILE).exists());

    let mut again = PeftModel::new(AutoCausalLm::load(demo("base"), &device()).unwrap());
    again.load_adapter(folder.path(), "default", &registry().methods).unwrap();
    let evaluate =
        |model: &PeftModel<AutoCausalLm>| data.evaluate(&nn::eval(model.model()), 8, &device()).unwrap().loss;
    assert_eq!(evaluate(&again), evaluate(&model));
    assert!(evaluate(&model) < before);
}

#[test]
fn a_classifier_takes_its_labels_from_the_data_and_saves_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let rows: Vec<String> = ["spam", "ham", "eggs"].map(|it| json!({"text": it, "label": it}).to_string()).into();
    fs::write(&file, rows.join("\n")).unwrap();
    let data = TextData::file(&file);
    let labels = data.label_set().unwrap();

    let options = ClassifierOptions { pad_token_id: Some(0), ..ClassifierOptions::for_labels(&labels.to_labels()) };
    let base = AutoSequenceClassifier::load(demo("base"), &device(), &options).unwrap();
    let task = data.sequence_classification(&base, &labels).unwrap();
    let mut model = PeftModel::new(base);
    model.add_adapter(LoraConfig::new(2, 4.0)).unwrap();
    let config = TrainConfig { max_steps: Some(1), ..Default::default() };
    Trainer::new(&mut model, &task, config).run().unwrap();
    model.save(folder.path()).unwrap();

    let written = read(folder.path(), "adapter_config.json");
    assert_eq!(written["task_type"], "SEQ_CLS");
    // The head that the checkpoint lacks is trained whole, as with PEFT where the configuration names the task.
    assert_eq!(written["modules_to_save"], json!(["classifier", "score"]));
    let names: Vec<&str> = labels.names.iter().map(String::as_str).collect();
    let id2label: serde_json::Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    assert_eq!(read(folder.path(), LABELS_FILE)["id2label"], Value::Object(id2label));
}

#[test]
fn an_adapter_that_leaves_the_head_alone_has_no_labels() {
    let labels = peft::core::Labels { problem_type: None, names: vec!["a".into(), "b".into(), "c".into()] };
    let base = AutoCausalLm::load(fixtures().join("models/llama-tiny").display().to_string(), &device()).unwrap();
    let spec = base.spec().with_labels(labels.clone());
    let mut model = PeftModel::with_spec(base, spec);
    model.add_adapter(LoraConfig::new(2, 4.0)).unwrap();
    assert_eq!(model.adapters()["default"].labels, None);
    assert!(!numbers(&model.adapter_tensors("default").unwrap()[0].data).is_empty());
}
