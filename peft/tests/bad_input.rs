//! What a user, a file or a disk can get wrong: an error that names the thing, and nothing damaged.

use std::fs;
use std::path::Path;

use peft::core::{DEFAULT_ADAPTER, MethodRegistry, Names, PeftModel};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::tasks::data::TextData;

use crate::support::{device, fixtures};

fn base(model: &str) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(model), &device()).unwrap();
    PeftModel::new(model)
}

fn refused(config: LoraConfig) -> String {
    let mut peft = base("llama-tiny");
    let error = peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap_err().to_string();
    assert!(peft.adapters().is_empty(), "a refused adapter leaves nothing behind");
    error
}

#[test]
fn a_misspelt_target_names_its_neighbours() {
    assert!(refused(LoraConfig::new(4, 6.0).targets(["qproj"])).contains("did you mean q_proj"));
    let half = refused(LoraConfig::new(4, 6.0).targets(["q_proj", "vproj"]));
    assert!(half.contains("vproj") && half.contains("v_proj"), "{half}");
    assert!(refused(LoraConfig::new(4, 6.0).targets(["self_attn"])).contains("not a linear layer"));
}

#[test]
fn parameters_that_cannot_be_targets_are_named() {
    let on = |name: &str| LoraConfig { target_parameters: Some(vec![name.into()]), ..LoraConfig::new(4, 6.0) };
    let alone = |name: &str| LoraConfig { target_modules: Some(Names::List(Vec::new())), ..on(name) };
    let misspelt = refused(alone("q_proj.wieght"));
    assert!(misspelt.contains("did you mean q_proj.weight"), "{misspelt}");
    assert!(refused(alone("q_proj")).contains("target_parameters"));
    assert!(refused(alone("norm.weight")).contains("1 axes"));
    // Without `target_modules` those that LLaMA has by default are adapted too.
    assert!(refused(on("q_proj.weight")).contains("an empty list prevents them"));
    assert!(
        refused(LoraConfig { r: 5, init_lora_weights: "orthogonal".into(), ..alone("q_proj.weight") }).contains("even")
    );
    let mut both = base("llama-tiny");
    let plan = both.add_adapter_as(DEFAULT_ADAPTER, on("o_proj.weight"), 0).unwrap();
    assert_eq!(plan.rows.len(), 6);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let plain = || LoraConfig::new(4, 6.0).targets(["q_proj"]);
    assert!(refused(LoraConfig { r: 0, ..plain() }).contains("`r`"));
    assert!(refused(LoraConfig { lora_dropout: 1.0, ..plain() }).contains("`lora_dropout`"));
    assert!(refused(LoraConfig { init_lora_weights: "corda".into(), ..plain() }).contains("corda"));
    assert!(refused(LoraConfig { modules_to_save: Some(vec!["lmhead".into()]), ..plain() }).contains("lm_head"));
    assert!(refused(LoraConfig { r: 100, init_lora_weights: "pissa".into(), ..plain() }).contains("singular"));
}

#[test]
fn an_unknown_field_that_is_switched_on_is_refused_and_one_that_is_off_is_kept() {
    let parse = |text: &str| LoraConfig::parse(serde_json::from_str(text).unwrap());
    let error = parse(r#"{"peft_type": "LORA", "r": 4, "use_qalora": true}"#).unwrap_err().to_string();
    assert!(error.contains("use_qalora"), "{error}");
    let kept = parse(r#"{"peft_type": "LORA", "r": 4, "some_future_switch": false}"#).unwrap();
    let json = peft::core::PeftConfig::to_json(&kept).unwrap();
    assert_eq!(json["some_future_switch"], serde_json::Value::Bool(false));
}

fn copy_of(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let from = fixtures().join("cases").join(case).join("default").join(file);
        fs::copy(from, folder.path().join(file)).unwrap();
    }
    folder
}

fn load(folder: &Path, methods: &MethodRegistry) -> String {
    let mut peft = base("llama-tiny");
    let error = peft.load_adapter(folder, DEFAULT_ADAPTER, methods).unwrap_err().to_string();
    assert!(peft.adapters().is_empty() && peft.active().is_empty());
    error
}

#[test]
fn damaged_adapter_folders_are_refused() {
    let folder = copy_of("llama_lora_default");
    let weights = folder.path().join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert!(load(folder.path(), &peft::methods()).contains("truncated"));
    fs::write(&weights, b"not a safetensors file").unwrap();
    assert!(load(folder.path(), &peft::methods()).contains("adapter_model.safetensors"));
    fs::remove_file(&weights).unwrap();
    assert!(load(folder.path(), &peft::methods()).contains("it has no `adapter_model.safetensors`"));
    fs::write(folder.path().join("adapter_config.json"), "{").unwrap();
    assert!(load(folder.path(), &peft::methods()).contains("adapter_config.json"));
    assert!(load(&fixtures().join("models"), &peft::methods()).contains("no adapter folder"));
    let other = copy_of("gpt2_lora_default");
    assert!(load(other.path(), &peft::methods()).contains("target_modules"));
    let unknown = copy_of("llama_lora_default");
    assert!(load(unknown.path(), &MethodRegistry::new()).contains("LORA"));
}

#[test]
fn a_save_that_fails_leaves_the_old_folder_whole() {
    let mut peft = base("llama-tiny");
    peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(4, 6.0), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
    let before = fs::read(folder.path().join("adapter_model.safetensors")).unwrap();

    let mut tensors = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    let shape = tensors[0].data.shape().clone();
    tensors[0].data = burn::tensor::TensorData::new(vec![f32::NAN; shape.num_elements()], shape);
    peft.assign_adapter(DEFAULT_ADAPTER, tensors).unwrap();
    let error = peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
    assert_eq!(fs::read(folder.path().join("adapter_model.safetensors")).unwrap(), before);

    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(peft.save_adapter(&file, DEFAULT_ADAPTER).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn data_files_say_which_line_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        TextData::file(&file).label_set().map(|_| ()).unwrap_err().to_string()
    };
    assert!(read("").contains("rows.jsonl"));
    assert!(read("{\"text\": \"a\", \"label\": 1}\n{\"text\":").contains("line 2"));
    assert!(read("{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\"}\n").contains("line 2"));
}

#[test]
fn a_prompt_of_several_tasks_wants_to_know_the_task_of_every_row() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let read = |text: &str, packing: bool| {
        fs::write(&file, text).unwrap();
        TextData::file(&file).tasks(2).packing(packing).causal_lm(&base).map(|it| it.len()).map_err(|it| it.to_string())
    };
    let good = "{\"text\": \"a b\", \"task_id\": 1}\n";
    assert_eq!(read(good, false), Ok(1));
    assert!(read(good, true).unwrap_err().contains("packing"));
    let bare = read(&format!("{good}{{\"text\": \"a b\"}}\n"), false).unwrap_err();
    assert!(bare.contains("line 2") && bare.contains("task_id"), "{bare}");
    assert!(read("{\"text\": \"a b\", \"task_id\": 2}\n", false).unwrap_err().contains("0 to 1"));
}
