//! Every case of the fixtures that has no adapter.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData, activation};
use peft_core::files::checkpoint::TensorFile;
use peft_core::ops::{IGNORE_INDEX, Interpolation, cross_entropy, interpolate};
use peft_models::auto::{
    AutoCausalLm, ClassifierOptions, load_causal_lm, load_feature_extractor, load_image_classifier, load_image_to_text,
    load_masked_lm, load_question_answerer, load_semantic_segmenter, load_seq2seq_lm, load_sequence_classifier,
    load_speech_seq2seq, load_token_classifier,
};
use peft_models::{
    AudioInput, CausalLm, FeatureExtractor, ImageClassifier, ImageToText, KvCache, MaskedLm, ModelInput,
    QuestionAnswerer, SemanticSegmenter, Seq2SeqLm, SequenceClassifier, TokenClassifier,
};
use serde_json::Value;

use crate::support::{assert_close, device, fixtures, integers, model_folder, still};

/// Named tests for recorded cases: one table a family of models.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        $(#[test] fn $case() { super::check(stringify!($case)) })+

        pub(super) const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}

mod beams;
mod decoders;
mod diffusion;
mod encoders;
mod llama_family;
mod multimodal;
mod speech;
mod vision;

const TABLES: &[&[&str]] = &[
    beams::CASES,
    decoders::CASES,
    diffusion::CASES,
    encoders::CASES,
    llama_family::CASES,
    multimodal::CASES,
    speech::CASES,
    vision::CASES,
];

#[test]
fn no_case_without_adapters_is_left_out() {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(fixtures().join("cases")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if about(&name)["adapters"].as_array().unwrap().is_empty() {
            found.insert(name);
        }
    }
    let listed: BTreeSet<String> = TABLES.iter().copied().flatten().map(|it| (*it).to_owned()).collect();
    assert_eq!(found, listed);
}

