//! Starts that are drawn from data, EVA and CorDA, against the reference.

use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use peft::core::files::checkpoint::{Stored, TensorFile};
use peft::core::{AdapterFolder, DEFAULT_ADAPTER, PeftModel, laws, nn};
use peft::lora::lora::data_init::{corda, eva};
use peft::lora::{CordaConfig, EvaConfig, LoraConfig};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};
use serde_json::{Map, Value};

use crate::parity::same;
use crate::support::{TOLERANCE, assert_close, device, distance, expected, find, fixtures, numbers};

fn folder(name: &str) -> PathBuf {
    fixtures().join("calibration").join(name)
}

fn about(name: &str) -> Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(folder(name).join("case.json")).unwrap()).unwrap()
}

fn base(name: &str) -> PeftModel<AutoCausalLm> {
    let model = about(name)["model"].as_str().unwrap().to_owned();
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(model), &device()).unwrap();
    PeftModel::new(model)
}

fn config(name: &str) -> LoraConfig {
    let about = about(name);
    let config = LoraConfig::parse(about["adapter"].as_object().unwrap().clone()).unwrap();
    let read = |field: &str| about[field].as_object().map(|it| Value::Object(it.clone()));
    let eva_config: Option<EvaConfig> = read("eva").map(|it| serde_json::from_value(it).unwrap());
    let corda_config: Option<CordaConfig> = read("corda").map(|it| serde_json::from_value(it).unwrap());
    let init_lora_weights = if eva_config.is_some() { "eva" } else { "corda" }.into();
    LoraConfig { eva_config, corda_config, init_lora_weights, task_type: Some("CAUSAL_LM".into()), ..config }
}

struct Batch {
    input: ModelInput,
    counted: Option<Vec<usize>>,
}

fn batches(name: &str, uses_labels: bool) -> Vec<Batch> {
    let file = TensorFile::open(folder(name).join("batches.safetensors")).unwrap();
    let grid = |at: usize, key: &str| {
        let key = format!("{at}.{key}");
        file.shape(&key).map(|_| file.integers(&key).unwrap())
    };
    let batch = |at: usize| {
        let mut input = ModelInput::ids(Tensor::from_data(grid(at, "input_ids").unwrap(), &device()));
        let mask = grid(at, "attention_mask");
        input.attention_mask = mask.clone().map(|it| Tensor::from_data(it, &device()));
        let counted = mask.map(|mask| {
            let (mask, labels) = (numbers(&mask), numbers(&grid(at, "labels").unwrap()));
            (0..mask.len()).filter(|it| mask[*it] == 1.0 && (!uses_labels || labels[*it] != -100.0)).collect()
        });
        Batch { input, counted }
    };
    (0..3).map(batch).collect()
}

fn logits(model: &AutoCausalLm, batch: &Batch) -> TensorData {
    nn::set_training(model.clone(), false).logits(&batch.input, None).into_data()
}

fn eva_started(name: &str) -> PeftModel<AutoCausalLm> {
    let mut peft = base(name);
    let config = config(name);
    let batches = batches(name, config.eva_config.as_ref().unwrap().use_label_mask);
    let forward = |model: &AutoCausalLm, batch: &&Batch| drop(model.logits(&batch.input, None));
    let config = eva::start(&peft, config, batches.iter(), forward, |it| it.counted.clone()).unwrap();
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    peft
}

/// The reference's directions and its ranks; the folder has its fields and loads.
fn check_eva(name: &str) {
    let peft = eva_started(name);
    let theirs = AdapterFolder::open(folder(name).join("adapter")).unwrap();
    let saved = tempfile::tempdir().unwrap();
    peft.save_adapter(saved.path(), DEFAULT_ADAPTER).unwrap();
    let ours = AdapterFolder::open(saved.path()).unwrap();
    let keys = |it: &AdapterFolder| {
        let mut keys = it.tensors.keys();
        keys.sort();
        keys
    };
    assert_eq!(keys(&ours), keys(&theirs));
    for key in ours.tensors.keys() {
        let (ours, wanted) = (ours.tensors.floats(&key).unwrap(), theirs.tensors.floats(&key).unwrap());
        assert_eq!(ours.shape(), wanted.shape(), "{key}");
        if key.ends_with("lora_A.weight") || key.ends_with("lora_B.weight") {
            assert_close(&key, &ours, &wanted);
        }
    }
    for field in ["rank_pattern", "alpha_pattern", "eva_config", "init_lora_weights", "r", "lora_alpha"] {
        assert!(same(&ours.config[field], &theirs.config[field]), "{field}: {}", ours.config[field]);
    }
    let mut loaded = base(name);
    loaded.load_adapter(folder(name).join("adapter"), DEFAULT_ADAPTER, &peft::methods()).unwrap();
}

#[test]
fn eva_starts_gpt2_as_the_reference_does() {
    check_eva("eva_gpt2");
}

#[test]
fn eva_starts_llama_as_the_reference_does() {
    check_eva("eva_llama");
}

#[test]
fn eva_whitens_as_the_reference_does() {
    check_eva("eva_whitened");
}

fn corda_started(name: &str) -> PeftModel<AutoCausalLm> {
    let mut peft = base(name);
    let forward = |model: &AutoCausalLm, batch: &Batch| drop(model.logits(&batch.input, None));
    let config = corda::start(&peft, config(name), batches(name, false), forward).unwrap();
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    peft
}

