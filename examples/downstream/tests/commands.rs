//! The built command on a tiny ALBERT with RoAd, and both against numbers that are computed here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use downstream::albert;
use downstream::road::{RoadConfig, Variant};
use peft::Registry;
use peft::core::burn;
use peft::core::burn::module::{Module, Param};
use peft::core::burn::tensor::{Device, Int, Tensor, TensorData};
use peft::core::checkpoint::{FloatType, Stored, TensorFile, model_tensors, write_tensors};
use peft::core::nn::{self, Projection};
use peft::core::{MethodRegistry, Names, PeftModel, laws};
use peft::models::auto::{ArchitectureRegistry, load_causal_lm};
use peft::models::common::config::RawConfig;
use peft::models::{CausalLm, ModelInput};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the command prints, if it succeeds; what it complains about, if it fails.
fn run(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_downstream")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A folder for a test, and paths in it as text.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.0.path().join(name), text).unwrap();
        self.at(name)
    }

    fn rows(&self, name: &str, rows: &[Value]) -> String {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        self.write(name, &lines.join("\n"))
    }
}

// A checkpoint.

/// The first four are what ALBERT's tokenizer begins with.
const WORDS: [&str; 22] = [
    "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "the", "film", "song", "was", "and", "very", "rather", "fine",
    "great", "lovely", "clever", "poor", "awful", "dull", "sad", "how", "?",
];
const GOOD: [&str; 4] = ["fine", "great", "lovely", "clever"];
const BAD: [&str; 4] = ["poor", "awful", "dull", "sad"];

fn config() -> Value {
    json!({
        "model_type": "albert", "vocab_size": WORDS.len(), "embedding_size": 12, "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 24, "pad_token_id": 0,
    })
}

/// Numbers between −1 and 1 that depend on the seed alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        // Knuth's MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Every tensor of an ALBERT with random numbers: also norms and biases, or nobody would miss them.
fn weights(config: &Value, has_classifier: bool) -> Vec<Stored> {
    let registry = ArchitectureRegistry::builtin().with(albert::architecture());
    let (raw, device) = (RawConfig::parse_text(&config.to_string()).unwrap(), Device::default());
    let mut tensors = model_tensors(&registry.sequence_classifier(&raw, &device).unwrap());
    tensors.retain(|it| has_classifier || !it.key.starts_with("classifier"));
    let head = model_tensors(&registry.masked_lm(&raw, &device).unwrap());
    tensors.extend(head.into_iter().filter(|it| it.key.starts_with("predictions")));
    let mut random = Random(7);
    for Stored { key, data } in &mut tensors {
        let shape = data.shape().clone();
        let first = if key.ends_with("norm.weight") || key.ends_with("Norm.weight") { 1.0 } else { 0.0 };
        let values = (0..shape.num_elements()).map(|_| first + 0.4 * random.next()).collect();
        *data = TensorData::new::<f32, _>(values, shape);
    }
    tensors
}

