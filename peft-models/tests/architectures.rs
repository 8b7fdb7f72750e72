//! Architectures are a registry, and models know where they came from.

use burn::module::Module;
use burn::tensor::Device;
use peft_core::{Adaptable, ModelSpec, PeftError};
use peft_models::auto::{
    Architecture, ArchitectureRegistry, AutoCausalLm, AutoFeatureExtractor, AutoMaskedLm, AutoQuestionAnswerer,
    AutoSeq2SeqLm, AutoSequenceClassifier, AutoTokenClassifier, ClassifierOptions,
};
use peft_models::common::config::RawConfig;
use peft_models::gpt2::{BASE_PREFIX, Gpt2LmHeadModel};
use peft_models::llama::LlamaForCausalLm;
use peft_models::{CausalLm, ModelInput, Pretrained, SequenceClassifier};

use crate::support::{causal_lm, device, ids, logits, model_folder, still};

const GPT2: &str = r#"{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 10}"#;

fn raw(json: &str) -> RawConfig {
    RawConfig::parse_text(json).unwrap()
}

#[test]
fn an_unknown_architecture_is_refused_with_what_is_known_and_what_to_do() {
    let other = raw(r#"{"model_type": "mamba"}"#);
    let error = ArchitectureRegistry::builtin().causal_lm(&other, &device()).unwrap_err();
    assert!(matches!(error, PeftError::Unsupported { .. }), "{error}");
    let text = error.to_string();
    for part in ["model_type `mamba`", "causal language models", "gpt2, llama, mistral", "ArchitectureRegistry::with"] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert!(!text.contains("bert"), "{text}");
    let error = ArchitectureRegistry::new().seq2seq_lm(&other, &device()).unwrap_err().to_string();
    assert!(error.contains("knows none"), "{error}");
}

#[test]
fn an_architecture_is_registered_under_a_name_of_its_own() {
    let mine = Architecture::new(["mine"], BASE_PREFIX).causal_lm(Gpt2LmHeadModel::new);
    let registry = ArchitectureRegistry::builtin().with(mine);
    let model = registry.causal_lm(&raw(&GPT2.replace(r#""gpt2""#, r#""mine""#)), &device()).unwrap();
    assert!(model.downcast_ref::<Gpt2LmHeadModel>().is_some());
    assert!(registry.causal_lm(&raw(r#"{"model_type": "llama"}"#), &device()).is_ok());
}

#[test]
fn the_later_architecture_of_a_name_counts_for_the_tasks_that_it_has() {
    let replaced = Architecture::new(["llama"], BASE_PREFIX).causal_lm(Gpt2LmHeadModel::new);
    let registry = ArchitectureRegistry::builtin().with(replaced);
    let config = raw(r#"{"model_type": "llama"}"#);
    let model = registry.causal_lm(&config, &device()).unwrap();
    assert!(model.downcast_ref::<LlamaForCausalLm>().is_none());
    let features = registry.feature_extractor(&config, &device()).unwrap();
    assert!(features.downcast_ref::<peft_models::llama::LlamaModel>().is_some());
}

/// A model behind an object is the same module: parameters, paths, their order, and what is done to it as a whole.
#[test]
fn the_object_leaves_no_trace() {
    let auto = causal_lm("gpt2-tiny");
    let inside = auto.downcast_ref::<Gpt2LmHeadModel>().unwrap().clone();
    let paths = |spec: ModelSpec| spec.iter().map(|it| it.path()).collect::<Vec<_>>();
    assert_eq!(paths(ModelSpec::of(&auto)), paths(ModelSpec::of(&inside)));
    assert_eq!(auto.num_params(), inside.num_params());
    assert_eq!(auto.devices(), inside.devices());

    let input = ModelInput::ids(ids([[9, 71, 5, 33]]));
    let want = CausalLm::logits(&inside, &input, None).into_data();
    type Change = fn(AutoCausalLm, &Device) -> AutoCausalLm;
    let changed: [(&str, Change); 6] = [
        ("clone", |it, _| it.clone()),
        ("valid", |it, _| it.valid()),
        ("train", |it, _| it.train().valid()),
        ("materialize", |it, _| it.materialize()),
        ("to_device", |it, device| it.to_device(device)),
        ("fork", |it, device| it.fork(device)),
    ];
    for (name, change) in changed {
        let model = change(auto.clone(), &device());
        assert_eq!(logits(&still(model), &input, None).into_data(), want, "{name}");
    }
    let record = auto.clone().into_record();
    let empty = AutoCausalLm::from_config(&RawConfig::read(model_folder("gpt2-tiny")).unwrap(), &device()).unwrap();
    assert_eq!(logits(&still(empty.load_record(record)), &input, None).into_data(), want, "record");
    assert!(auto.clone().downcast::<LlamaForCausalLm>().is_err());
}

#[test]
fn an_untied_head_is_a_parameter() {
    let mut model = causal_lm("gpt2-tiny");
    assert!(model.is_tied());
    model.untie_head();
    assert!(!model.is_tied() && model.spec().get("lm_head.weight").is_some());
}

#[track_caller]
fn said(model: &(impl Adaptable + Pretrained), folder: &str, task: Option<&str>) {
    let folder = model_folder(folder);
    assert_eq!(model.folder().unwrap(), folder);
    let spec = model.spec();
    assert_eq!(spec.base_name.unwrap(), folder.display().to_string());
    assert_eq!(spec.task_type.as_deref(), task);
}

#[test]
fn a_loaded_model_says_where_it_came_from_and_what_it_is_for() {
    let options = ClassifierOptions::default();
    let at = model_folder;
    said(&AutoCausalLm::load(at("gpt2-tiny"), &device()).unwrap(), "gpt2-tiny", Some("CAUSAL_LM"));
    said(&AutoSeq2SeqLm::load(at("t5-tiny"), &device()).unwrap(), "t5-tiny", Some("SEQ_2_SEQ_LM"));
    let classifier = AutoSequenceClassifier::load(at("bert-tiny"), &device(), &options).unwrap();
    said(&classifier, "bert-tiny", Some("SEQ_CLS"));
    assert!(classifier.is_encoder() && !classifier.pools_last_token());
    assert!(!AutoSequenceClassifier::load(at("gpt2-tiny"), &device(), &options).unwrap().is_encoder());
    said(&AutoTokenClassifier::load(at("bert-tiny"), &device(), &options).unwrap(), "bert-tiny", Some("TOKEN_CLS"));
    said(&AutoQuestionAnswerer::load(at("bert-tiny"), &device(), 0).unwrap(), "bert-tiny", Some("QUESTION_ANS"));
    let features = AutoFeatureExtractor::load(at("bert-tiny"), &device()).unwrap();
    said(&features, "bert-tiny", Some("FEATURE_EXTRACTION"));
    said(&features.valid(), "bert-tiny", Some("FEATURE_EXTRACTION"));
    let masked = AutoMaskedLm::from_config(&raw(r#"{"model_type": "bert"}"#), &device()).unwrap();
    assert_eq!((masked.spec().task_type, masked.spec().base_name), (None, None));
    assert!(masked.folder().unwrap_err().to_string().contains("not loaded from a folder"));
}