fn about(case: &str) -> Value {
    let path = fixtures().join("cases").join(case).join("case.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn check(case: &str) {
    let about = about(case);
    let folder = fixtures().join("cases").join(case);
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let expected = TensorFile::open(folder.join("expected.safetensors")).unwrap();
    let model = model_folder(about["model"].as_str().unwrap());
    let task = about["task"].as_str().unwrap();
    if task == "unet" {
        return diffusion::check_denoiser(&model, &inputs, &expected);
    }
    if task == "speech-to-text" {
        return speech::check_pass(&model, &inputs, &expected);
    }
    if ["image-cls", "semantic-seg"].contains(&task) {
        return check_picture(task, &model, &inputs, &expected);
    }
    let input = ModelInput {
        attention_mask: integers(&inputs, "attention_mask"),
        token_type_ids: integers(&inputs, "token_type_ids"),
        ..ModelInput::ids(integers(&inputs, "input_ids").unwrap())
    };

    match task {
        "causal-lm" => {
            let model = still(load_causal_lm(&model, &device()).unwrap().0);
            let logits = model.logits(&input, None);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            if let Some(labels) = integers::<2>(&inputs, "labels") {
                assert_loss(next_token_loss(logits, labels), &expected);
            }
            if about["generate"].is_object()
                && about["generate"]["repetition_penalty"].is_null()
                && about["generate"]["num_beams"].is_null()
            {
                let got = greedy(&model, &input, &about["generate"]).into_data().convert::<i64>();
                assert_eq!(got, expected.integers("generated").unwrap(), "generated");
            }
        }
        "seq-cls" => {
            let model = load_sequence_classifier(&model, &device(), &ClassifierOptions::default()).unwrap().0;
            let model = still(model);
            let logits = model.logits(&input);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            assert_loss(classifier_loss(&model, logits, &inputs), &expected);
        }
        "token-cls" => {
            let model = load_token_classifier(&model, &device(), &ClassifierOptions::default()).unwrap().0;
            let logits = still(model).logits(&input);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            assert_loss(loss_of_every_position(logits, integers(&inputs, "labels").unwrap()), &expected);
        }
        "masked-lm" => {
            let logits = still(load_masked_lm(&model, &device()).unwrap().0).logits(&input);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            assert_loss(loss_of_every_position(logits, integers(&inputs, "labels").unwrap()), &expected);
        }
        "question-answering" => {
            let logits = still(load_question_answerer(&model, &device(), 0).unwrap().0).logits(&input);
            assert_close("logits", logits.into_data(), expected.floats("logits").unwrap());
        }
        "seq2seq-lm" => {
            let model = still(load_seq2seq_lm(&model, &device()).unwrap().0);
            let labels: Tensor<2, Int> = integers(&inputs, "labels").unwrap();
            let read =
                integers(&inputs, "decoder_input_ids").unwrap_or_else(|| model.shift_right(labels.clone()).unwrap());
            let target =
                ModelInput { attention_mask: integers(&inputs, "decoder_attention_mask"), ..ModelInput::ids(read) };
            let logits = model.logits(&input, &target);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            assert_loss(loss_of_every_position(logits, labels), &expected);
        }
        "image-to-text" => {
            let model = still(load_image_to_text(&model, &device()).unwrap().0);
            let pixels = Tensor::<4>::from_data(inputs.floats("pixel_values").unwrap(), &device());
            let read = model.read(pixels, &input);
            let labels = integers::<2>(&inputs, "labels");
            let target = labels.clone().filter(|_| model.has_encoder());
            let target = target.map(|it| ModelInput::ids(model.shift_right(it).unwrap()));
            let logits = model.logits(&read, target.as_ref());
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            if let Some(labels) = labels {
                let loss = if model.has_encoder() { loss_of_every_position } else { next_token_loss };
                assert_loss(loss(logits, labels), &expected);
            }
        }
        "feature-extraction" => {
            let model = still(load_feature_extractor(&model, &device()).unwrap().0);
            let hidden = model.last_hidden_state(&input);
            assert_close("last_hidden_state", hidden.into_data(), expected.floats("last_hidden_state").unwrap());
        }
        other => panic!("unknown task {other}"),
    }
}

/// Models that read `pixel_values`, for which labels may be missing.
fn check_picture(task: &str, model: &Path, inputs: &TensorFile, expected: &TensorFile) {
    let pixels = Tensor::<4>::from_data(inputs.floats("pixel_values").unwrap(), &device());
    let options = ClassifierOptions::default();
    let has_labels = inputs.shape("labels").is_some();
    match task {
        "image-cls" => {
            let logits = still(load_image_classifier(model, &device(), &options).unwrap().0).logits(pixels);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            if has_labels {
                assert_loss(cross_entropy(logits, integers(inputs, "labels").unwrap()), expected);
            }
        }
        _ => {
            let model = still(load_semantic_segmenter(model, &device(), &options).unwrap().0);
            let logits = model.logits(pixels);
            assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
            let Some(labels) = integers::<3>(inputs, "labels") else { return };
            let [batch, height, width] = labels.dims();
            let large = interpolate(logits, [height, width], Interpolation::Bilinear);
            let (classes, pixels) = (model.num_labels(), batch * height * width);
            let labels = labels.reshape([pixels]);
            let ignored = labels.clone().equal_elem(model.ignored_label());
            if classes > 1 {
                let rows = large.permute([0, 2, 3, 1]).reshape([pixels, classes]);
                assert_loss(cross_entropy(rows, labels.mask_fill(ignored, IGNORE_INDEX)), expected);
            } else {
                let signed = large.reshape([pixels]) * labels.float().mul_scalar(2.0).sub_scalar(1.0);
                let each = activation::log_sigmoid(signed).neg();
                assert_loss(each.mask_fill(ignored, 0.0).mean(), expected);
            }
        }
    }
}

/// The file's loss has no axis, ours has one.
#[track_caller]
fn assert_loss(loss: Tensor<1>, expected: &TensorFile) {
    let want = expected.floats("loss").unwrap().try_to_vec::<f32>().unwrap();
    assert_close("loss", loss.into_data(), TensorData::new(want, [1]));
}

fn loss_of_every_position(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, seq, classes] = logits.dims();
    cross_entropy(logits.reshape([batch * seq, classes]), labels.reshape([batch * seq]))
}