/// A base model in `folder`: all that a published one has, so no classifier.
fn base(folder: &Folder, config: &Value) -> String {
    fs::create_dir(folder.0.path().join("base")).unwrap();
    folder.write("base/config.json", &config.to_string());
    write_tensors(folder.at("base/model.safetensors"), weights(config, false), FloatType::F32).unwrap();
    let added = |id: usize| {
        json!({
            "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    let token = |id: &str, type_id: usize| json!({"SpecialToken": {"id": id, "type_id": type_id}});
    let text = |id: &str, type_id: usize| json!({"Sequence": {"id": id, "type_id": type_id}});
    let special = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": (0..5).map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)],
            "pair": [token("[CLS]", 0), text("A", 0), token("[SEP]", 0), text("B", 1), token("[SEP]", 1)],
            "special_tokens": {"[CLS]": special(2), "[SEP]": special(3)},
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    folder.write("base/tokenizer.json", &tokenizer.to_string());
    let named = json!({
        "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    });
    folder.write("base/tokenizer_config.json", &named.to_string());
    folder.at("base")
}

fn road_json(variant: &str) -> Value {
    json!({"peft_type": "ROAD", "variant": variant, "group_size": 8, "target_modules": ["query", "value", "ffn"]})
}

// Data: what decides is one word of five.

fn sentences() -> Vec<Value> {
    let mut rows = Vec::new();
    for (of, label) in [(GOOD, "good"), (BAD, "bad")] {
        for word in of {
            rows.push(json!({"text": format!("the film was very {word}"), "label": label}));
            rows.push(json!({"text": format!("the {word} song"), "label": label}));
        }
    }
    rows
}

fn pairs() -> Vec<Value> {
    let answers = |good: &str, bad: &str| (format!("the film was rather {good}"), format!("very {bad}"));
    let pairs = GOOD.iter().flat_map(|good| BAD.iter().map(|bad| answers(good, bad)));
    pairs
        .map(|(chosen, rejected)| json!({"prompt": "how was the film ?", "chosen": chosen, "rejected": rejected}))
        .collect()
}

/// The number behind `name` in what the command printed; the last one if there are several.
#[track_caller]
fn number(printed: &str, name: &str) -> f64 {
    let behind = printed.rsplit_once(&format!("{name} ")).unwrap_or_else(|| panic!("no {name} in\n{printed}")).1;
    behind.split_whitespace().next().unwrap().parse().unwrap_or_else(|error| panic!("{error}: {name} in\n{printed}"))
}

/// The evaluation before the first step, and that at the end.
#[track_caller]
fn losses(printed: &str) -> (f64, f64) {
    let before = printed.split("before: ").nth(1).unwrap_or_else(|| panic!("no evaluation in\n{printed}"));
    (
        number(before.lines().next().unwrap(), "loss"),
        number(&printed[printed.find("step ").unwrap()..], "evaluation loss"),
    )
}

#[track_caller]
fn close(what: &str, actual: f64, wanted: f64) {
    // What is compared was printed with four digits.
    assert!((actual - wanted).abs() <= 2e-4, "{what}: {actual}, not {wanted}");
}

/// Trains with the settings of `method`, evaluated on its own data before and after.
fn train(folder: &Folder, base: &str, task: &str, data: &str, method: &Value, more: &[&str]) -> Result<String, String> {
    let method = folder.write("method.json", &method.to_string());
    let output = folder.at("adapter");
    let fixed = [
        "train",
        "--model",
        base,
        "--task",
        task,
        "--data",
        data,
        "--eval-data",
        data,
        "--method-config",
        &method,
        "--output",
        &output,
    ];
    let default = [["--steps", "40"], ["--lr", "2e-2"]];
    let default: Vec<&str> = default.iter().filter(|it| !more.contains(&it[0])).flatten().copied().collect();
    run(&[&fixed[..], &default, more].concat())
}

#[test]
fn methods_tell_of_road() {
    let listed = run(&["methods"]).unwrap();
    assert!(listed.contains("RoAd") && listed.contains("LORA"), "{listed}");
    let told = run(&["methods", "road"]).unwrap();
    for part in ["arXiv 2409.00119", "downstream", "variant = \"road_1\"", "group_size = 64", "init_weights = true"] {
        assert!(told.contains(part), "no {part} in\n{told}");
    }
}

#[test]
fn a_classifier_is_trained_evaluated_inspected_and_merged() {
    let folder = Folder::new();
    let base = base(&folder, &config());
    let data = folder.rows("data.jsonl", &sentences());
    let more = ["--steps", "400", "--lr", "3e-2"];
    let printed = train(&folder, &base, "seq-cls", &data, &road_json("road_2"), &more).unwrap();
    let (before, after) = losses(&printed);
    assert!(after < 0.5 * before, "the loss must fall:\n{printed}");

    let adapter = folder.at("adapter");
    let eval = |more: &[&str]| run(&[&["eval", "--task", "seq-cls", "--data", &data], more].concat()).unwrap();
    let live = eval(&["--model", &base, "--adapter", &adapter]);
    close("reloaded", number(&live, "loss"), after);
    assert_eq!(number(&live, "accuracy"), 1.0, "{live}");

    // The adapter is more than the head that is saved beside it.
    let file = TensorFile::open(folder.at("adapter/adapter_model.safetensors")).unwrap();
    let theta = "base_model.model.albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.road_theta";
    assert_eq!(file.shape(theta), Some(&[32][..]), "{:?}", file.keys());
    assert!(file.floats(theta).unwrap().iter::<f32>().any(|it| it.abs() > 0.05), "angles have not moved");
    assert_eq!(file.keys().len(), 3 * 2 + 2, "three layers, shared by all depths, and a head: {:?}", file.keys());

    let told: Value = serde_json::from_str(&run(&["inspect", &adapter, "--model", &base, "--json"]).unwrap()).unwrap();
    assert_eq!(told["fit"]["fits"], true, "{told}");
    assert_eq!((&told["known"], &told["layers"]["query"]), (&json!(true), &json!(1)), "{told}");
    let mut other = config();
    other["hidden_size"] = 48.into();
    let strange = Folder::new();
    strange.write("config.json", &other.to_string());
    let strange = strange.0.path().display().to_string();
    let error = run(&["inspect", &adapter, "--model", &strange]).unwrap_err();
    assert!(error.contains("does not fit"), "{error}");

    let merged = folder.at("merged");
    run(&["merge", "--model", &base, "--adapter", &adapter, "--output", &merged]).unwrap();
    close("merged", number(&eval(&["--model", &merged]), "loss"), after);
    let file = TensorFile::open(folder.at("merged/model.safetensors")).unwrap();
    assert!(file.keys().iter().all(|it| !it.contains("road")), "{:?}", file.keys());

    let converted = folder.at("converted");
    let conversion = run(&["convert", "--model", &base, "--adapter", &adapter, "--rank", "4", "--output", &converted]);
    assert!(conversion.as_ref().unwrap_err().contains("more than the weight"), "biases turn too: {conversion:?}");
}

#[test]
fn a_ranking_is_trained_evaluated_and_merged() {
    let folder = Folder::new();
    let base = base(&folder, &config());
    let data = folder.rows("pairs.jsonl", &pairs());
    let printed = train(&folder, &base, "pair-ranking", &data, &road_json("road_1"), &[]).unwrap();
    let (before, after) = losses(&printed);
    assert!(after < 0.5 * before, "the loss must fall:\n{printed}");

    let adapter = folder.at("adapter");
    let eval = |data: &str, more: &[&str]| run(&[&["eval", "--task", "reward", "--data", data], more].concat());
    let live = eval(&data, &["--model", &base, "--adapter", &adapter]).unwrap();
    close("reloaded", number(&live, "loss"), after);
    assert_eq!(number(&live, "accuracy"), 1.0, "{live}");
    // Pair by pair: none sees another, and other rows are filled up.
    let alone = eval(&data, &["--model", &base, "--adapter", &adapter, "--batch-size", "1"]).unwrap();
    close("alone", number(&alone, "loss"), after);

    // With the answers exchanged the same model is wrong about every pair.
    let swap = |it: &Value| json!({"prompt": it["prompt"], "chosen": it["rejected"], "rejected": it["chosen"]});
    let swapped = folder.rows("swapped.jsonl", &pairs().iter().map(swap).collect::<Vec<_>>());
    let wrong = eval(&swapped, &["--model", &base, "--adapter", &adapter]).unwrap();
    assert_eq!(number(&wrong, "accuracy"), 0.0, "{wrong}");
    close("margin", number(&wrong, "margin"), -number(&live, "margin"));

    let merged = folder.at("merged");
    run(&["merge", "--model", &base, "--adapter", &adapter, "--output", &merged]).unwrap();
    close("merged", number(&eval(&data, &["--model", &merged]).unwrap(), "loss"), after);
    let config: Value = serde_json::from_str(&fs::read_to_string(folder.at("merged/config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"].as_object().map(|it| it.len()), Some(1), "{config}");

    let short = folder.write("short.jsonl", r#"{"prompt": "how ?", "chosen": "fine"}"#);
    let error = eval(&short, &["--model", &base, "--adapter", &adapter]).unwrap_err();
    assert!(error.contains("line 1") && error.contains("no column `rejected`"), "{error}");
}

#[test]
fn a_recorded_pass_is_the_same_merged_and_has_gradients() {
    let folder = Folder::new();
    let base = base(&folder, &config());
    let data = folder.rows("pairs.jsonl", &pairs());
    train(&folder, &base, "pair-ranking", &data, &road_json("road_4"), &[]).unwrap();
    let ids = vec![2i64, 12, 13, 3, 2, 16, 3, 0];
    let mask = vec![1i64, 1, 1, 1, 1, 1, 1, 0];
    let stored = |key: &str, data: Vec<i64>| Stored { key: key.to_owned(), data: TensorData::new(data, [2, 4]) };
    let inputs = folder.at("inputs.safetensors");
    write_tensors(&inputs, vec![stored("input_ids", ids), stored("attention_mask", mask)], FloatType::F32).unwrap();
    let pass = |output: &str, more: &[&str]| {
        let (adapter, output) = (folder.at("adapter"), folder.at(output));
        let fixed = ["forward", "--model", &base, "--task", "pair-ranking", "--adapter", &adapter];
        run(&[&fixed[..], &["--inputs", &inputs, "--output", &output], more].concat()).unwrap();
        TensorFile::open(output).unwrap()
    };
    let (live, merged) = (pass("live.safetensors", &["--grads"]), pass("merged.safetensors", &["--merge"]));
    let distance = laws::distance(&merged.floats("logits").unwrap(), &live.floats("logits").unwrap());
    assert!(distance < 2e-5, "merged is off by {distance}");
    let scores: Vec<f64> = live.floats("logits").unwrap().iter().collect();
    let loss: Vec<f64> = live.floats("loss").unwrap().iter().collect();
    close("loss", loss[0], (1.0 + (scores[1] - scores[0]).exp()).ln());
    let gradients: Vec<String> = live.keys().into_iter().filter(|it| it.contains("road_")).collect();
    assert_eq!(gradients.len(), 6, "{gradients:?}");
    for key in gradients {
        assert!(live.floats(&key).unwrap().iter::<f32>().any(|it| it != 0.0), "{key} is zero");
    }
}

#[test]
fn every_task_of_albert_is_trained() {
    let words = |word: &str| json!({"tokens": ["the", word, "song"], "tags": ["O", "WORD", "O"]});
    let tagged: Vec<Value> = GOOD.iter().map(|it| words(it)).collect();
    let alike =
        |at: usize| json!({"text": format!("the {} song", GOOD[at]), "text_pair": format!("very {}", GOOD[at])});
    let alike: Vec<Value> = (0..4).map(alike).collect();
    let prefix = json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3});
    let prompt = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3});
    let road = road_json("road_1");
    let cases = [
        ("token-cls", &tagged, &road),
        ("masked-lm", &sentences(), &road),
        ("similarity", &alike, &road),
        ("seq-cls", &sentences(), &prefix),
        ("seq-cls", &sentences(), &prompt),
    ];
    for (task, rows, method) in cases {
        let folder = Folder::new();
        let base = base(&folder, &config());
        let data = folder.rows("data.jsonl", rows);
        let printed = train(&folder, &base, task, &data, method, &[]).unwrap_or_else(|error| panic!("{task}: {error}"));
        let (before, after) = losses(&printed);
        assert!(after < before, "{task}:\n{printed}");
        let adapter = folder.at("adapter");
        let live = run(&["eval", "--model", &base, "--task", task, "--data", &data, "--adapter", &adapter]).unwrap();
        close(task, number(&live, "loss"), after);
        let told = run(&["inspect", &adapter, "--model", &base, "--json"]).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["fit"]["fits"], true, "{task}: {told}");
    }
}

/// A layer that is called at every depth is computed again at every depth.
#[test]
fn gradient_checkpointing_trains_a_shared_layer_alike() {
    let trained = |more: &[&str]| {
        let folder = Folder::new();
        let base = base(&folder, &config());
        let data = folder.rows("data.jsonl", &sentences());
        losses(&train(&folder, &base, "seq-cls", &data, &road_json("road_1"), more).unwrap())
    };
    let (plain, checkpointed) = (trained(&[]), trained(&["--gradient-checkpointing"]));
    close("after training", checkpointed.1, plain.1);
}

#[test]
fn a_causal_model_is_trained_and_writes() {
    let folder = Folder::new();
    let (base, data) = (workspace("peft/demo/base"), workspace("peft/demo/voice_eval.txt"));
    let (base, data) = (base.display().to_string(), data.display().to_string());
    let method = json!({"peft_type": "ROAD", "group_size": 64});
    let printed = train(&folder, &base, "causal-lm", &data, &method, &["--max-length", "32", "--steps", "8"]).unwrap();
    let (before, after) = losses(&printed);
    assert!(after < before, "{printed}");
    let adapter = folder.at("adapter");
    let write = |more: &[&str]| {
        run(&[&["generate", "--model", &base, "--prompt", "The", "--max-new-tokens", "12"], more].concat()).unwrap()
    };
    assert_ne!(write(&["--adapter", &adapter]), write(&[]), "the adapter must be heard");
}

// RoAd by itself.

#[derive(Module, Debug)]
struct Net {
    layer: Projection,
}

/// What RoAd makes of 1, 2, …, 8 with these angles, in quarters of a circle, and these scales: live and merged.
fn turned(variant: Variant, quarters: &[f32], alpha: &[f32]) -> [Vec<f32>; 2] {
    let device = Device::default();
    // `W x + b` with 0.5 + k and 0.5: a bias that did not turn would show.
    let weight = Tensor::<2>::from_data([[0.5], [1.5], [2.5], [3.5], [4.5], [5.5], [6.5], [7.5]], &device);
    let bias = Tensor::<1>::full([8], 0.5, &device);
    let fixed = |it: Param<Tensor<2>>| it.set_require_grad(false);
    let layer = Projection {
        weight: fixed(Param::from_tensor(weight)),
        bias: Some(Param::from_tensor(bias).set_require_grad(false)),
    };
    let mut peft = PeftModel::of_module(Net { layer });
    let target_modules = Some(Names::list(["layer"]));
    peft.add_adapter(RoadConfig { variant, group_size: 4, target_modules, ..RoadConfig::default() }).unwrap();
    let theta: Vec<f32> = quarters.iter().map(|it| it * std::f32::consts::FRAC_PI_2).collect();
    let stored = |field: &str, values: Vec<f32>| {
        let shape = [values.len()];
        Stored { key: format!("base_model.model.layer.{field}"), data: TensorData::new(values, shape) }
    };
    let tensors = vec![stored("road_theta", theta), stored("road_alpha", alpha.to_vec())];
    peft.assign_adapter("default", tensors).unwrap();
    let one = || Tensor::<2>::from_data([[1.0]], &device);
    let numbers = |net: &Net| net.layer.forward(one()).into_data().iter::<f32>().collect();
    [numbers(peft.model()), numbers(&peft.merge().unwrap())]
}

/// Worked out by hand from `_prepare_cols` and `_apply_road`: with groups of four, `rotate` makes of the outputs
/// (1 2 3 4)(5 6 7 8) the numbers (−3 −4 1 2)(−7 −8 5 6).
#[test]
fn road_turns_as_the_reference_says() {
    type Case<'a> = (Variant, &'a [f32], &'a [f32], [f32; 8]);
    let cases: [Case<'_>; 3] = [
        // Pairs (1, 3), (2, 4), (5, 7), (6, 8).
        (Variant::Pair, &[0.0, 1.0, 1.0, 2.0], &[2.0, 1.0, 3.0, 0.5], [2.0, -4.0, 6.0, 2.0, -21.0, -3.0, 15.0, -4.0]),
        (
            Variant::Feature,
            &[0.0, 1.0, 2.0, 1.0, 0.0, 2.0, 1.0, 0.0],
            &[1.0, 2.0, 3.0, 4.0, 0.5, 1.0, 1.0, 2.0],
            [1.0, -8.0, -9.0, 8.0, 2.5, -6.0, 5.0, 16.0],
        ),
        // In every group four numbers for the cosines, then four for the sines.
        (
            Variant::Entry,
            &[0.0, 2.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0],
            &[2.0, 1.0, 1.0, 7.0, 1.0, 9.0, 3.0, 0.5, 1.0, 2.0, 3.0, 4.0, 2.0, 5.0, 5.0, 1.0],
            [-1.0, -2.0, 6.0, 1.0, -9.0, 12.0, 21.0, 38.0],
        ),
    ];
    for (variant, quarters, alpha, wanted) in cases {
        for (how, numbers) in ["live", "merged"].into_iter().zip(turned(variant, quarters, alpha)) {
            let off = numbers.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4, "{variant:?}, {how}: {numbers:?}, not {wanted:?}");
        }
    }
}

#[test]
fn road_keeps_every_law() {
    let device = Device::default();
    // GPT-2's layers lie input first and have biases; LLaMA's lie output first and have none.
    for (name, targets, group_size) in [("gpt2-tiny", ["c_attn", "c_fc"], 4), ("llama-tiny", ["q_proj", "v_proj"], 8)] {
        let folder = workspace("fixtures/models").join(name);
        let base = || PeftModel::new(nn::set_training(load_causal_lm(&folder, &device).unwrap().0, false));
        let ids = Tensor::<2, Int>::from_data([[5, 17, 42, 8, 60, 3], [7, 7, 30, 58, 14, 2]], &device);
        let input = ModelInput::ids(ids);
        let methods = MethodRegistry::new().with_method::<RoadConfig>();
        for variant in [Variant::Pair, Variant::Feature, Variant::Entry] {
            let target_modules = Some(Names::list(targets));
            let config =
                || RoadConfig { variant, group_size, target_modules: target_modules.clone(), ..Default::default() };
            let logits = |model: &_| CausalLm::logits(model, &input, None);
            laws::all(base, config, &methods, laws::Promises::default(), logits);
            let random = || RoadConfig { init_weights: false, ..config() };
            let promises = laws::Promises { starts_as_base: false, ..laws::Promises::default() };
            laws::all(base, random, &methods, promises, logits);
        }
    }
}

#[test]
fn what_cannot_be_turned_is_refused() {
    let folder = Folder::new();
    let base = base(&folder, &config());
    let data = folder.rows("data.jsonl", &sentences());
    let with = |field: &str, value: Value| {
        let mut method = road_json("road_1");
        method[field] = value;
        train(&folder, &base, "seq-cls", &data, &method, &[]).unwrap_err()
    };
    assert!(with("group_size", 7.into()).contains("`group_size` is 7, but groups are halved"));
    assert!(with("group_size", 12.into()).contains("does not divide the 32 outputs of `albert."));
    assert!(
        with("target_modules", json!(["word_embeddings"])).contains("an embedding; RoAd adapts linear layers only")
    );
    assert!(with("variant", "road_3".into()).contains("road_3"));
    assert!(with("use_dora", true.into()).contains("`use_dora` is switched on"));
    let mut odd = config();
    odd["num_hidden_groups"] = 4.into();
    let raw = RawConfig::parse_text(&odd.to_string()).unwrap();
    let registry = Registry::builtin().with_architecture(albert::architecture());
    let error = registry.architectures.feature_extractor(&raw, &Device::default()).unwrap_err().to_string();
    assert!(error.contains("`num_hidden_groups` is 4 for 3 layers"), "{error}");
}

// ALBERT by itself, number by number.

type Rows = Vec<Vec<f64>>;

/// The reference's forward in double precision, one sequence at a time: `modeling_albert.py`, read anew.
struct Reference {
    tensors: Vec<Stored>,
    heads: usize,
}

impl Reference {
    fn tensor(&self, key: &str) -> (Vec<usize>, Vec<f64>) {
        let found = self.tensors.iter().find(|it| it.key == key).unwrap_or_else(|| panic!("no {key}"));
        (found.data.shape().as_slice().to_vec(), found.data.iter::<f64>().collect())
    }

    fn row(&self, key: &str, row: usize) -> Vec<f64> {
        let (shape, values) = self.tensor(key);
        values[row * shape[1]..(row + 1) * shape[1]].to_vec()
    }

    fn linear(&self, key: &str, rows: &Rows) -> Rows {
        let (shape, weight) = self.tensor(&format!("{key}.weight"));
        let bias = self.tensor(&format!("{key}.bias")).1;
        let dot = |row: &[f64], out: usize| row.iter().zip(&weight[out * shape[1]..]).map(|(x, w)| x * w).sum::<f64>();
        rows.iter().map(|row| (0..shape[0]).map(|out| dot(row, out) + bias[out]).collect()).collect()
    }

    fn norm(&self, key: &str, rows: &Rows) -> Rows {
        let weight = self.tensor(&format!("{key}.weight")).1;
        let bias = self.tensor(&format!("{key}.bias")).1;
        let of = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (variance + 1e-12).sqrt();
            (0..row.len()).map(|at| (row[at] - mean) * scale * weight[at] + bias[at]).collect()
        };
        rows.iter().map(of).collect()
    }

    fn attention(&self, key: &str, hidden: &Rows) -> Rows {
        let [query, keys, values] = ["query", "key", "value"].map(|it| self.linear(&format!("{key}.{it}"), hidden));
        let d_head = hidden[0].len() / self.heads;
        let mut mixed = vec![vec![0.0; hidden[0].len()]; hidden.len()];
        for head in 0..self.heads {
            let part = head * d_head..(head + 1) * d_head;
            for at in 0..hidden.len() {
                let score = |to: usize| part.clone().map(|it| query[at][it] * keys[to][it]).sum::<f64>();
                let scores: Vec<f64> = (0..hidden.len()).map(|to| (score(to) / (d_head as f64).sqrt()).exp()).collect();
                let all: f64 = scores.iter().sum();
                for it in part.clone() {
                    mixed[at][it] = (0..hidden.len()).map(|to| scores[to] / all * values[to][it]).sum();
                }
            }
        }
        self.norm(&format!("{key}.LayerNorm"), &add(hidden, &self.linear(&format!("{key}.dense"), &mixed)))
    }

    fn layer(&self, key: &str, hidden: &Rows) -> Rows {
        let hidden = self.attention(&format!("{key}.attention"), hidden);
        let mut inner = self.linear(&format!("{key}.ffn"), &hidden);
        for it in inner.iter_mut().flatten() {
            // `gelu_new`
            *it *= 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (*it + 0.044_715 * it.powi(3))).tanh());
        }
        let output = self.linear(&format!("{key}.ffn_output"), &inner);
        self.norm(&format!("{key}.full_layer_layer_norm"), &add(&output, &hidden))
    }

    /// `layers` are group and layer in it, in the order in which they are called.
    fn hidden(&self, ids: &[usize], types: &[usize], layers: &[(usize, usize)]) -> Rows {
        let table = |name: &str, rows: &[usize]| -> Rows {
            rows.iter().map(|row| self.row(&format!("albert.embeddings.{name}.weight"), *row)).collect()
        };
        let places: Vec<usize> = (0..ids.len()).collect();
        let words = add(&table("word_embeddings", ids), &table("token_type_embeddings", types));
        let sum = add(&words, &table("position_embeddings", &places));
        let embedded = self.norm("albert.embeddings.LayerNorm", &sum);
        let mut hidden = self.linear("albert.encoder.embedding_hidden_mapping_in", &embedded);
        for (group, layer) in layers {
            hidden = self.layer(&format!("albert.encoder.albert_layer_groups.{group}.albert_layers.{layer}"), &hidden);
        }
        hidden
    }

    fn logits(&self, hidden: &Rows) -> Vec<f64> {
        let mut pooled = self.linear("albert.pooler", &vec![hidden[0].clone()]);
        pooled[0].iter_mut().for_each(|it| *it = it.tanh());
        self.linear("classifier", &pooled).remove(0)
    }

    fn words(&self, hidden: &Rows) -> Rows {
        let mut inner = self.linear("predictions.dense", hidden);
        for it in inner.iter_mut().flatten() {
            *it *= 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (*it + 0.044_715 * it.powi(3))).tanh());
        }
        let inner = self.norm("predictions.LayerNorm", &inner);
        let bias = self.tensor("predictions.bias").1;
        let table: Rows = (0..WORDS.len()).map(|it| self.row("albert.embeddings.word_embeddings.weight", it)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        inner.iter().map(|row| table.iter().zip(&bias).map(|(word, bias)| dot(row, word) + bias).collect()).collect()
    }
}

