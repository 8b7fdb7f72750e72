//! Runs in a folder that was used before, and runs that go on.

use std::fs;
use std::path::Path;

use peft::tasks::train::log::read;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::adapters::peft;
use super::labels::{at, data};
use super::run_file::{base, config, texts};

/// `peft train` on the first of the two files, with more arguments.
fn train(folder: &TempDir, more: &[&str]) -> Result<String, String> {
    let (base, data) = (base(), at(folder, "train.jsonl"));
    let fixed = ["train", "--model", &base, "--data", &data, "--lr", "1e-2", "--batch-size", "2"];
    peft(&[&fixed[..], more].concat())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn weights(folder: &str) -> Vec<u8> {
    fs::read(Path::new(folder).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn an_earlier_run_is_found_before_anything_is_read() {
    let folder = texts();
    let output = at(&folder, "out");
    let run = ["--output", &output, "--targets", "c_attn", "--steps", "4", "--save-every", "2"];
    train(&folder, &run).unwrap();
    let whole = names(Path::new(&output));
    assert_eq!(
        whole,
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "checkpoint-2",
            "checkpoint-4",
            "loss.svg",
            "run.yaml",
            "train_log.jsonl"
        ]
    );
    // The base and the data would be refused, too, if they were looked for.
    fs::write(at(&folder, "bad.jsonl"), "{").unwrap();
    let bad = ["--data", &at(&folder, "bad.jsonl"), "--output", &output];
    let error = peft(&[&["train", "--model", "nowhere"][..], &bad].concat()).unwrap_err();
    assert!(error.contains("the log, 2 checkpoints, the adapter of an earlier run"), "{error}");
    assert!(error.contains("--resume") && error.contains("--overwrite-output"), "{error}");
    // What cannot be read overwrites nothing.
    let error = peft(&[&["train", "--model", &base()][..], &bad, &["--overwrite-output"]].concat()).unwrap_err();
    assert!(error.contains("bad.jsonl"), "{error}");
    assert_eq!(names(Path::new(&output)), whole);

    let again = ["--output", &output, "--targets", "c_proj", "--steps", "1", "--overwrite-output"];
    train(&folder, &again).unwrap();
    assert_eq!(
        names(Path::new(&output)),
        ["adapter_config.json", "adapter_model.safetensors", "loss.svg", "run.yaml", "train_log.jsonl"]
    );
    assert_eq!(read(Path::new(&output).join("train_log.jsonl")).unwrap().len(), 1);
}

#[test]
fn a_resumed_run_says_where_it_stands() {
    let folder = texts();
    let output = at(&folder, "out");
    let run = |steps: &str, more: &[&str]| {
        let run = ["--output", &output, "--targets", "c_attn", "--schedule", "constant", "--save-every", "2"];
        train(&folder, &[&run[..], &["--steps", steps], more].concat())
    };
    let printed = run("3", &["--resume"]).unwrap();
    assert!(printed.contains("there is no checkpoint to resume from: the run starts anew"), "{printed}");
    let after = weights(&output);
    let printed = run("3", &["--resume"]).unwrap();
    assert!(printed.contains("the run is finished") && printed.contains("after 3 of 3 steps"), "{printed}");
    assert!(printed.contains("3 steps") && !printed.contains("last loss 0.0000"), "{printed}");
    assert_eq!(weights(&output), after);
    // More steps are what an uninterrupted run of that length does, where the rate does not depend on the length.
    let printed = run("6", &["--resume", "--log-every", "1"]).unwrap();
    assert!(printed.contains("checkpoint-3, after 3 of 6 steps"), "{printed}");
    assert!(
        printed.contains("`max_steps` was 3 and is 6") && printed.contains("`logging_steps` was 10 and is 1"),
        "{printed}"
    );
    let whole = at(&folder, "whole");
    train(&folder, &["--output", &whole, "--targets", "c_attn", "--schedule", "constant", "--steps", "6"]).unwrap();
    assert_eq!(weights(&output), weights(&whole));
    // Finished, and without a checkpoint.
    let error = train(&folder, &["--output", &whole, "--targets", "c_attn", "--steps", "8", "--resume"]).unwrap_err();
    assert!(error.contains("finished and left no checkpoint") && error.contains("--init-from"), "{error}");
}

/// Whatever would make it another run is named, with both values.
#[test]
fn a_checkpoint_knows_what_it_belongs_to() {
    let folder = texts();
    let output = at(&folder, "out");
    let run = |more: &[&str]| {
        let run = ["--output", &output, "--targets", "c_attn", "--steps", "2", "--save-every", "1", "--resume"];
        train(&folder, &[&run[..], more].concat())
    };
    run(&[]).unwrap();
    for (more, named) in [
        (&["--lr", "1e-3"][..], "`--lr` was 0.01 and is 0.001"),
        (&["--seed", "7"], "`--seed` was 42 and is 7"),
        (&["--alpha", "3"], "`--alpha` was 8 and is 3"),
        (&["--dropout", "0.5"], "`--dropout` was 0"),
        (&["--packing"], "`--packing` was false and is true"),
        (&["--max-length", "9"], "`--max-length` was nothing and is 9"),
        (&["--train-on-prompt"], "`--train-on-prompt`"),
        (&["--data", &at(&folder, "eval.jsonl")], "`--data` was "),
    ] {
        let replaced = |it: &&&str| more.contains(it) && it.starts_with("--");
        let fixed: [&str; 8] =
            ["--model", &base(), "--data", &at(&folder, "train.jsonl"), "--lr", "1e-2", "--batch-size", "2"];
        let kept: Vec<&str> =
            fixed.chunks(2).filter(|it| !it.iter().any(|it| replaced(&it))).flatten().copied().collect();
        let run = ["--output", &output, "--targets", "c_attn", "--steps", "2", "--save-every", "1", "--resume"];
        let error = peft(&[&["train"][..], &kept, &run, more].concat()).unwrap_err();
        assert!(error.contains(named) && error.contains("checkpoint-2 is not usable"), "{more:?}: {error}");
    }

    // The same data under another name is the same data; the same base in another folder the same base.
    let (copy, moved) = (at(&folder, "copy"), at(&folder, "moved.jsonl"));
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(base()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, Path::new(&copy).join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(at(&folder, "train.jsonl"), &moved).unwrap();
    let elsewhere = |model: &str| {
        let fixed = ["train", "--model", model, "--data", &moved, "--lr", "1e-2", "--batch-size", "2"];
        let run = ["--output", &output, "--targets", "c_attn", "--steps", "2", "--save-every", "1", "--resume"];
        peft(&[&fixed[..], &run].concat())
    };
    elsewhere(&copy).unwrap();
    // Another base of the same shape: one that has been trained further.
    let merged = at(&folder, "merged");
    peft(&["merge", "--model", &base(), "--adapter", &output, "--output", &merged]).unwrap();
    let error = elsewhere(&merged).unwrap_err();
    assert!(error.contains("`base` was "), "{error}");
}

#[test]
fn the_adapter_of_another_run_is_gone_on_from() {
    let folder = texts();
    let (first, second) = (at(&folder, "first"), at(&folder, "second"));
    train(&folder, &["--output", &first, "--targets", "c_attn,c_proj", "--r", "3", "--steps", "3"]).unwrap();
    let eval = at(&folder, "eval.jsonl");
    let printed =
        train(&folder, &["--output", &second, "--init-from", &first, "--steps", "2", "--eval-data", &eval]).unwrap();
    let measured = peft(&["eval", "--model", &base(), "--adapter", &first, "--data", &eval]).unwrap();
    let loss = measured.lines().find_map(|it| it.strip_prefix("loss ")).unwrap();
    assert!(printed.contains(&format!("before: evaluation loss {loss}")), "{printed}, {measured}");
    let config = config(Path::new(&second));
    assert_eq!((&config["r"], config["target_modules"].as_array().unwrap().len()), (&json!(3), 2));
    assert_eq!(config["base_model_name_or_path"], Value::from(base()));
    assert_ne!(weights(&first), weights(&second));
    // The run repeats itself, from the same adapter.
    let third = at(&folder, "third");
    let run = Path::new(&second).join("run.yaml").display().to_string();
    peft(&["train", "--config", &run, "--output", &third]).unwrap();
    assert_eq!(weights(&second), weights(&third));
    let error = train(&folder, &["--output", &first, "--init-from", &first, "--overwrite-output"]).unwrap_err();
    assert!(error.contains("`--output` is the folder of `init_from`"), "{error}");
    let error = train(&folder, &["--output", &third, "--init-from", &first, "--r", "4"]).unwrap_err();
    assert!(error.contains("--r") && error.contains("--init-from"), "{error}");
}

/// A base is measured without the adapter, even where a fresh one changes what it computes.
#[test]
fn what_was_before_is_the_base() {
    let folder = texts();
    let eval = at(&folder, "eval.jsonl");
    let measured = peft(&["eval", "--model", &base(), "--data", &eval]).unwrap();
    let loss = measured.lines().find_map(|it| it.strip_prefix("loss ")).unwrap();
    for method in ["prompt-tuning", "prefix-tuning"] {
        let file = at(&folder, &format!("{method}.json"));
        let peft_type = method.replace('-', "_").to_uppercase();
        fs::write(&file, json!({ "peft_type": peft_type, "num_virtual_tokens": 4 }).to_string()).unwrap();
        let more = ["--output", &at(&folder, method), "--method-config", &file, "--steps", "1", "--eval-data", &eval];
        let printed = train(&folder, &more).unwrap();
        assert!(printed.contains(&format!("before: evaluation loss {loss}")), "{printed}, {measured}");
    }
}

/// The names of flags where flags were given, of fields where a file was.
#[test]
fn numbers_that_make_no_sense_are_refused_before_anything_is_loaded() {
    let folder = texts();
    for (more, named) in [
        (&["--steps", "0"][..], "`--steps` is 0, expected a whole number from 1"),
        (&["--batch-size", "0"], "`--batch-size` is 0"),
        (&["--batch-size", "1000000000000"], "`--batch-size` is 1000000000000"),
        (&["--lr", "nan"], "`--lr` is NaN"),
        (&["--lr=-1"], "`--lr` is -1"),
        (&["--max-grad-norm", "nan"], "`--max-grad-norm` is NaN"),
        (&["--warmup", "nan"], "`--warmup` is NaN"),
        (&["--epochs", "1e300"], "`--epochs` is 1e300"),
        (&["--masked", "2"], "`--masked` is 2"),
        (&["--weight-decay", "inf"], "`--weight-decay` is inf"),
        (&["--loraplus-lr-ratio", "0"], "`--loraplus-lr-ratio` is 0"),
        (&["--max-length", "0"], "`--max-length` is 0"),
        (&["--log-every", "0"], "`--log-every` is 0"),
    ] {
        let files =
            ["train", "--model", "nowhere", "--data", &at(&folder, "train.jsonl"), "--output", &at(&folder, "out")];
        let error = peft(&[&files[..], more].concat()).unwrap_err();
        assert!(error.contains(named), "{more:?}: {error}");
        assert!(!Path::new(&at(&folder, "out")).exists());
    }
    fs::write(at(&folder, "run.yaml"), "model: nowhere\noutput: out\ntraining: { batch_size: 0 }\n").unwrap();
    let error =
        peft(&["train", "--config", &at(&folder, "run.yaml"), "--data", &at(&folder, "train.jsonl")]).unwrap_err();
    assert!(error.contains("run.yaml is not usable: `batch_size` is 0"), "{error}");
    for (more, named) in [(["--batch-size", "0"], "`--batch-size` is 0"), (["--masked", "nan"], "`--masked` is NaN")] {
        let error = peft(&[&["eval", "--model", &base(), "--data", "missing.jsonl"], &more[..]].concat()).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
    let error = peft(&["train", "--model", "nowhere", "--data", "missing.jsonl", "--output", "out"]).unwrap_err();
    assert!(error.contains("cannot read missing.jsonl"), "{error}");
}

/// Whichever method has the field takes the flag.
#[test]
fn flags_go_with_every_method_that_has_their_field() {
    let folder = texts();
    let (base, file) = (base(), at(&folder, "train.jsonl"));
    let of = |more: &[&str]| {
        let files = ["train", "--model", &base, "--data", &file, "--output", "never", "--print-config"];
        peft(&[&files[..], more].concat()).map(|it| peft::run::RunConfig::parse(&it).unwrap().method)
    };
    let ia3 = of(&["--method", "ia3", "--targets", "c_attn", "--modules-to-save", "ln_f"]).unwrap();
    assert_eq!((&ia3["target_modules"], &ia3["modules_to_save"]), (&json!(["c_attn"]), &json!(["ln_f"])));
    let vera = of(&["--method", "vera", "--r", "16", "--targets", "all-linear"]).unwrap();
    assert_eq!((&vera["r"], &vera["target_modules"]), (&json!(16), &json!("all-linear")));
    let error = of(&["--method", "ia3", "--targets", "c_attn", "--dora"]).unwrap_err();
    assert!(error.contains("`--dora` sets `use_dora`, which IA3 has not"), "{error}");
    let error = of(&["--method", "prompt-tuning", "--targets", "c_attn"]).unwrap_err();
    assert!(error.contains("`--targets` sets `target_modules`, which PROMPT_TUNING has not"), "{error}");
}

#[test]
fn a_number_is_a_label_too() {
    let row = |text: &str, label: f64| json!({"text": text, "label": label});
    let files = data(&[("train.jsonl", &[row("a", 0.5), row("b", 1.5)])]);
    let printed = train(&files, &["--task", "seq-cls", "--output", &at(&files, "out"), "--steps", "1"]).unwrap();
    assert!(printed.contains("labels: a number\n"), "{printed}");
}

/// A start from data sees the data by itself, and a resumed run sees it again.
#[test]
fn a_start_from_data_needs_no_program() {
    let folder = texts();
    let eval = at(&folder, "eval.jsonl");
    let text = "It was a bright cold day in April, and the clocks were striking thirteen; nobody looked up.";
    let rows: Vec<String> = (0..6).map(|at| json!({"text": format!("{at} {text}")}).to_string()).collect();
    fs::write(at(&folder, "train.jsonl"), rows.join("\n")).unwrap();
    for init in ["eva", "corda"] {
        let output = at(&folder, init);
        let run = |steps: &str, more: &[&str]| {
            let run = ["--output", &output, "--init", init, "--targets", "c_attn", "--r", "2", "--steps", steps];
            train(
                &folder,
                &[&run[..], &["--save-every", "1", "--schedule", "constant", "--eval-data", &eval], more].concat(),
            )
        };
        run("2", &[]).unwrap();
        let config = config(Path::new(&output));
        assert_eq!(config["peft_type"], "LORA");
        run("3", &["--resume"]).unwrap();
        // Straight through it is the same adapter.
        let resumed = weights(&output);
        run("3", &["--overwrite-output"]).unwrap();
        assert_eq!(weights(&output), resumed, "{init}");
        let evaluated = peft(&["eval", "--model", &base(), "--adapter", &output, "--data", &eval]).unwrap();
        assert!(evaluated.contains("perplexity"), "{evaluated}");
        // Other rows are another start.
        run("3", &["--overwrite-output", "--calibration-rows", "2"]).unwrap();
        assert_ne!(weights(&output), resumed, "{init}");
        let error = run("4", &["--resume"]).unwrap_err();
        assert!(error.contains("`data.calibration_rows` was 2 and is nothing"), "{error}");
    }
}
