//! Merged checkpoints: what they compute, what they say of themselves, and what is never lost.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft::core::files::checkpoint::{Checkpoint, FloatType, Stored, TensorFile, write_tensors};
use peft::core::files::shards::ShardSize;
use peft::core::{DEFAULT_ADAPTER, PeftModel, Result};
use peft::folder::merge::{MergeReport, MergeRequest, merge};
use peft::load::AdapterSource;
use peft::lora::{Bias, LoraConfig, TokenIndices};
use peft::models::auto::{self, ClassifierOptions};
use peft::models::common::config::RawConfig;
use peft::run::ForwardRequest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{assert_close, case, device, device_for, expected, find, fixtures, forward, registry, request};

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// The adapters of a recorded case, merged into its base.
fn merge_case(name: &str, output: &Path) -> Result<MergeReport> {
    let ForwardRequest { model, task, adapters, .. } = request(name);
    let output = output.to_path_buf();
    let task = (task != "feature-extraction").then_some(task);
    let request = MergeRequest { base: model, adapters, output, task, ..MergeRequest::default() };
    merge(&request, registry(), &device_for(&case(name).model))
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

/// A folder with other values of some tensors, and other fields in `config.json`.
fn edited(
    base: &Path,
    fields: &[(&str, Value)],
    mut change: impl FnMut(&str, TensorData) -> Option<TensorData>,
) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut json = config(base);
    for (field, value) in fields {
        json[*field] = value.clone();
    }
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let file = TensorFile::open(base.join("model.safetensors")).unwrap();
    let stored = |key: String| Some(Stored { data: change(&key, file.floats(&key).unwrap())?, key });
    let tensors = file.keys().into_iter().filter_map(stored).collect();
    write_tensors(folder.path().join("model.safetensors"), tensors, FloatType::F32).unwrap();
    folder
}

/// Whether an adapter touches what has a row for every token, or a head.
fn touches_tables(folder: &Path) -> bool {
    let file = TensorFile::open(folder.join("adapter_model.safetensors")).unwrap();
    let names =
        ["wte", "embed_tokens", "shared", "word_embeddings", "embed_in", "lm_head", "score", "classifier", "decoder."];
    file.keys().iter().any(|key| names.iter().any(|it| key.contains(it)))
}

