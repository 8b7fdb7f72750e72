//! Bases in few bits, and optimizers of few bits, as a user asks for them.

use std::path::Path;

use serde_json::Value;

use super::adapters::peft;
use super::labels::at;
use super::run_file::{base, config, texts};
use crate::support::{assert_close, expected, fixtures};

/// LoftQ without `--quantize` quantises by itself; with it, it starts from what was lost, and the adapter is an ordinary one on
/// the quantised base.
#[test]
fn loftq_trains_on_a_base_in_full_precision_and_on_a_quantised_one() {
    let folder = texts();
    let (train, base) = (at(&folder, "train.jsonl"), base());
    let run = |output: &str, more: &[&str]| {
        let output = at(&folder, output);
        let files = ["train", "--model", &base, "--data", &train, "--output", &output, "--steps", "2"];
        let method = ["--init", "loftq", "--r", "4", "--alpha", "4", "--targets", "all-linear"];
        peft(&[&files[..], &method, more].concat()).unwrap();
        output
    };
    let eval = |adapter: &str, more: &[&str]| {
        peft(&[&["eval", "--model", &base, "--data", &train, "--adapter", adapter], more].concat())
    };

    let own = run("own", &[]);
    let written = config(Path::new(&own));
    assert_eq!(written["init_lora_weights"], "loftq");
    assert_eq!(
        (&written["loftq_config"]["loftq_bits"], &written["loftq_config"]["loftq_iter"]),
        (&4.into(), &1.into())
    );
    eval(&own, &[]).unwrap();
    let error = eval(&own, &["--quantize", "nf4"]).unwrap_err();
    assert!(error.contains("is quantised") && error.contains("in full precision"), "{error}");

    let quantised = run("quantised", &["--quantize", "nf4"]);
    let written = config(Path::new(&quantised));
    assert_eq!(written["init_lora_weights"], true);
    eval(&quantised, &["--quantize", "nf4"]).unwrap();
}

/// The option reaches the run, its file and an evaluation, and is refused where nothing is in int8.
#[test]
fn activations_are_rounded_where_it_is_asked_for() {
    let folder = texts();
    let (train, base, output) = (at(&folder, "train.jsonl"), base(), at(&folder, "output"));
    let files = ["train", "--model", &base, "--data", &train, "--output", &output, "--steps", "1"];
    let error = peft(&[&files[..], &["--quantize", "nf4", "--llm-int8-threshold", "6"]].concat()).unwrap_err();
    assert!(error.contains("--llm-int8-threshold") && error.contains("no layer is in int8"), "{error}");
    peft(&[&files[..], &["--quantize", "int8", "--llm-int8-threshold", "6"]].concat()).unwrap();
    let run = std::fs::read_to_string(Path::new(&output).join("run.yaml")).unwrap();
    assert!(run.contains("llm_int8_threshold: 6.0"), "{run}");
    let eval = |more: &[&str]| {
        peft(
            &[&["eval", "--model", &base, "--data", &train, "--adapter", &output, "--quantize", "int8"], more].concat(),
        )
        .unwrap()
    };
    assert_ne!(eval(&["--llm-int8-threshold", "6"]), eval(&[]));
}

#[test]
fn an_optimizer_is_chosen_by_its_name() {
    let folder = texts();
    let (train, base, output) = (at(&folder, "train.jsonl"), base(), at(&folder, "output"));
    let files = ["train", "--model", &base, "--data", &train, "--output", &output, "--steps", "1", "--optim"];
    let error = peft(&[&files[..], &["adamw_9bit"]].concat()).unwrap_err();
    assert!(error.contains("adamw_9bit") && error.contains("adamw_8bit"), "{error}");
    let error = peft(&[&files[..], &["adamw_8bit", "--lora-fa"]].concat()).unwrap_err();
    assert!(error.contains("LoRA-FA"), "{error}");
    peft(&[&files[..], &["adamw_8bit", "--r", "64"]].concat()).unwrap();
    let run = std::fs::read_to_string(Path::new(&output).join("run.yaml")).unwrap();
    assert!(run.contains("optim: adamw_8bit"), "{run}");
}

/// A checkpoint of GPTQ is seen, computed with and merged without any option, and not quantised once more.
#[test]
fn a_checkpoint_of_gptq_needs_no_option() {
    let model = fixtures().join("models/llama-gptq").display().to_string();
    let case = fixtures().join("cases/llama_gptq_lora");
    let (adapter, inputs) = (case.join("default").display().to_string(), case.join("inputs.safetensors"));
    let inputs = inputs.display().to_string();
    let folder = texts();
    let (live, merged, plain) =
        (at(&folder, "live.safetensors"), at(&folder, "merged"), at(&folder, "plain.safetensors"));
    let forward = |model: &str, output: &str, more: &[&str]| {
        let about = ["forward", "--task", "causal-lm", "--model", model, "--inputs", &inputs, "--output", output];
        peft(&[&about[..], more].concat())
    };
    forward(&model, &live, &["--adapter", &adapter]).unwrap();
    let error = forward(&model, &plain, &["--quantize", "nf4"]).unwrap_err();
    assert!(error.contains("is quantised already"), "{error}");
    let seen = peft(&["inspect", &adapter, "--model", &model]).unwrap();
    assert!(seen.contains("fits"), "{seen}");

    peft(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged, "--dtype", "float32"]).unwrap();
    assert!(config_of(&merged).get("quantization_config").is_none());
    forward(&merged, &plain, &[]).unwrap();
    let [live, plain] = [live, plain].map(|it| expected(Path::new(&it)));
    assert_close("logits", &plain["logits"], &live["logits"]);
}

fn config_of(folder: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new(folder).join("config.json")).unwrap()).unwrap()
}