/// `B A` of every layer, by its path.
fn products(tensors: &[Stored]) -> Vec<(String, TensorData)> {
    let factor = |data: &TensorData| Tensor::<2>::from_data(data.clone(), &device());
    let product = |it: &Stored| {
        let module = it.key.strip_suffix(".lora_A.weight")?;
        let b = factor(find(tensors, &format!("{module}.lora_B.weight")));
        Some((module.to_owned(), b.matmul(factor(&it.data)).into_data()))
    };
    tensors.iter().filter_map(product).collect()
}

fn recorded(name: &str, prefix: &str) -> Vec<Stored> {
    let all = expected(&folder(name).join("expected.safetensors"));
    let own = all.into_iter().filter_map(|(key, data)| Some((key.strip_prefix(prefix)?.to_owned(), data)));
    own.filter(|(key, _)| key != "logits").map(|(key, data)| Stored { key, data }).collect()
}

fn check_corda(name: &str) {
    let mut peft = corda_started(name);
    let batch = &batches(name, false)[0];
    let wanted = expected(&folder(name).join("expected.safetensors"));

    let started = products(&peft.adapter_tensors(DEFAULT_ADAPTER).unwrap());
    let theirs = products(&recorded(name, "start."));
    assert_eq!(started.len(), theirs.len());
    for ((module, ours), (_, wanted)) in started.iter().zip(&theirs) {
        // The inverse of a covariance enlarges what is rounded differently: 1.2e-4 on the CPU, 1.3e-4 on wgpu.
        let limit = 5.0 * TOLERANCE;
        let error = distance(ours, wanted);
        assert!(error < limit, "{module}: {error}");
    }
    let plain = logits(base(name).model(), batch);
    assert!(distance(&logits(peft.model(), batch), &plain) < TOLERANCE, "nothing is trained yet");

    peft.assign_adapter(DEFAULT_ADAPTER, recorded(name, "trained.")).unwrap();
    let trained = logits(peft.model(), batch);
    assert!(distance(&trained, &plain) > 1e-2);
    assert_close("trained", &trained, &wanted["trained.logits"]);

    // The folder is plain LoRA of twice the rank, as the reference converts it, and each reads the other's.
    let saved = tempfile::tempdir().unwrap();
    peft.save_adapter(saved.path(), DEFAULT_ADAPTER).unwrap();
    for folder in [saved.path().to_owned(), folder(name).join("adapter")] {
        let mut loaded = base(name);
        loaded.load_adapter(&folder, DEFAULT_ADAPTER, &peft::methods()).unwrap();
        assert_close("loaded", &logits(loaded.model(), batch), &wanted["trained.logits"]);
        let merged = loaded.merge().unwrap();
        assert_close("merged", &logits(&merged, batch), &wanted["trained.logits"]);
    }
    let (ours, theirs) = (AdapterFolder::open(saved.path()).unwrap(), folder(name).join("adapter"));
    let theirs = AdapterFolder::open(theirs).unwrap();
    for key in theirs.tensors.keys() {
        assert_eq!(ours.tensors.shape(&key), theirs.tensors.shape(&key), "{key}");
    }
    for field in ["rank_pattern", "alpha_pattern", "init_lora_weights", "r", "use_rslora"] {
        assert!(same(&ours.config[field], &theirs.config[field]), "{field}: {}", ours.config[field]);
    }
    let alpha = |it: &AdapterFolder| it.config["lora_alpha"].as_f64().unwrap();
    assert!((alpha(&ours) - alpha(&theirs)).abs() < 1e-9);

    // A run goes on from its own folder.
    let before = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
    peft.restore_adapter(DEFAULT_ADAPTER, &ours).unwrap();
    for (old, new) in before.iter().zip(peft.adapter_tensors(DEFAULT_ADAPTER).unwrap()) {
        assert_eq!(numbers(&old.data), numbers(&new.data), "{}", old.key);
    }
}

#[test]
fn corda_starts_gpt2_as_the_reference_does() {
    check_corda("corda_gpt2");
}

#[test]
fn corda_starts_llama_as_the_reference_does() {
    check_corda("corda_llama");
}

#[test]
fn a_start_from_data_needs_data() {
    let mut peft = base("eva_gpt2");
    let refused = |peft: &mut PeftModel<AutoCausalLm>, config: LoraConfig| {
        peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap_err().to_string()
    };
    assert!(refused(&mut peft, config("eva_gpt2")).contains("eva::start"));
    assert!(refused(&mut peft, config("corda_gpt2")).contains("corda::start"));

    let forward = |model: &AutoCausalLm, batch: &&Batch| drop(model.logits(&batch.input, None));
    let few = |_: &&Batch| Some(vec![0, 1, 2]);
    let data = batches("eva_gpt2", true);
    let start = |config: LoraConfig, data: &[Batch]| {
        eva::start(&peft, config, data.iter(), forward, few).map(|_| ()).unwrap_err().to_string()
    };
    assert!(start(config("eva_gpt2"), &[]).contains("no batches"));
    assert!(start(config("eva_gpt2"), &data).contains("larger ones"));
    let wide = LoraConfig { r: 20, ..config("eva_gpt2") };
    assert!(start(wide, &data).contains("its input has 32"));
    assert!(start(LoraConfig::new(4, 6.0), &data).contains("must be `eva`"));
}
