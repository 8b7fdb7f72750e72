//! Every recorded case with adapters: logits, loss, gradients, merged logits, and the folder both ways.

use std::collections::BTreeSet;
use std::path::PathBuf;

use burn::module::Module;
use peft::core::files::checkpoint::model_tensors;
use peft::core::forward::gradient_checkpointing;
use peft::core::{Adaptable, AdapterFolder, PeftModel};
use peft::load::AdapterSource;
use peft::load::adapters::head_of;
use peft::models::auto;
use peft::run::ForwardRequest;
use serde_json::Value;

use crate::support::{
    assert_close, assert_gradient_close, case, device, device_for, distance, expected, find, fixtures, forward,
    is_libtorch, numbers, processor, request,
};

/// Named tests for recorded cases: one table a family of methods or models.
macro_rules! parity {
    ($($case:ident),+ $(,)?) => {
        $(#[test] fn $case() {
            super::check(stringify!($case));
            super::check_weights_and_folder(stringify!($case));
        })+

        pub(super) const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}

mod beams;
mod chosen_weights;
mod decoder_methods;
mod decoders;
mod diffusion;
mod encoder_prompts;
mod encoders;
mod ia3;
mod llama_family;
mod lora;
mod lora_on_parameters;
mod low_rank;
mod multimodal;
mod new_tokens;
mod projections;
mod prompts;
mod quantised;
mod rotations;
mod speech;
mod vision;

const TABLES: &[&[&str]] = &[
    beams::CASES,
    chosen_weights::CASES,
    decoder_methods::CASES,
    decoders::CASES,
    diffusion::CASES,
    encoder_prompts::CASES,
    encoders::CASES,
    ia3::CASES,
    llama_family::CASES,
    lora::CASES,
    lora_on_parameters::CASES,
    low_rank::CASES,
    multimodal::CASES,
    new_tokens::CASES,
    projections::CASES,
    prompts::CASES,
    quantised::CASES,
    rotations::CASES,
    speech::CASES,
    vision::CASES,
];

/// Adapters on a table that is tied to the head: merging in the reference moves the head too, which the live model does not.
/// Ours gives the head a weight of its own and computes what the live model does.
const HEAD_MOVES_WHEN_MERGED: [&str; 5] =
    ["gemma2_lora_table", "gpt2_dora_wte", "gpt2_lora_parameters_tied", "gpt2_lora_wte", "gpt2_lora_wte_saved"];

fn check(name: &str) {
    let request = request(name);
    let case = case(name);
    let (adapters, device) = (case.adapters, device_for(&case.model));
    let wanted = expected(&fixtures().join("cases").join(name).join("expected.safetensors"));
    let outputs = ["logits", "sample", "last_hidden_state"];
    let output = outputs.into_iter().find(|it| wanted.contains_key(*it)).unwrap();

    let live = forward(&request, &device).unwrap();
    assert_close(output, find(&live, output), &wanted[output]);
    if let Some(loss) = wanted.get("loss") {
        assert_close("loss", find(&live, "loss"), loss);
    }

    let gradients: Vec<&String> = wanted
        .iter()
        // A layer that AdaLoRA left without a row has gradients of no element there, and none here.
        .filter(|(key, value)| key.starts_with("grad.") && value.num_elements() > 0)
        .map(|(key, _)| key)
        .collect();
    if !gradients.is_empty() {
        let trained = forward(&ForwardRequest { grads: true, ..request.clone() }, &device).unwrap();
        let ours: BTreeSet<String> =
            trained.iter().map(|it| it.key.clone()).filter(|it| it.starts_with("grad.")).collect();
        // The first adapter is called `default` here; the fixture names its folder.
        let rename = |key: &str| match adapters.first() {
            Some(first) if adapters.len() > 1 => {
                let key = key.replacen(&format!("grad.{first}/"), "grad.default/", 1);
                adapters.iter().enumerate().skip(1).fold(key, |key, (at, name)| {
                    key.replacen(&format!("grad.{name}/"), &format!("grad.adapter{at}/"), 1)
                })
            }
            _ => key.to_owned(),
        };
        let theirs: BTreeSet<String> = gradients.iter().map(|it| rename(it)).collect();
        assert_eq!(ours, theirs, "trainable tensors");
        for key in gradients {
            assert_gradient_close(key, find(&trained, &rename(key)), &wanted[key]);
        }
        // Layers that are computed again give the numbers of layers that are kept.
        let request = ForwardRequest { grads: true, ..request.clone() };
        let again = gradient_checkpointing::scope(&request, |request| forward(request, &device)).unwrap().unwrap();
        assert_eq!(again.len(), trained.len());
        // Threads of libtorch and units of a card do not add in one order: for a UNet of SDXL it is 3.3e-5 on libtorch.
        let recomputed = match device == processor() {
            true => 1e-5,
            false if is_libtorch() => 5e-5,
            false => 3e-5,
        };
        for it in &again {
            let error = distance(&it.data, find(&trained, &it.key));
            assert!(error <= recomputed, "{} of layers that are computed again: relative error {error:.2e}", it.key);
        }
    }

    let merged_key = format!("merged.{output}");
    if let Some(merged) = wanted.get(&merged_key) {
        let merged = if HEAD_MOVES_WHEN_MERGED.contains(&name) { &wanted[output] } else { merged };
        let folded = forward(&ForwardRequest { merge: true, ..request }, &device).unwrap();
        assert_close(&merged_key, find(&folded, output), merged);
    }
}