fn add(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

#[test]
fn albert_computes_what_the_reference_does() {
    // Four calls of two groups of two layers: `int(i / (4 / 2))` is 0, 0, 1, 1.
    let mut grouped = config();
    (grouped["num_hidden_layers"], grouped["num_hidden_groups"], grouped["inner_group_num"]) =
        (4.into(), 2.into(), 2.into());
    let in_groups = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1), (1, 0), (1, 1)];
    for (config, layers) in [(config(), &[(0, 0); 3][..]), (grouped, &in_groups[..])] {
        let folder = Folder::new();
        let base = base(&folder, &config);
        let tensors = weights(&config, true);
        write_tensors(folder.at("base/model.safetensors"), tensors.clone(), FloatType::F32).unwrap();
        let reference = Reference { tensors, heads: 4 };
        let (ids, types) = ([2usize, 20, 8, 3, 12, 3], [0usize, 0, 0, 0, 1, 1]);
        let hidden = reference.hidden(&ids, &types, layers);

        // Padding behind the row must change nothing.
        let row = |values: &[usize]| {
            let padded: Vec<i64> = values.iter().map(|it| *it as i64).chain([0, 0]).collect();
            TensorData::new(padded, [1, 8])
        };
        let stored = |key: &str, data| Stored { key: key.to_owned(), data };
        let inputs = vec![
            stored("input_ids", row(&ids)),
            stored("token_type_ids", row(&types)),
            stored("attention_mask", row(&[1; 6])),
        ];
        let (file, output) = (folder.at("inputs.safetensors"), folder.at("output.safetensors"));
        write_tensors(&file, inputs, FloatType::F32).unwrap();
        for (task, name, wanted) in [
            ("feature-extraction", "last_hidden_state", hidden.concat()),
            ("seq-cls", "logits", reference.logits(&hidden)),
            ("masked-lm", "logits", reference.words(&hidden).concat()),
        ] {
            run(&["forward", "--model", &base, "--task", task, "--inputs", &file, "--output", &output]).unwrap();
            let actual: Vec<f64> = TensorFile::open(&output).unwrap().floats(name).unwrap().iter().collect();
            let scale = wanted.iter().fold(0.0f64, |max, it| max.max(it.abs()));
            let off = actual.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-4 * scale, "{task}: off by {off} of {scale}");
        }
    }
}