fn next_token_loss(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, seq, vocab] = logits.dims();
    let rows = batch * (seq - 1);
    let logits = logits.narrow(1, 0, seq - 1).reshape([rows, vocab]);
    cross_entropy(logits, labels.narrow(1, 1, seq - 1).reshape([rows]))
}

fn classifier_loss(model: &impl SequenceClassifier, logits: Tensor<2>, inputs: &TensorFile) -> Tensor<1> {
    let floats = || {
        let labels = inputs.floats("labels").unwrap();
        let flat = TensorData::new(labels.try_to_vec::<f32>().unwrap(), [labels.num_elements()]);
        Tensor::<1>::from_data(flat, &device()).reshape(logits.dims())
    };
    match (model.problem_type(), model.num_labels()) {
        (Some("multi_label_classification"), _) => {
            // −log σ(x) where the label is 1, −log(1 − σ(x)) where it is 0.
            let signed = logits.clone() * floats().mul_scalar(2.0).sub_scalar(1.0);
            activation::log_sigmoid(signed).mean().neg()
        }
        (Some("regression"), _) | (None, 1) => (logits.clone() - floats()).square().mean(),
        _ => cross_entropy(logits, integers(inputs, "labels").unwrap()),
    }
}

/// Greedy generation with a cache, as the reference does it: positions do not count padding.
fn greedy(model: &AutoCausalLm, prompt: &ModelInput, settings: &Value) -> Tensor<2, Int> {
    let stops: Vec<i64> = match &settings["eos_token_id"] {
        Value::Array(stops) => stops.iter().map(|it| it.as_i64().unwrap()).collect(),
        stop => vec![stop.as_i64().unwrap()],
    };
    let pad = settings["pad_token_id"].as_i64().unwrap();
    let peft_models::Tokens::Ids(mut text) = prompt.tokens.clone() else { unreachable!() };
    let [batch, seq] = text.dims();
    let ones = |width: usize| Tensor::<2, Int>::ones([batch, width], &device());
    let mut mask = prompt.attention_mask.clone().unwrap_or_else(|| ones(seq));
    let mut fresh = text.clone();
    let mut cache = KvCache::new();
    let mut done = vec![false; batch];
    for _ in 0..settings["max_new_tokens"].as_u64().unwrap() {
        if model.cache_limit().is_some_and(|it| cache.len() <= it && text.dims()[1] > it) {
            (fresh, cache) = (text.clone(), KvCache::new());
        }
        let width = fresh.dims()[1];
        let positions = mask.clone().cumsum(1).sub_scalar(1).clamp_min(0);
        let past = positions.dims()[1] - width;
        let input = ModelInput {
            position_ids: Some(positions.narrow(1, past, width)),
            ..ModelInput::ids(fresh).with_mask(mask.clone())
        };
        let hidden = model.hidden(&input, Some(&mut cache)).narrow(1, width - 1, 1).squeeze_dim::<2>(1);
        let next = model.head(hidden).argmax(1).into_data().convert::<i64>();
        let mut next: Vec<i64> = next.iter::<i64>().collect();
        for (token, done) in next.iter_mut().zip(&mut done) {
            *token = if *done { pad } else { *token };
            *done |= stops.contains(token);
        }
        fresh = Tensor::<1, Int>::from_ints(next.as_slice(), &device()).reshape([batch, 1]);
        text = Tensor::cat(vec![text, fresh.clone()], 1);
        mask = Tensor::cat(vec![mask, ones(1)], 1);
        if done.iter().all(|it| *it) {
            break;
        }
    }
    text
}