/// The weights that merging changes, and the folder that is written back: the reference's keys, shapes and fields.
fn check_weights_and_folder(name: &str) {
    let case = case(name);
    let (folder, device) = (fixtures().join("models").join(&case.model), device_for(&case.model));
    let adapters: Vec<PathBuf> = case.adapters.iter().map(|it| fixtures().join("cases").join(name).join(it)).collect();
    match case.task.as_str() {
        "causal-lm" => {
            weights_and_folder(name, auto::load_causal_lm(folder, &device).unwrap().0, &adapters);
        }
        "seq-cls" => {
            let options = head_of(&adapters.iter().map(AdapterSource::new).collect::<Vec<_>>());
            weights_and_folder(name, auto::load_sequence_classifier(folder, &device, &options).unwrap().0, &adapters);
        }
        "token-cls" => {
            let options = head_of(&adapters.iter().map(AdapterSource::new).collect::<Vec<_>>());
            weights_and_folder(name, auto::load_token_classifier(folder, &device, &options).unwrap().0, &adapters);
        }
        "masked-lm" => {
            weights_and_folder(name, auto::load_masked_lm(folder, &device).unwrap().0, &adapters);
        }
        "question-answering" => {
            weights_and_folder(name, auto::load_question_answerer(folder, &device, 0).unwrap().0, &adapters);
        }
        "image-cls" => {
            let options = head_of(&adapters.iter().map(AdapterSource::new).collect::<Vec<_>>());
            weights_and_folder(name, auto::load_image_classifier(folder, &device, &options).unwrap().0, &adapters);
        }
        "semantic-seg" => {
            let options = head_of(&adapters.iter().map(AdapterSource::new).collect::<Vec<_>>());
            weights_and_folder(name, auto::load_semantic_segmenter(folder, &device, &options).unwrap().0, &adapters);
        }
        "image-to-text" => {
            weights_and_folder(name, auto::load_image_to_text(folder, &device).unwrap().0, &adapters);
        }
        "seq2seq-lm" => {
            weights_and_folder(name, auto::load_seq2seq_lm(folder, &device).unwrap().0, &adapters);
        }
        "unet" => weights_and_folder(name, auto::load_denoiser(folder, &device).unwrap().0, &adapters),
        "speech-to-text" => {
            weights_and_folder(name, auto::load_speech_seq2seq(folder, &device).unwrap().0, &adapters);
        }
        _ => weights_and_folder(name, auto::load_feature_extractor(folder, &device).unwrap().0, &adapters),
    }
}

