//! Models that read pictures, where they differ from those that read words.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft::core::files::checkpoint::{Dtype, FloatType, Stored, TensorFile, write_tensors};
use peft::core::{Adaptable, PeftModel, laws};
use peft::folder::merge::{MergeRequest, merge};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoImageClassifier, ClassifierOptions};
use peft::models::{ImageClassifier, SemanticSegmenter};
use peft::run::ForwardRequest;
use serde_json::{Map, Value, json};

use crate::support::{assert_close, device, expected, find, fixtures, forward, numbers, registry, request};

fn base(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn classifier(folder: &Path) -> AutoImageClassifier {
    auto::load_image_classifier(folder, &device(), &ClassifierOptions::default()).unwrap().0.valid()
}

fn picture(dims: [usize; 4]) -> Tensor<4> {
    let values = (0..dims.iter().product()).map(|it: usize| (it as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, dims), &device())
}

#[test]
fn running_statistics_go_where_their_module_goes() {
    let name = "segformer_lora";
    let ForwardRequest { model, task, adapters, .. } = request(name);
    let adapter = TensorFile::open(adapters[0].folder.join("adapter_model.safetensors")).unwrap();
    let merged = tempfile::tempdir().unwrap();
    let output = merged.path().join("merged");
    let request_of_merge =
        MergeRequest { base: model, adapters, output: output.clone(), task: Some(task), ..MergeRequest::default() };
    merge(&request_of_merge, registry(), &device()).unwrap();
    let file = TensorFile::open(output.join("model.safetensors")).unwrap();
    let counter = "decode_head.batch_norm.num_batches_tracked";
    assert_eq!((file.dtype(counter), file.shape(counter)), (Some(Dtype::I64), Some(&[][..])));
    for field in ["num_batches_tracked", "running_mean", "running_var"] {
        let key = format!("decode_head.batch_norm.{field}");
        let of_adapter = adapter.floats(&format!("base_model.model.{key}")).unwrap();
        assert_eq!(numbers(&file.floats(&key).unwrap()), numbers(&of_adapter), "{key}");
    }
    let wanted = expected(&fixtures().join("cases").join(name).join("expected.safetensors"));
    let plain = ForwardRequest { model: output, adapters: Vec::new(), ..request(name) };
    assert_close("logits", find(&forward(&plain, &device()).unwrap(), "logits"), &wanted["merged.logits"]);
}

/// As transformers 5 writes it with `save_original_format=False`.
#[test]
fn checkpoints_with_the_names_of_transformers_5_are_read() {
    for name in ["vit-tiny", "swin-tiny"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(base(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let model = classifier(&base(name));
        let file = TensorFile::open(base(name).join("model.safetensors")).unwrap();
        let others: Vec<(String, String)> = model.spec().other_paths().collect();
        let key = |ours: &String| others.iter().find(|it| it.1 == *ours).map_or(ours, |it| &it.0).clone();
        let stored = file.keys().into_iter().map(|it| Stored { key: key(&it), data: file.floats(&it).unwrap() });
        let stored: Vec<Stored> = stored.collect();
        assert!(stored.iter().any(|it| it.key.contains("q_proj")) && !stored.iter().any(|it| it.key.contains("query")));
        write_tensors(folder.path().join("model.safetensors"), stored, FloatType::F32).unwrap();
        let pixels = picture([2, 3, 12, 12]);
        let wanted = model.logits(pixels.clone()).into_data();
        assert_eq!(classifier(folder.path()).logits(pixels).into_data(), wanted, "{name}");
    }
}

#[test]
fn what_a_folder_names_by_transformers_5_is_written_as_published() {
    for name in ["vit_other_names", "swin_other_names", "segformer_other_names"] {
        let ForwardRequest { model, task, adapters, .. } = request(name);
        let folder = &adapters[0].folder;
        let save = |saved: &Path| match task.as_str() {
            "image-cls" => save_again(PeftModel::new(classifier(&model)), folder, saved),
            _ => {
                let options = ClassifierOptions::default();
                let model = auto::load_semantic_segmenter(&model, &device(), &options).unwrap().0;
                save_again(PeftModel::new(model), folder, saved);
            }
        };
        let saved = tempfile::tempdir().unwrap();
        save(saved.path());
        let text = std::fs::read_to_string(saved.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let targets = config["target_modules"].as_array().unwrap();
        assert!(targets.contains(&json!("value")) && !targets.contains(&json!("v_proj")), "{name}: {targets:?}");
        let keys = TensorFile::open(saved.path().join("adapter_model.safetensors")).unwrap().keys();
        assert!(keys.iter().all(|it| !it.contains("v_proj") && !it.contains("stages")), "{name}: {keys:?}");
        // What was written is read as well.
        let again = ForwardRequest { adapters: vec![peft::load::AdapterSource::new(saved.path())], ..request(name) };
        let [first, second] = [request(name), again].map(|it| forward(&it, &device()).unwrap());
        assert_eq!(find(&first, "logits"), find(&second, "logits"), "{name}");
    }
}

fn save_again<M: Module + Adaptable>(mut peft: PeftModel<M>, folder: &Path, saved: &Path) {
    peft.load_adapter(folder, "default", &peft::methods()).unwrap();
    peft.save_adapter(saved, "default").unwrap();
}

#[test]
fn prompts_need_words() {
    let spec = classifier(&base("vit-tiny")).spec();
    for (peft_type, field) in [
        ("PROMPT_TUNING", None),
        ("PREFIX_TUNING", None),
        ("P_TUNING", Some("encoder_hidden_size")),
        ("MULTITASK_PROMPT_TUNING", Some("num_tasks")),
    ] {
        let Value::Object(mut json) = json!({"peft_type": peft_type, "num_virtual_tokens": 4}) else { unreachable!() };
        json.extend(field.map(|it| (it.to_owned(), json!(2))));
        let error = peft::methods().parse(json).unwrap().plan(&spec).unwrap_err().to_string();
        assert!(error.contains("`vit`") && error.contains("no table of words"), "{peft_type}: {error}");
    }
    let adaption = Map::from_iter([("peft_type".to_owned(), json!("ADAPTION_PROMPT"))]);
    let error = peft::methods().parse(adaption).unwrap().plan(&spec).unwrap_err().to_string();
    assert!(error.contains("`vit`"), "{error}");
}

/// A window that the picture does not fill looks up the distances that it has. The reference fails.
#[test]
fn windows_may_be_larger_than_the_picture() {
    let model = classifier(&base("swin-tiny"));
    for (height, width) in [(4, 4), (1, 1), (3, 20), (14, 10)] {
        let logits = model.logits(picture([2, 3, height, width]));
        assert!(numbers(&logits.into_data()).iter().all(|it| it.is_finite()), "{height} × {width}");
    }
}

/// A patch that the picture has alone sees itself: with the same patches around, the logits are the same.
#[test]
fn a_picture_may_be_as_small_as_a_model_says() {
    let options = ClassifierOptions::default();
    let model = auto::load_semantic_segmenter(base("segformer-tiny"), &device(), &options).unwrap().0.valid();
    let [height, width] = model.smallest_picture();
    let [batch, classes, _, _] = model.logits(picture([1, 3, height, width])).dims();
    assert_eq!([batch, classes], [1, 5]);
    let vit = classifier(&base("vit-wide"));
    assert_eq!((vit.smallest_picture(), vit.num_channels()), ([2, 3], 1));
    assert_eq!(vit.logits(picture([1, 1, 2, 3])).dims(), [1, 5]);
}

#[test]
fn pictures_of_a_batch_may_have_adapters_of_their_own() {
    for (name, dims) in [("vit-tiny", [3, 3, 12, 12]), ("swin-tiny", [3, 3, 14, 10])] {
        let mut peft = PeftModel::new(classifier(&base(name)));
        let configs = [
            ("one", LoraConfig::new(4, 6.0).targets(["query", "projection"])),
            ("two", LoraConfig::new(3, 5.0).targets(["value", "dense"])),
        ];
        for (adapter, config) in configs {
            peft.add_adapter_as(adapter, config, 1).unwrap();
            laws::disturb(&mut peft, adapter, 0.2, &device()).unwrap();
        }
        let pixels = picture(dims);
        let names = [Some("two"), None, Some("one")];
        let mixed = peft.with_adapter_names(&names, |model| model.valid().logits(pixels.clone()).into_data()).unwrap();
        for (at, adapter) in names.iter().enumerate() {
            peft.set_active(adapter.as_slice()).unwrap();
            let alone = numbers(&peft.model().valid().logits(pixels.clone()).into_data());
            let (wanted, got) = (&alone[at * 5..at * 5 + 5], &numbers(&mixed)[at * 5..at * 5 + 5]);
            let error = wanted.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-4, "{name}, picture {at} with {adapter:?}: {error}");
        }
    }
}