/// Every recorded case that changes a table or a head, and the first of each model: the merged folder, read as a plain
/// model, computes what PEFT's live model did.
#[test]
fn a_merged_folder_computes_what_the_live_model_does() {
    let mut names: Vec<String> = fs::read_dir(fixtures().join("cases"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let (mut models, mut merged) = (Vec::new(), 0);
    for name in names {
        let recorded = case(&name);
        let adapters = request(&name).adapters;
        // With an adapter, the reference forgets which text a token is of; without it does not.
        if recorded.task == "question-answering" {
            continue;
        }
        let is_first = !models.contains(&recorded.model);
        if adapters.is_empty() || !(is_first || adapters.iter().any(|it| touches_tables(&it.folder))) {
            continue;
        }
        let output = tempfile::tempdir().unwrap();
        let report = match merge_case(&name, &output.path().join("merged")) {
            Ok(report) => report,
            // Prompts are no weights.
            Err(error) if error.to_string().contains("merging into") => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        models.push(recorded.model.clone());
        merged += 1;
        let plain = ForwardRequest { model: output.path().join("merged"), adapters: Vec::new(), ..request(&name) };
        let got = forward(&plain, &device_for(&recorded.model)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let wanted = expected(&fixtures().join("cases").join(&name).join("expected.safetensors"));
        let outputs = ["logits", "sample", "last_hidden_state"];
        let logits = *outputs.iter().find(|it| wanted.contains_key(**it)).unwrap();
        // bf16 and f16 bases are rounded again.
        if report.float == FloatType::F32 {
            assert_close(&name, find(&got, logits), &wanted[logits]);
        }
    }
    assert!(merged > 100, "only {merged} cases were merged");
}

#[test]
fn the_configuration_says_what_was_written() {
    let output = tempfile::tempdir().unwrap();
    let folder = output.path().join("resized");
    merge_case("llama_resized_lora", &folder).unwrap();
    let rows = Checkpoint::open(&folder).unwrap();
    let rows = rows.file("model.embed_tokens.weight").unwrap().shape("model.embed_tokens.weight").unwrap()[0];
    let json = config(&folder);
    assert_ne!(rows as u64, config(&model("llama-tiny"))["vocab_size"].as_u64().unwrap());
    assert_eq!(json["vocab_size"], rows);
    assert_eq!(json["architectures"], json!(["LlamaForCausalLM"]));

    // A table that moved without its head.
    let folder = output.path().join("untied");
    merge_case("gpt2_lora_wte", &folder).unwrap();
    assert_eq!(config(&folder)["tie_word_embeddings"], false);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let head = checkpoint.file("lm_head.weight").unwrap().floats("lm_head.weight").unwrap();
    let base = TensorFile::open(model("gpt2-tiny").join("model.safetensors")).unwrap();
    assert_eq!(head, base.floats("transformer.wte.weight").unwrap(), "the head reads the table without the adapter");
    // Rows that move the head along leave it tied.
    let folder = output.path().join("tied");
    merge_case("gpt2_lora_tokens", &folder).unwrap();
    assert_ne!(config(&folder)["tie_word_embeddings"], false);
    assert!(!Checkpoint::open(&folder).unwrap().contains("lm_head.weight"));
}

#[test]
fn a_dtype_is_written_and_said() {
    let output = tempfile::tempdir().unwrap();
    for (at, (base, asked, wanted)) in [
        ("llama-bf16", None, "bfloat16"),
        ("llama-bf16", Some(FloatType::F32), "float32"),
        ("llama-tiny", Some(FloatType::F16), "float16"),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = output.path().join(at.to_string());
        let old = edited(&model(base), &[("torch_dtype", json!("bfloat16"))], |_, it| Some(it));
        let source = if asked.is_none() { model(base) } else { old.path().to_path_buf() };
        let request = MergeRequest { base: source, output: folder.clone(), float: asked, ..MergeRequest::default() };
        merge(&request, registry(), &device()).unwrap();
        let json = config(&folder);
        assert_eq!(json["dtype"], wanted);
        assert!(json.get("torch_dtype").is_none_or(|it| it == wanted), "{json}");
        assert_eq!(Checkpoint::open(&folder).unwrap().float_type().to_string(), wanted);
    }
}

/// The head of an adapter is the head of the folder: its class, its labels, and where a text ends.
#[test]
fn a_classifier_says_its_class_labels_and_padding() {
    let output = tempfile::tempdir().unwrap();
    let (adapter, folder) = (output.path().join("adapter"), output.path().join("merged"));
    let options = ClassifierOptions { num_labels: Some(3), ..ClassifierOptions::default() };
    let base = edited(&model("llama-tiny"), &[("pad_token_id", Value::Null)], |_, it| Some(it));
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base/tokenizer.json"),
        base.path().join("tokenizer.json"),
    )
    .unwrap();
    let (classifier, report) = auto::load_sequence_classifier(base.path(), &device(), &options).unwrap();
    assert_eq!(report.missing, ["score.weight"]);
    let mut peft = PeftModel::new(classifier);
    peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0), 0).unwrap();
    peft.save_adapter(&adapter, DEFAULT_ADAPTER).unwrap();
    let adapters = vec![AdapterSource::new(&adapter)];
    let request =
        MergeRequest { base: base.path().into(), adapters, output: folder.clone(), ..MergeRequest::default() };
    assert_eq!(merge(&request, registry(), &device()).unwrap().task, "seq-cls");
    let json = config(&folder);
    assert_eq!(json["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(json["id2label"], json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}));
    assert_eq!(json["label2id"], json!({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}));
    assert!(json["pad_token_id"].is_u64(), "{json}");
    let (_, report) = auto::load_sequence_classifier(&folder, &device(), &ClassifierOptions::default()).unwrap();
    assert!(report.missing.is_empty(), "{report}");
}

#[test]
fn shards_hold_what_one_file_holds() {
    let output = tempfile::tempdir().unwrap();
    let [whole, sharded] = ["whole", "sharded"].map(|it| output.path().join(it));
    for (folder, max_shard_size) in [(&whole, ShardSize::default()), (&sharded, ShardSize(8_000))] {
        let request = MergeRequest {
            base: model("llama-tiny"),
            output: folder.clone(),
            max_shard_size,
            ..MergeRequest::default()
        };
        merge(&request, registry(), &device()).unwrap();
    }
    assert!(sharded.join("model.safetensors.index.json").is_file() && !sharded.join("model.safetensors").exists());
    let [whole, sharded] = [&whole, &sharded].map(|it| Checkpoint::open(it).unwrap());
    assert!(whole.keys().eq(sharded.keys()));
    for key in whole.keys() {
        let [a, b] = [&whole, &sharded].map(|it| it.file(key).unwrap().floats(key).unwrap());
        assert_eq!(a, b, "{key}");
    }
}

#[test]
fn a_checkpoint_is_replaced_only_if_asked_and_other_files_stay() {
    let output = tempfile::tempdir().unwrap();
    let folder = output.path().join("out");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    let request = MergeRequest { base: model("llama-tiny"), output: folder.clone(), ..MergeRequest::default() };
    merge(&request, registry(), &device()).unwrap();
    let error = merge(&request, registry(), &device()).unwrap_err().to_string();
    assert!(error.contains("--overwrite") && error.contains("config.json"), "{error}");
    fs::write(folder.join("pytorch_model.bin"), "old").unwrap();
    merge(&MergeRequest { overwrite: true, ..request.clone() }, registry(), &device()).unwrap();
    assert_eq!(fs::read_to_string(folder.join("notes.txt")).unwrap(), "mine");
    assert!(!folder.join("pytorch_model.bin").exists(), "weights of another model");
    for source in [&request.base, &fixtures().join("cases/llama_lora_default/default")] {
        let adapters = vec![AdapterSource::new(fixtures().join("cases/llama_lora_default/default"))];
        let over = MergeRequest { output: source.clone(), adapters, overwrite: true, ..request.clone() };
        assert!(merge(&over, registry(), &device()).unwrap_err().to_string().contains("--output"));
    }
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 1, "nothing is left beside");
}

#[test]
fn numbers_that_are_none_are_refused_by_name() {
    let output = tempfile::tempdir().unwrap();
    let folder = output.path().join("out");
    let broken = edited(&model("llama-tiny"), &[], |key, mut data| {
        if key == "model.norm.weight" {
            data.as_mut_slice::<f32>().unwrap()[3] = f32::NAN;
        }
        Some(data)
    });
    let adapter = |strength| vec![AdapterSource { strength, ..request("llama_lora_default").adapters.remove(0) }];
    for (base, strength, float, parts) in [
        (
            broken.path().to_path_buf(),
            1.0,
            FloatType::F32,
            ["model.safetensors is not usable: `model.norm.weight`", "NaN"],
        ),
        (model("llama-tiny"), 1e30, FloatType::F16, ["q_proj.weight`", "too large for float16"]),
        (model("llama-tiny"), 1e300, FloatType::F32, ["q_proj.weight`", "once the adapters are folded in"]),
    ] {
        let request = MergeRequest {
            base,
            adapters: adapter(strength),
            output: folder.clone(),
            float: Some(float),
            ..MergeRequest::default()
        };
        let error = merge(&request, registry(), &device()).unwrap_err().to_string();
        assert!(parts.iter().all(|it| error.contains(it)), "{error}");
        assert!(!folder.exists(), "nothing is written");
    }
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
}

/// BERT's pooler is not part of a masked language model: it is drawn, and must come with the adapter.
#[test]
fn what_the_base_lacks_is_known() {
    let (classifier, _) =
        auto::load_sequence_classifier(model("bert-masked"), &device(), &ClassifierOptions::default()).unwrap();
    let mut peft = PeftModel::new(classifier);
    let drawn = peft.drawn();
    assert!(drawn.contains(&"bert.pooler.dense.weight".to_owned()), "{drawn:?}");
    assert!(drawn.contains(&"classifier.bias".to_owned()), "{drawn:?}");
    peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0), 0).unwrap();
    assert!(peft.drawn().iter().all(|it| it.starts_with("bert.pooler")), "the head is saved by itself");
    let saved = ["bert.pooler".to_owned()];
    let config = LoraConfig { modules_to_save: Some(saved.to_vec()), ..LoraConfig::new(2, 4.0) };
    peft.delete_adapter(DEFAULT_ADAPTER).unwrap();
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap();
    assert_eq!(peft.drawn(), Vec::<String>::new());
}