fn weights_and_folder<M: Module + Adaptable>(name: &str, model: M, adapters: &[PathBuf]) {
    let mut peft = PeftModel::new(model);
    peft.set_base_name(fixtures().join("models").join(case(name).model).display().to_string());
    for folder in adapters {
        if peft.adapters().is_empty() {
            peft.adopt_tables(&AdapterFolder::open(folder).unwrap()).unwrap();
        }
        let adapter = folder.file_name().unwrap().to_str().unwrap();
        peft.load_adapter(folder, adapter, &peft::methods()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        peft.save_adapter(saved.path(), adapter).unwrap();
        let (ours, theirs) = (AdapterFolder::open(saved.path()).unwrap(), AdapterFolder::open(folder).unwrap());
        // Names of modules as they are published, whatever those of the folder are.
        let theirs = theirs.in_names_of(peft.spec()).unwrap();
        for key in ours.tensors.keys() {
            assert_eq!(ours.tensors.shape(&key), theirs.tensors.shape(&key), "{key}");
            let (ours, wanted) = (ours.tensors.floats(&key).unwrap(), theirs.tensors.floats(&key).unwrap());
            match theirs.encoder {
                // What an encoder makes is computed again.
                Some(_) => assert_close(&key, &ours, &wanted),
                None => assert_eq!(numbers(&ours), numbers(&wanted), "{key}"),
            }
        }
        // What the reference writes beyond ours are copies of frozen tensors, and biases a second time.
        let copies = [
            ".base_layer.weight",
            ".modules_to_save.bias",
            ".original_module.bias",
            ".modules_to_save.weight",
            ".original_module.weight",
            "lm_head.weight",
            "lm_head.trainable_tokens_delta",
        ];
        let spare = |key: &String| ours.tensors.shape(key).is_none() && !copies.iter().any(|it| key.ends_with(it));
        assert_eq!(theirs.tensors.keys().into_iter().find(spare), None);
        for (field, value) in &theirs.config {
            let ours = ours.config.get(field).unwrap_or_else(|| panic!("`{field}` is not written"));
            // The text encoder of a pipeline is adapted without saying for what.
            let untold = field == "task_type" && value.is_null();
            let free = untold || ["target_modules", "auto_mapping", "peft_version"].contains(&field.as_str());
            assert!(free || same(ours, value), "`{field}`: {ours} for {value}");
        }
        assert_eq!(ours.tensors.header().as_ref().unwrap()["format"], "pt");
    }
    let wanted = expected(&fixtures().join("cases").join(name).join("expected.safetensors"));
    let Ok(merged) = peft.merge() else { return };
    let weights = model_tensors(&merged);
    for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("merged.") && key.ends_with("weight")) {
        let path = key.trim_start_matches("merged.");
        if path == "lm_head.weight" && HEAD_MOVES_WHEN_MERGED.contains(&name) {
            continue;
        }
        // A tied head is listed by the reference although it is the table.
        // transformers 5 leaves a level of CLIP out.
        let is_it = |ours: &str| {
            ours == path || path.ends_with(&format!(".{ours}")) || ours.strip_prefix("text_model.") == Some(path)
        };
        if let Some(ours) = weights.iter().find(|it| is_it(&it.key)) {
            assert_close(key, &ours.data, wanted);
        } else {
            assert!(path.contains("lm_head"), "no {path}");
        }
    }
}

/// Numbers by value, lists as sets.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().all(|it| b.contains(it)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, it)| b.get(key).is_some_and(|other| same(it, other)))
        }
        _ => a == b,
    }
}

#[test]
fn every_case_with_an_adapter_is_in_the_table() {
    let folder: PathBuf = fixtures().join("cases");
    let missing: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|name| !case(name).adapters.is_empty() && !TABLES.iter().any(|it| it.contains(&name.as_str())))
        .collect();
    assert!(missing.is_empty(), "recorded but not tested: {missing:?}");
}

#[test]
fn an_adapter_that_adds_a_bias_where_there_is_none_cannot_be_merged() {
    let request = ForwardRequest { merge: true, ..request("llama_lora_bias_unmergeable") };
    let error = forward(&request, &device()).unwrap_err().to_string();
    assert!(error.contains("has none"), "{error}");
}
