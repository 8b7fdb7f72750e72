//! What a folder may look like, and what is said when it is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use peft_core::files::checkpoint::{Checkpoint, FloatType, Placement, Stored, TensorFile, write_tensors};
use peft_core::quant::{QuantConfig, QuantFormat};
use peft_core::spec::{PathStack, VisitParams};
use peft_core::{Adaptable, PeftError, visit_params};
use peft_models::auto::{
    AutoCausalLm, AutoSequenceClassifier, ClassifierOptions, load_causal_lm, load_feature_extractor, load_masked_lm,
    load_seq2seq_lm, load_sequence_classifier,
};
use peft_models::bert::BertForSequenceClassification;
use peft_models::common::config::RawConfig;
use peft_models::gpt2::Gpt2ForSequenceClassification;
use peft_models::llama::{LlamaForCausalLm, LlamaForSequenceClassification};
use peft_models::{MaskedLm, ModelInput, Seq2SeqLm, SequenceClassifier};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{assert_close, causal_lm, device, fixtures, ids, integers, logits, model_folder, still};

fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model_folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Rewrites the weights of a folder with one file.
fn rewrite(folder: &Path, float: FloatType, mut change: impl FnMut(&str, TensorData) -> Option<(String, TensorData)>) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let keys: Vec<String> = checkpoint.keys().map(str::to_owned).collect();
    let changed = keys.iter().filter_map(|key| change(key, checkpoint.file(key)?.floats(key).unwrap()));
    let tensors = changed.map(|(key, data)| Stored { key, data }).collect();
    write_tensors(folder.join("model.safetensors"), tensors, float).unwrap();
}

