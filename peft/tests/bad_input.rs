//! What a user, a file or a disk can get wrong: an error that names the thing, and nothing damaged.

use std::fs;
use std::path::Path;

use peft::core::files::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
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
fn what_no_memory_holds_is_refused_before_it_is_allocated() {
    let wide = |r| LoraConfig::new(r, 6.0).targets(["q_proj"]);
    let error = refused(wide(i32::MAX as usize));
    assert!(error.contains("LoRA on") && error.contains("TB of memory"), "{error}");
    assert!(refused(wide(1_000_000_000_000)).contains("`r` is 1000000000000"));
    assert!(refused(wide(usize::MAX)).contains("`r` is 18446744073709551615"));
    assert!(refused(LoraConfig { lora_alpha: 1e308, ..wide(4) }).contains("`lora_alpha`"));
    // Of every method: numbers of a file, and what they ask for beside what is trained.
    let registry = peft::methods();
    let names: Vec<String> = registry.names().map(str::to_owned).collect();
    for name in names {
        let known = registry.described().iter().find(|it| it.about.peft_type == name).unwrap();
        let fields = (known.defaults)().unwrap();
        let counts = fields.iter().filter(|(_, value)| value.is_u64()).map(|(field, _)| field.as_str());
        let counts: Vec<&str> =
            counts.chain(fields.keys().map(String::as_str).filter(|it| it.starts_with("num_"))).collect();
        for (field, number) in
            counts.into_iter().flat_map(|it| [i64::from(i32::MAX), i64::MAX].map(|number| (it, number)))
        {
            let mut json = fields.clone();
            json.insert("peft_type".into(), name.clone().into());
            json.insert("num_virtual_tokens".into(), 4.into());
            json.insert(field.to_owned(), number.into());
            let mut peft = base("llama-tiny");
            // Some numbers are harmless. The others are errors, and no allocation aborts the process.
            let added = registry
                .parse(json)
                .and_then(|config| peft.add_adapter_as("a", config, 0).map(|plan| plan.trainable()));
            if let Ok(trainable) = added {
                assert!(trainable < 1_000_000, "{name} {field}: {trainable}");
            }
        }
    }
}

#[test]
fn a_target_of_another_architecture_is_left_out_and_said() {
    let mut peft = base("llama-tiny");
    let config = LoraConfig::new(4, 6.0).targets(["q_proj", "v_proj", "query_key_value", "w3"]);
    let plan = peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap();
    let note = plan.notes.join("\n");
    assert!(
        note.contains("`query_key_value`, `w3`") && note.contains("as PEFT does") && note.contains("gate_proj"),
        "{note}"
    );
    // As in PEFT, the list stays as it was given.
    let saved = peft.adapter_config(DEFAULT_ADAPTER).unwrap();
    assert_eq!(saved["target_modules"].as_array().unwrap().len(), 4);
    assert!(refused(LoraConfig::new(4, 6.0).targets(["q_proj", "v_porj"])).contains("did you mean v_proj"));
}

#[test]
fn a_folder_that_is_no_adapter_of_peft_says_what_it_is() {
    let say = |files: &[&str], config: &str| {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
            fs::write(folder.path().join(file), "x").unwrap();
        }
        if !config.is_empty() {
            fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        }
        load(folder.path(), &peft::methods())
    };
    let lora = r#"{"peft_type": "LORA", "target_modules": ["q_proj"]}"#;
    assert!(say(&["adapter_model.bin"], lora).contains("a pickle"));
    assert!(say(&["adapters.safetensors"], r#"{"fine_tune_type": "lora", "num_layers": 4}"#).contains("mlx-lm"));
    assert!(say(&["adapters.safetensors"], r#"{"lora_parameters": {"rank": 8}}"#).contains("mlx-lm"));
    assert!(say(&["pytorch_lora_weights.safetensors"], "").contains("diffusers"));
    assert!(say(&["config.json", "model.safetensors"], "").contains("is a model, no adapter"));
    assert!(say(&["ggml-adapter.gguf"], "").contains("GGUF"));
    assert!(say(&["checkpoint-500/adapter_config.json"], "").contains("holds checkpoints"));
    assert!(load(Path::new("nowhere"), &peft::methods()).contains("there is no such folder"));

    let old = r#"{"peft_type": "OFT", "r": 8, "inference_mode": true, "target_modules": ["q_proj"]}"#;
    let folder = copy_of("llama_lora_default");
    fs::write(folder.path().join("adapter_config.json"), old).unwrap();
    let error = load(folder.path(), &peft::methods());
    assert!(error.contains("oft_block_size") && error.contains("PEFT 0.13"), "{error}");
}

#[test]
fn keys_with_the_names_of_adapters_and_wrappers_load() {
    let folder = copy_of("llama_lora_default");
    let plain = TensorFile::open(folder.path().join("adapter_model.safetensors")).unwrap();
    for name in [
        |key: &str| key.replace(".weight", ".default.weight"),
        |key: &str| format!("module.{key}"),
        |key: &str| format!("_orig_mod.{key}"),
    ] {
        let stored = |key: String| Stored { data: plain.floats(&key).unwrap(), key: name(&key) };
        let tensors = plain.keys().into_iter().map(stored).collect();
        let other = copy_of("llama_lora_default");
        write_tensors(other.path().join("adapter_model.safetensors"), tensors, FloatType::F32).unwrap();
        let mut peft = base("llama-tiny");
        peft.load_adapter(other.path(), DEFAULT_ADAPTER, &peft::methods()).unwrap();
        for Stored { key, data } in peft.adapter_tensors(DEFAULT_ADAPTER).unwrap() {
            assert_eq!(data, plain.floats(&key).unwrap(), "{key}");
        }
    }
}

#[test]
fn a_fresh_adapter_names_the_base_that_it_was_made_on() {
    let template = r#"{"peft_type": "LORA", "base_model_name_or_path": "someone/else", "revision": "abc", "r": 4}"#;
    let mut peft = base("llama-tiny");
    let config = peft::methods().parse(serde_json::from_str(template).unwrap()).unwrap();
    peft.add_adapter(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save(folder.path()).unwrap();
    let saved = peft::core::read_config(folder.path()).unwrap();
    assert!(saved["base_model_name_or_path"].as_str().unwrap().ends_with("llama-tiny"), "{saved:?}");
    assert!(saved["revision"].is_null());
    // One that was loaded keeps the name that its author gave.
    let mut again = base("llama-tiny");
    again.set_base_name("another/place");
    again.load_adapter(folder.path(), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    assert_eq!(
        again.adapter_config(DEFAULT_ADAPTER).unwrap()["base_model_name_or_path"],
        saved["base_model_name_or_path"]
    );
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

/// A pipe would wait for somebody who writes into it, and a device has no end.
#[cfg(unix)]
#[test]
fn tensors_are_read_from_plain_files_only() {
    let error = peft::core::checkpoint::TensorFile::open("/dev/zero").unwrap_err().to_string();
    assert!(error.contains("/dev/zero is not usable: it is no plain file"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("inputs.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = peft::core::checkpoint::TensorFile::open(&pipe).unwrap_err().to_string();
    assert!(error.contains("it is no plain file"), "{error}");
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