/// Every way in which a table and the head that is tied to it can be adapted, in every family that ties them.
#[test]
fn merged_is_live_for_every_tied_head_and_every_way_to_adapt_it() {
    for (base, case) in [
        ("llama-tied", "llama_tied_base"),
        ("gpt2-tiny", "gpt2_base"),
        ("bloom-tiny", "bloom_base"),
        ("opt-tiny", "opt_base"),
        ("gptneo-tiny", "gptneo_base"),
        ("gemma2-tiny", "gemma2_base"),
        ("chatglm1-tiny", "chatglm1_base"),
        ("t5-tiny", "t5_base"),
        ("bart-tiny", "bart_base"),
        ("bert-masked", "bert_masked_base"),
        ("roberta-masked", "roberta_masked_base"),
        ("deberta-masked", "deberta_masked_base"),
        ("modernbert-masked", "modernbert_masked_base"),
        ("blip2-tiny", "blip2_base"),
        ("blip2-t5", "blip2_t5_base"),
    ] {
        let request = request(case);
        // The recorded one does not scale what goes into its head.
        let mut text = config(&model(base))["text_config"].clone();
        let scaled = (base == "blip2-t5").then(|| {
            text["scale_decoder_outputs"] = json!(true);
            edited(&model(base), &[("text_config", text)], |_, it| Some(it))
        });
        let base_folder = scaled.as_ref().map_or_else(|| model(base), |it| it.path().to_path_buf());
        let task = registry().tasks.get(&request.task).unwrap();
        let load = || {
            let options = ClassifierOptions::default();
            PeftModel::new(task.load(&registry().architectures, &base_folder, &device(), &options).unwrap())
        };
        let spec = load().spec().clone();
        let table = match &spec.prompts {
            Some(prompts) => prompts.table.clone(),
            None => spec.token_table().unwrap().module.clone(),
        };
        let table = table.rsplit('.').next().unwrap().to_owned();
        let head = spec.heads[0].rsplit('.').next().unwrap().to_owned();
        let linear = spec.layers().find(|it| it.module.contains("attn") || it.module.contains("ttention")).unwrap();
        let linear = linear.module.clone();
        let lora = |targets: &[&str]| LoraConfig::new(2, 8.0).targets(targets.iter().copied());
        let saved = |config: LoraConfig, modules: &[&str]| LoraConfig {
            modules_to_save: Some(modules.iter().map(|it| (*it).to_owned()).collect()),
            ..config
        };
        let tokens = Some(TokenIndices::Rows(vec![3, 5]));
        for (way, config) in [
            ("LoRA on the table", lora(&[&table])),
            ("LoRA on the head", lora(&[&head])),
            ("LoRA on both", lora(&[&table, &head])),
            ("DoRA on the table", LoraConfig { use_dora: true, ..lora(&[&table]) }),
            ("the table trained whole", saved(lora(&[&linear]), &[&table])),
            ("the head trained whole", saved(lora(&[&linear]), &[&head])),
            ("both trained whole", saved(lora(&[&linear]), &[&table, &head])),
            ("tokens", LoraConfig { trainable_token_indices: tokens.clone(), ..lora(&[&linear]) }),
            ("all biases", LoraConfig { bias: Bias::All, ..lora(&[&table]) }),
        ] {
            let what = format!("{base}, {way}");
            let mut peft = load();
            peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut tensors = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
            for (at, tensor) in tensors.iter_mut().enumerate() {
                let values: Vec<f32> = tensor.data.iter::<f32>().collect();
                let moved = values.iter().enumerate().map(|(i, it)| it + 0.2 * ((i * 7 + at * 3) as f32).sin());
                tensor.data = TensorData::new(moved.collect::<Vec<f32>>(), tensor.data.shape());
            }
            peft.assign_adapter(DEFAULT_ADAPTER, tensors).unwrap();
            let output = tempfile::tempdir().unwrap();
            let [adapter, merged] = ["adapter", "merged"].map(|it| output.path().join(it));
            peft.save_adapter(&adapter, DEFAULT_ADAPTER).unwrap();
            let adapters = vec![AdapterSource::new(&adapter)];
            let live = ForwardRequest { model: base_folder.clone(), adapters: adapters.clone(), ..request.clone() };
            let live = forward(&live, &device()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let task = Some(request.task.clone());
            let merge_request = MergeRequest {
                base: base_folder.clone(),
                adapters,
                output: merged.clone(),
                task,
                ..MergeRequest::default()
            };
            merge(&merge_request, registry(), &device()).unwrap_or_else(|error| panic!("{what}: {error}"));
            // What transformers 4 goes by, which ties and scales a T5 by one field.
            let file = TensorFile::open(merged.join("model.safetensors")).unwrap();
            let has_head = file.keys().iter().any(|key| key.ends_with("lm_head.weight"));
            let mut config = Value::Object(RawConfig::read(&merged).unwrap().json);
            if base.starts_with("blip2") {
                assert!(config.get("tie_word_embeddings").is_none(), "{what}: it is said where the head is");
                config = config["text_config"].take();
            }
            if ["t5-tiny", "blip2-t5", "blip2-tiny"].contains(&base) {
                assert_eq!(config["tie_word_embeddings"] == false, has_head, "{what}");
            }
            if ["t5-tiny", "blip2-t5"].contains(&base) {
                assert_eq!(config["scale_decoder_outputs"] == false, has_head, "{what}");
            }
            let plain = ForwardRequest { model: merged, adapters: Vec::new(), ..request.clone() };
            let plain = forward(&plain, &device()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_close(&what, find(&plain, "logits"), find(&live, "logits"));
        }
    }
}

/// The head of DeBERTa that is no layer of its own: a table that is trained whole moves it, and LoRA on the table has no
/// place in a merged file.
#[test]
fn a_head_that_is_the_table_itself() {
    let load = || PeftModel::new(auto::load_masked_lm(model("deberta-lm"), &device()).unwrap().0);
    let mut lora = load();
    lora.add_adapter(LoraConfig::new(2, 4.0).targets(["word_embeddings"])).unwrap();
    let error = lora.merge().unwrap_err().to_string();
    assert!(error.contains("no place for a head of its own"), "{error}");
    let mut whole = load();
    let saved = Some(vec!["word_embeddings".to_owned()]);
    whole.add_adapter(LoraConfig { modules_to_save: saved, ..LoraConfig::new(2, 4.0) }).unwrap();
    whole.merge().unwrap();
}