fn set(folder: &Path, field: &str, value: Value) {
    let path = folder.join("config.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    json[field] = value;
    fs::write(path, json.to_string()).unwrap();
}

#[track_caller]
fn causal_error(folder: &Path) -> PeftError {
    load_causal_lm(folder, &device()).expect_err("the folder is damaged")
}

#[track_caller]
fn assert_says(error: &PeftError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn a_sharded_checkpoint_equals_the_same_in_one_file() {
    let folder = copy_of("llama-sharded");
    rewrite(folder.path(), FloatType::F32, |key, data| Some((key.to_owned(), data)));
    fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    let input = ModelInput::ids(ids([[9, 71, 5, 33]]));
    let whole = still(load_causal_lm(folder.path(), &device()).unwrap().0);
    let sharded = causal_lm("llama-sharded");
    assert_close("logits", logits(&whole, &input, None).into_data(), logits(&sharded, &input, None).into_data());
}

#[test]
fn half_precision_is_read_as_f32() {
    for (name, float) in [("llama-f16", FloatType::F16), ("llama-bf16", FloatType::BF16)] {
        let folder = copy_of(name);
        // Written again and read again nothing is lost, since every value fits the type.
        rewrite(folder.path(), float, |key, data| Some((key.to_owned(), data)));
        let (again, report) = load_causal_lm(folder.path(), &device()).unwrap();
        assert!(report.is_clean(), "{report}");
        let input = ModelInput::ids(ids([[9, 71, 5, 33]]));
        let got = logits(&still(again), &input, None).into_data();
        assert_eq!(got, logits(&causal_lm(name), &input, None).into_data());
    }
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    let folder = copy_of("llama-sharded");
    fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert_says(&causal_error(folder.path()), &["model.safetensors.index.json", "model-00002-of-00003.safetensors"]);
}

#[test]
fn a_truncated_file_is_named() {
    let folder = copy_of("llama-tiny");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 5, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_says(&causal_error(folder.path()), &["model.safetensors", "truncated"]);
    }
}

#[test]
fn a_folder_without_weights_or_configuration_is_named() {
    let folder = copy_of("llama-tiny");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_says(&causal_error(folder.path()), &["model.safetensors"]);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_says(&causal_error(folder.path()), &["config.json"]);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert_says(&causal_error(folder.path()), &["config.json", "not usable"]);
}

#[test]
fn a_wrong_shape_is_reported_with_both_shapes() {
    let folder = copy_of("llama-tiny");
    set(folder.path(), "intermediate_size", json!(40));
    let error = causal_error(folder.path());
    assert_says(&error, &["model.layers.0.mlp.up_proj.weight: file [48, 32], model [40, 32]", "down_proj"]);
    let PeftError::DoesNotFit { report, .. } = error else { panic!("{error}") };
    assert_eq!(report.misshapen.len(), 6);
}

#[test]
fn everything_that_is_missing_is_reported_at_once() {
    let folder = copy_of("llama-tiny");
    rewrite(folder.path(), FloatType::F32, |key, data| {
        Some((key.replace("q_proj", "query_proj"), data)).filter(|_| key != "model.norm.weight")
    });
    assert_says(
        &causal_error(folder.path()),
        &[
            "model.norm.weight",
            "layers.1.self_attn.q_proj.weight",
            "layers.0.self_attn.query_proj.weight: did you mean",
        ],
    );
}

#[test]
fn an_unknown_model_type_is_answered_with_the_known_ones() {
    let folder = copy_of("llama-tiny");
    set(folder.path(), "model_type", json!("mamba"));
    assert_says(&causal_error(folder.path()), &["`mamba`", "gpt2, ", "llama, mistral, qwen2"]);
    let error = load_feature_extractor(folder.path(), &device()).unwrap_err();
    assert_says(&error, &["`mamba`", "bert, ", "gpt2, "]);
    assert_says(&causal_error(&model_folder("bert-tiny")), &["`bert`", "causal language models"]);
    set(folder.path(), "model_type", Value::Null);
    assert_says(&causal_error(folder.path()), &["config.json", "model_type"]);
}

#[test]
fn switches_that_cannot_be_computed_are_refused() {
    let refused = |field: &str, value: Value, model: &str, parts: &[&str]| {
        let folder = copy_of(model);
        set(folder.path(), field, value);
        assert_says(&load_feature_extractor(folder.path(), &device()).unwrap_err(), parts);
    };
    refused("position_embedding_type", json!("relative_key"), "bert-tiny", &["relative_key", "absolute"]);
    refused("is_decoder", json!(true), "bert-tiny", &["is_decoder"]);
    refused("hidden_act", json!("mish"), "bert-tiny", &["mish", "gelu_new"]);
    refused("quantization_config", json!({"bits": 4}), "llama-tiny", &["quantization_config"]);
    refused("rope_parameters", json!({"rope_type": "longrope"}), "llama-tiny", &["longrope"]);
    refused("partial_rotary_factor", json!(0.5), "llama-tiny", &["partial_rotary_factor"]);
    refused("num_key_value_heads", json!(3), "llama-tiny", &["num_key_value_heads"]);
    refused("layer_types", json!(["full_attention", "chunked_attention"]), "qwen2-sliding", &["chunked_attention"]);
    refused("layer_types", json!(["full_attention"]), "qwen2-sliding", &["layer_types", "num_hidden_layers"]);
    refused("use_sliding_window", json!(false), "qwen2-sliding", &["layer_types", "sliding_attention"]);
}

#[test]
fn windows_of_an_old_qwen2_follow_from_its_numbers() {
    let folder = copy_of("qwen2-sliding");
    set(folder.path(), "layer_types", Value::Null);
    let old = still(load_causal_lm(folder.path(), &device()).unwrap().0);
    let input = ModelInput::ids(ids([[9, 71, 5, 33, 18, 92, 40, 64]]));
    let want = logits(&causal_lm("qwen2-sliding"), &input, None);
    assert_eq!(logits(&old, &input, None).into_data(), want.into_data());
}

#[test]
fn a_tied_head_follows_the_configuration_and_the_weights() {
    let input = ModelInput::ids(ids([[9, 71, 5, 33]]));
    let with_head = |factor: f32| {
        let folder = copy_of("llama-tied");
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let key = "model.embed_tokens.weight";
        let table = checkpoint.file(key).unwrap().floats(key).unwrap();
        let head = table.iter::<f32>().map(|it| it * factor).collect::<Vec<_>>();
        add(folder.path(), "lm_head.weight", TensorData::new(head, table.shape()));
        folder
    };

    let tied = causal_lm("llama-tied");
    let want = logits(&tied, &input, None);
    let (same, report) = load_causal_lm(with_head(1.0).path(), &device()).unwrap();
    assert_eq!(report.unexpected, ["lm_head.weight"]);
    assert_eq!(logits(&still(same), &input, None).into_data(), want.to_data());

    // The reference unties a head that differs, whatever the configuration says.
    let (other, report) = load_causal_lm(with_head(2.0).path(), &device()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_close("untied", logits(&still(other), &input, None).into_data(), want.mul_scalar(2.0).into_data());

    let folder = copy_of("llama-tied");
    set(folder.path(), "tie_word_embeddings", json!(false));
    assert_says(&causal_error(folder.path()), &["missing", "lm_head.weight"]);
}

fn add(folder: &Path, key: &str, data: TensorData) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut tensors: Vec<Stored> = checkpoint
        .keys()
        .map(|key| Stored { key: key.to_owned(), data: checkpoint.file(key).unwrap().floats(key).unwrap() })
        .collect();
    tensors.push(Stored { key: key.to_owned(), data });
    write_tensors(folder.join("model.safetensors"), tensors, FloatType::F32).unwrap();
}

#[test]
fn a_new_head_is_seeded_and_reported() {
    let load = |model: &str, seed: u64| {
        let options = ClassifierOptions { num_labels: Some(5), seed, ..Default::default() };
        load_sequence_classifier(model_folder(model), &device(), &options).unwrap()
    };
    for (name, head) in [("bert-tiny", "classifier"), ("gpt2-tiny", "score"), ("qwen2-tiny", "score")] {
        let (model, report) = load(name, 3);
        assert_eq!(model.num_labels(), 5);
        assert!(report.missing.iter().all(|it| it.starts_with(head)) && !report.missing.is_empty(), "{report}");
        let weight = |model: &AutoSequenceClassifier| {
            let bert = model.downcast_ref().map(|it: &BertForSequenceClassification| &it.classifier.weight);
            let gpt2 = model.downcast_ref().map(|it: &Gpt2ForSequenceClassification| &it.score.weight);
            let llama = model.downcast_ref().map(|it: &LlamaForSequenceClassification| &it.score.weight);
            let weight = bert.or(gpt2).or(llama).unwrap_or_else(|| panic!("no case for {model:?}"));
            assert!(!weight.val().is_require_grad(), "a base model is frozen");
            weight.val().into_data()
        };
        assert_eq!(weight(&model), weight(&load(name, 3).0), "{name}: same seed");
        assert_ne!(weight(&model), weight(&load(name, 4).0), "{name}: another seed");
        let values: Vec<f32> = weight(&model).iter::<f32>().collect();
        let spread = (values.iter().map(|it| it * it).sum::<f32>() / values.len() as f32).sqrt();
        assert!((spread - 0.02).abs() < 0.006, "{name}: standard deviation {spread}");
    }
    let it: BertForSequenceClassification = load("bert-tiny", 0).0.downcast().unwrap();
    assert_eq!(it.classifier.bias.unwrap().val().into_data(), TensorData::new(vec![0f32; 5], [5]));
}

#[test]
fn a_head_of_another_size_than_the_configuration_says_is_refused() {
    let folder = copy_of("bert-prefixed");
    set(folder.path(), "id2label", json!({"0": "a", "1": "b"}));
    let error = load_sequence_classifier(folder.path(), &device(), &ClassifierOptions::default()).unwrap_err();
    assert_says(&error, &["classifier.weight: file [3, 32], model [2, 32]"]);
}

#[test]
fn a_pooler_is_optional_where_it_takes_no_part() {
    let folder = copy_of("bert-tiny");
    rewrite(folder.path(), FloatType::F32, |key, data| {
        Some((key.to_owned(), data)).filter(|_| !key.starts_with("pooler"))
    });
    let (_, report) = load_feature_extractor(folder.path(), &device()).unwrap();
    assert_eq!(report.missing, ["pooler.dense.weight", "pooler.dense.bias"]);
}

#[test]
fn keys_of_a_bert_from_tensorflow_are_understood() {
    let folder = copy_of("bert-tiny");
    rewrite(folder.path(), FloatType::F32, |key, data| {
        Some((key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"), data))
    });
    let (_, report) = load_feature_extractor(folder.path(), &device()).unwrap();
    assert!(report.is_clean(), "{report}");
}

/// A tied table is stored once, and where it is stored is a matter of taste.
#[test]
fn a_tied_table_is_found_under_any_of_its_names() {
    let moved = |name: &str, from: &str, to: &str| {
        let folder = copy_of(name);
        rewrite(folder.path(), FloatType::F32, |key, data| {
            Some((if key == from { to.to_owned() } else { key.to_owned() }, data))
        });
        folder
    };
    let input = ModelInput::ids(ids([[9, 71, 5, 33]]));
    let decoders = [
        ("gpt2-tiny", "transformer.wte.weight", "lm_head.weight"),
        ("llama-tied", "model.embed_tokens.weight", "lm_head.weight"),
        ("gptneox-serial", "gpt_neox.embed_in.weight", "embed_out.weight"),
        ("gemma2-tiny", "model.embed_tokens.weight", "lm_head.weight"),
    ];
    for (name, from, to) in decoders {
        let (model, report) = load_causal_lm(moved(name, from, to).path(), &device()).unwrap();
        assert!(report.is_clean(), "{name}: {report}");
        assert_eq!(
            logits(&still(model), &input, None).into_data(),
            logits(&causal_lm(name), &input, None).into_data(),
            "{name}"
        );
    }
    let writers = [
        ("t5-tiny", "shared.weight", "encoder.embed_tokens.weight"),
        ("t5-tiny", "shared.weight", "lm_head.weight"),
        ("t5-gated", "shared.weight", "decoder.embed_tokens.weight"),
        ("bart-tiny", "model.shared.weight", "model.decoder.embed_tokens.weight"),
        ("bart-tiny", "model.shared.weight", "lm_head.weight"),
    ];
    for (name, from, to) in writers {
        let written = |folder: &Path| {
            let model = still(load_seq2seq_lm(folder, &device()).unwrap().0);
            model.logits(&input, &ModelInput::ids(ids([[2, 40, 64]]))).into_data()
        };
        assert_eq!(written(moved(name, from, to).path()), written(&model_folder(name)), "{name} {to}");
    }

    // A head of its own is no table.
    let folder = moved("llama-tiny", "model.embed_tokens.weight", "spare");
    assert_says(&causal_error(folder.path()), &["model.embed_tokens.weight"]);
}

#[test]
fn paths_are_checkpoint_keys() {
    for name in ["gpt2-tiny", "gpt2-inverse", "llama-tiny", "llama-tied", "mistral-tiny", "qwen2-tiny"] {
        let raw = RawConfig::read(model_folder(name)).unwrap();
        let spec = AutoCausalLm::from_config(&raw, &device()).unwrap().spec();
        assert_eq!(spec.model_type.as_deref(), raw.model_type().ok());
        assert_same_keys(name, &spec);
    }
    for name in ["bert-prefixed", "bert-regression", "gpt2-cls", "llama-cls"] {
        let raw = RawConfig::read(model_folder(name)).unwrap();
        assert_same_keys(name, &AutoSequenceClassifier::from_config(&raw, &device()).unwrap().spec());
    }
}

#[track_caller]
fn assert_same_keys(name: &str, spec: &peft_core::ModelSpec) {
    let mut paths: Vec<String> = spec.iter().map(|it| it.path()).collect();
    paths.sort();
    let checkpoint = Checkpoint::open(model_folder(name)).unwrap();
    assert_eq!(paths, checkpoint.keys().collect::<Vec<_>>(), "{name}");
}

/// Shards that have been read take no memory beside the model: how much of the file is there is what the kernel says.
#[cfg(target_os = "linux")]
#[test]
fn tensors_that_were_read_leave_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let large = |key: &str| Stored { key: key.into(), data: TensorData::zeros::<f32, _>([4, 1 << 20]) };
    write_tensors(&path, vec![large("a"), large("b")], FloatType::F32).unwrap();
    let resident = || {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let of_file = maps.split_once(path.to_str().unwrap()).unwrap().1;
        let line = of_file.lines().find_map(|it| it.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    };
    let file = TensorFile::open(&path).unwrap();
    let opened = resident();
    for key in ["a", "b", "a"] {
        assert_eq!(file.floats(key).unwrap().num_elements(), 4 << 20);
        assert!(resident() < opened + 1024, "{} kB of the file are in memory after `{key}`", resident());
    }
}

/// A configuration with fewer layers than its checkpoint is another model.
#[test]
fn layers_that_the_configuration_leaves_out_are_an_error() {
    for (name, field, value) in [
        ("gpt2-tiny", "n_layer", 1),
        ("gpt2-tiny", "n_layer", 0),
        ("gpt2-bare", "n_layer", 1),
        ("llama-tiny", "num_hidden_layers", 1),
        ("t5-tiny", "num_decoder_layers", 1),
        ("bart-tiny", "encoder_layers", 1),
    ] {
        let folder = copy_of(name);
        set(folder.path(), field, json!(value));
        let error = match name {
            "t5-tiny" | "bart-tiny" => load_seq2seq_lm(folder.path(), &device()).map(|_| ()),
            _ => load_causal_lm(folder.path(), &device()).map(|_| ()),
        };
        let error = error.expect_err("a part of the checkpoint is left out");
        assert_says(&error, &["config.json", "would be computed", &format!("`{field}` is {value}")]);
    }
    let error = load_feature_extractor(cut("bert-tiny").path(), &device()).unwrap_err();
    assert_says(&error, &["layer.1.", "`num_hidden_layers` is 1"]);
}

fn cut(name: &str) -> TempDir {
    let folder = copy_of(name);
    set(folder.path(), "num_hidden_layers", json!(1));
    folder
}

/// Buffers that earlier releases wrote, and what lies beside the stack, are not missed.
#[test]
fn old_buffers_and_other_heads_are_passed_over() {
    let folder = copy_of("gpt2-tiny");
    let mut spare: Vec<(String, TensorData)> = vec![
        ("transformer.h.0.attn.bias".into(), TensorData::ones::<f32, _>([1, 1, 4, 4])),
        ("transformer.h.0.attn.masked_bias".into(), TensorData::ones::<f32, [usize; 0]>([])),
        ("multiple_choice_head.summary.weight".into(), TensorData::ones::<f32, _>([2])),
        ("vision_tower.layers.0.weight".into(), TensorData::ones::<f32, _>([2])),
    ];
    rewrite_with(folder.path(), &mut spare);
    let (_, report) = load_causal_lm(folder.path(), &device()).unwrap();
    assert_eq!(report.unexpected.len(), 4, "{report}");
    let folder = copy_of("llama-tiny");
    rewrite_with(
        folder.path(),
        &mut vec![("model.layers.0.self_attn.q_proj.bias".into(), TensorData::ones::<f32, _>([32]))],
    );
    assert_says(&causal_error(folder.path()), &["model.layers.0.self_attn.q_proj.bias"]);
}

fn rewrite_with(folder: &Path, more: &mut Vec<(String, TensorData)>) {
    let file = TensorFile::open(folder.join("model.safetensors")).unwrap();
    let stored = |key: String| Stored { data: file.floats(&key).unwrap(), key };
    let mut tensors: Vec<Stored> = file.keys().into_iter().map(stored).collect();
    tensors.extend(more.drain(..).map(|(key, data)| Stored { key, data }));
    write_tensors(folder.join("model.safetensors"), tensors, FloatType::F32).unwrap();
}

/// The bias of BERT's head has two names; files of earlier releases have one of them.
#[test]
fn a_masked_language_model_needs_one_of_the_two_names_of_its_bias() {
    let scores = |folder: &Path| {
        let (model, _) = load_masked_lm(folder, &device()).unwrap();
        MaskedLm::logits(&still(model), &ModelInput::ids(ids([[9, 71, 5, 33]]))).into_data()
    };
    let whole = scores(&model_folder("bert-masked-untied"));
    for absent in ["cls.predictions.decoder.bias", "cls.predictions.bias"] {
        let folder = copy_of("bert-masked-untied");
        let file = TensorFile::open(folder.path().join("model.safetensors")).unwrap();
        let bias = file.floats("cls.predictions.decoder.bias").unwrap();
        rewrite(folder.path(), FloatType::F32, |key, data| {
            let data = if key == "cls.predictions.bias" { bias.clone() } else { data };
            (key != absent).then(|| (key.to_owned(), data))
        });
        assert_close(absent, scores(folder.path()), whole.clone());
    }
}

/// Norms without weights are norms with weights of one and biases of zero.
#[test]
fn an_opt_without_weights_in_its_norms() {
    let is_norm = |key: &str| key.contains("layer_norm");
    let (plain, ones) = (copy_of("opt-tiny"), copy_of("opt-tiny"));
    rewrite(plain.path(), FloatType::F32, |key, data| (!is_norm(key)).then(|| (key.to_owned(), data)));
    set(plain.path(), "layer_norm_elementwise_affine", json!(false));
    rewrite(ones.path(), FloatType::F32, |key, data| {
        let (shape, value) = (data.shape(), if key.ends_with("bias") { 0.0 } else { 1.0 });
        let filled = TensorData::full::<f32, _>(shape, value);
        Some((key.to_owned(), if is_norm(key) { filled } else { data }))
    });
    let [plain, ones] = [&plain, &ones].map(|folder| {
        let (model, _) = load_causal_lm(folder.path(), &device()).unwrap();
        logits(&still(model), &ModelInput::ids(ids([[9, 71, 5, 33]])), None).into_data()
    });
    assert_close("logits", plain, ones);
}

/// A head of other outputs starts anew, where others were asked for; the base's own is taken else.
#[test]
fn a_head_of_other_outputs_is_replaced_if_they_are_asked_for() {
    for (name, head) in [("llama-cls", "score.weight"), ("bert-tiny", "classifier.weight")] {
        let folder = model_folder(name);
        let (plain, _) = load_sequence_classifier(&folder, &device(), &ClassifierOptions::default()).unwrap();
        let own = SequenceClassifier::num_labels(&plain);
        let options = ClassifierOptions { num_labels: Some(own + 1), ..ClassifierOptions::default() };
        let (model, report) = load_sequence_classifier(&folder, &device(), &options).unwrap();
        assert!(report.missing.contains(&head.to_owned()), "{report}");
        assert_eq!(SequenceClassifier::num_labels(&model), own + 1);
    }
    // One of no outputs is damaged.
    let folder = copy_of("llama-cls");
    rewrite(folder.path(), FloatType::F32, |key, data| {
        let scalar = TensorData::ones::<f32, [usize; 0]>([]);
        Some((key.to_owned(), if key == "score.weight" { scalar } else { data }))
    });
    let error = load_sequence_classifier(folder.path(), &device(), &ClassifierOptions::default()).unwrap_err();
    assert_says(&error, &["score.weight: file []"]);
}

/// `_keep_in_fp32_modules` of transformers goes before all that a configuration says.
#[test]
fn layers_that_want_full_precision_are_not_quantised() {
    #[derive(Default)]
    struct Types(BTreeMap<String, DType>);
    impl VisitParams for Types {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            self.0.insert(at.path(), param.base().dtype());
        }
    }
    for skipped in [None, Some(vec!["k".to_owned()])] {
        let config = QuantConfig { skip_modules: skipped.clone(), ..QuantConfig::new(QuantFormat::Int8) };
        let place = Placement::on(&device()).with_quantization(config);
        let (model, _) = load_seq2seq_lm(model_folder("t5-tiny"), place).unwrap();
        let mut types = Types::default();
        visit_params(&model, &mut types);
        let is_whole = |end: &str| {
            let of_end: Vec<bool> =
                types.0.iter().filter(|it| it.0.ends_with(end)).map(|it| *it.1 == DType::F32).collect();
            assert!(!of_end.is_empty() && of_end.iter().all(|it| *it == of_end[0]), "{end}: {of_end:?}");
            of_end[0]
        };
        assert!(is_whole("DenseReluDense.wo.weight") && !is_whole("DenseReluDense.wi.weight"));
        assert_eq!(is_whole("SelfAttention.k.weight"), skipped.is_some());
    }
}

/// LLM.int8 with numbers that bitsandbytes calls too large to round, with more of them, and with all rounded. A layer is its layer;
/// in a whole model the last bit of a sum may move a number to the next code, but what comes out is nearer to what it gives
/// than without rounding.
#[test]
fn activations_before_int8_are_rounded_as_bitsandbytes_does() {
    let file = TensorFile::open(fixtures().join("quantised/llm_int8.safetensors")).unwrap();
    let input = integers(&file, "input_ids").unwrap();
    let load = |threshold: Option<f32>| {
        let place = Placement::on(&device()).with_llm_int8_threshold(threshold);
        still(load_causal_lm(model_folder("llama-int8"), place).unwrap().0)
    };
    let logits_of = |threshold| logits(&load(threshold), &ModelInput::ids(input.clone()), None);
    let apart = |logits: Tensor<3>, recorded: &Tensor<3>| {
        f64::from((logits - recorded.clone()).square().mean().into_scalar::<f32>()).sqrt()
    };
    let plain = logits_of(None);
    for (name, threshold) in [("6", 6.0), ("2.5", 2.5), ("0", 0.0)] {
        let recorded = Tensor::from_data(file.floats(&format!("logits.{name}")).unwrap(), &device());
        let (off, unrounded) = (apart(logits_of(Some(threshold)), &recorded), apart(plain.clone(), &recorded));
        assert!(off < 0.3 * unrounded, "threshold {name}: {off} apart, and {unrounded} without rounding");

        let layer = load(Some(threshold)).downcast::<LlamaForCausalLm>().unwrap().model.layers[0].mlp.down_proj.clone();
        let read = |key: &str| Tensor::<2>::from_data(file.floats(key).unwrap(), &device());
        let output = layer.forward(read("layer.input"));
        let wanted = read(&format!("layer.output.{name}"));
        assert_close(&format!("a layer, threshold {name}"), output.into_data(), wanted.into_data());
    }
    let refused = |place: Placement| load_causal_lm(model_folder("llama-tiny"), place).unwrap_err().to_string();
    let nf4 = QuantConfig::new("nf4".parse().unwrap());
    for place in [Placement::on(&device()), Placement::on(&device()).with_quantization(nf4)] {
        let error = refused(place.with_llm_int8_threshold(6.0));
        assert!(error.contains("llm_int8_threshold") && error.contains("no layer is in int8"), "{error}");
    }
}
