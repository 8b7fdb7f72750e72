//! What a tokenizer knows, and how far a model writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use peft::core::{DEFAULT_ADAPTER, PeftModel};
use peft::lora::LoraConfig;
use peft::models::auto;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{base_with_words, device, fixtures, write_words};

/// The command with a log of everything.
pub(super) fn peft(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.args(arguments).args(["--device", "flex"]).env("PEFT_LOG", "info").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was printed and what was logged.
#[track_caller]
pub(super) fn succeeded(arguments: &[&str]) -> (String, String) {
    let output = peft(arguments);
    let (printed, logged) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {printed}{logged}");
    (printed, logged)
}

/// The message of an error, with which the command ends as it should: no panic, no signal.
#[track_caller]
pub(super) fn refused(arguments: &[&str]) -> String {
    let output = peft(arguments);
    let logged = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{logged}", text(&output.stdout));
    assert!(logged.contains("error: ") && !logged.contains("panicked"), "{logged}");
    logged
}

pub(super) fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

#[test]
fn a_text_ends_at_the_last_position_of_the_model() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base");
    let base = base.to_str().unwrap();
    // 128 positions, and 128 new tokens by default.
    let (_, logged) = succeeded(&["generate", "--model", base, "--prompt", "In the beginning", "--temperature", "0.8"]);
    assert!(logged.contains("the text ends where the model does, at 128 positions"), "{logged}");
    let long = "word ".repeat(140);
    assert!(refused(&["generate", "--model", base, "--prompt", &long]).contains("the model only 128 positions"));
    let beams = refused(&["generate", "--model", base, "--prompt", "In", "--beams", "1000000"]);
    assert!(beams.contains("`--beams` is 1000000"), "{beams}");
    let (_, logged) =
        succeeded(&["generate", "--model", base, "--prompt", "In", "--beams", "3", "--max-new-tokens", "200"]);
    assert!(logged.contains("at 128 positions") || logged.contains("a text ends with"), "{logged}");
}

#[test]
fn positions_end_for_tables_only() {
    for (model, ends) in [("opt-tiny", true), ("gptneo-tiny", true), ("gpt2-tiny", true), ("llama-tiny", false)] {
        let base = base_with_words(model, 101, &[], &json!({}));
        let config = json!({"eos_token_id": null});
        fs::write(base.path().join("generation_config.json"), config.to_string()).unwrap();
        let prompt = "w5 ".repeat(60);
        let (_, logged) =
            succeeded(&["generate", "--model", path(&base), "--prompt", &prompt, "--max-new-tokens", "9"]);
        assert_eq!(logged.contains("at 64 positions"), ends, "{model}: {logged}");
        let longer =
            peft(&["generate", "--model", path(&base), "--prompt", &"w5 ".repeat(70), "--max-new-tokens", "2"]);
        assert_eq!(longer.status.success(), !ends, "{model}");
        assert!(!text(&longer.stderr).contains("panicked"));
    }
}

/// The model's own table says how long a row may be.
#[test]
fn rows_are_no_longer_than_the_table_of_positions() {
    for (model, field) in [("gpt2-tiny", "n_positions"), ("bert-masked", "max_position_embeddings")] {
        let base = base_with_words(model, 101, &[], &json!({"mask_token": "w3"}));
        let file = base.path().join("rows.jsonl");
        fs::write(&file, json!({"text": "w5 ".repeat(700)}).to_string()).unwrap();
        let task = if model == "gpt2-tiny" { "causal-lm" } else { "masked-lm" };
        let arguments =
            ["eval", "--task", task, "--model", path(&base), "--data", file.to_str().unwrap(), "--max-length", "600"];
        assert!(refused(&arguments).contains("but the model has 64 positions"), "{field}");
    }
}

#[test]
fn the_end_token_is_found_and_said() {
    let said =
        |base: &TempDir| succeeded(&["generate", "--model", path(base), "--prompt", "w5", "--max-new-tokens", "2"]).1;
    // As published: GPT-2's configuration names no token at all.
    let base = base_with_words("gpt2-tiny", 101, &["<|endoftext|>"], &json!({"model_max_length": 1024}));
    fs::remove_file(base.path().join("generation_config.json")).unwrap();
    let plain = r#""eos_token_id": 2"#;
    let config = fs::read_to_string(base.path().join("config.json")).unwrap();
    assert!(config.contains(plain), "{config}");
    assert!(said(&base).contains(r#"a text ends with "w2" (2)"#));
    fs::write(base.path().join("config.json"), config.replace(plain, r#""eos_token_id": [3, 4]"#)).unwrap();
    assert!(said(&base).contains(r#"a text ends with "w3" (3) or "w4" (4)"#));
    fs::write(base.path().join("config.json"), config.replace(plain, r#""eos_token_id": null"#)).unwrap();
    assert!(said(&base).contains(r#"a text ends with "<|endoftext|>" (100)"#));
    fs::write(base.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#).unwrap();
    assert!(said(&base).contains("no file of the model names an end token"));
    fs::write(base.path().join("generation_config.json"), "{").unwrap();
    assert!(refused(&["generate", "--model", path(&base), "--prompt", "w5"]).contains("generation_config.json"));
}

/// BERT's published configuration says nothing but this.
#[test]
fn a_mask_token_is_that_of_the_class() {
    let base = base_with_words("bert-masked", 101, &["[MASK]"], &json!({"do_lower_case": true}));
    let file = base.path().join("rows.jsonl");
    fs::write(&file, json!({"text": "w5 w6 w7 w8 w9 w10"}).to_string()).unwrap();
    let arguments =
        ["eval", "--task", "masked-lm", "--model", path(&base), "--data", file.to_str().unwrap(), "--masked", "0.9"];
    let (printed, _) = succeeded(&arguments);
    assert!(printed.contains("accuracy"), "{printed}");
    // Without a class there is no such token.
    fs::write(base.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#).unwrap();
    assert!(refused(&arguments).contains("names no `mask_token`"));
}

/// Forty replacements of a letter by two, and a vocabulary with a hole that the library counts on.
#[test]
fn damaged_tokenizers_are_named() {
    let base = base_with_words("llama-tiny", 101, &[], &json!({}));
    let file = base.path().join("tokenizer.json");
    let whole = fs::read_to_string(&file).unwrap();
    let double = r#"{"type": "Replace", "pattern": {"String": "w"}, "content": "ww"}"#;
    let steps = vec![double; 40].join(", ");
    let normalizer = format!(r#""normalizer":{{"type": "Sequence", "normalizers": [{steps}]}}"#);
    fs::write(&file, whole.replace(r#""normalizer":null"#, &normalizer)).unwrap();
    let error = refused(&["generate", "--model", path(&base), "--prompt", "w5"]);
    assert!(error.contains("tokenizer.json is not usable: its replacements can make a text"), "{error}");
    for odd in ["{}", "[]", "{\"model\": {}}", &whole[..whole.len() / 2]] {
        fs::write(&file, odd).unwrap();
        assert!(refused(&["generate", "--model", path(&base), "--prompt", "w5"]).contains("tokenizer.json"));
    }
}

#[test]
fn sequence_to_sequence_models_write_targets() {
    for (model, case) in
        [("t5-tiny", "t5_lora"), ("bart-tiny", "bart_lora"), ("mbart-tiny", "mbart_lora"), ("mt5-tiny", "")]
    {
        let base = base_with_words(model, 101, &[], &json!({}));
        let mut arguments = vec!["generate", "--model", path(&base), "--prompt", "w5 w6 w7", "--max-new-tokens", "4"];
        let (printed, _) = succeeded(&arguments);
        assert!(!printed.contains("w5 w6 w7"), "{model}: a source is no part of the target: {printed}");
        assert!(printed.trim().starts_with('w'), "{model}: {printed}");
        let adapter = fixtures().join("cases").join(case).join("default");
        if !case.is_empty() {
            arguments.extend(["--adapter", adapter.to_str().unwrap(), "--beams", "2"]);
            succeeded(&arguments);
        }
    }
    // The same text as a recorded generation would be one more case; that adapters of other tasks are refused is not.
    let base = base_with_words("bert-tiny", 101, &[], &json!({}));
    let adapter = fixtures().join("cases/bert_lora_default/default");
    let error =
        refused(&["generate", "--model", path(&base), "--adapter", adapter.to_str().unwrap(), "--prompt", "w5"]);
    assert!(error.contains("SEQ_CLS"), "{error}");
}

/// The model has 101 rows.
#[test]
fn a_token_without_a_row_is_named_and_padding_is_not() {
    let pad =
        json!({"pad_token": "<pad>", "eos_token": "w2", "cls_token": "w1", "sep_token": "w2", "mask_token": "<new>"});
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, rows: &[serde_json::Value]| {
        let path = files.path().join(name);
        fs::write(&path, rows.iter().map(|it| it.to_string() + "\n").collect::<String>()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let row = |text: &str, label: i64| json!({"text": text, "label": label, "text_pair": "w7", "prompt": text, "completion": "w7"});
    let fine = file("fine.jsonl", &[row("w5", 0), row("w6 w7 w8", 1)]);
    let odd = file("odd.jsonl", &[row("w5", 0), row("w6 <new> w8", 1)]);
    let text = ["--text-column", "text"];
    let tasks: [(&str, &str, &[&str]); 5] = [
        ("gpt2-tiny", "causal-lm", &text),
        ("gpt2-tiny", "seq-cls", &text),
        ("bert-tiny", "seq-cls", &text),
        ("t5-tiny", "seq2seq-lm", &[]),
        (
            "bert-tiny",
            "similarity",
            &["--text-column", "text", "--text-pair-column", "text_pair", "--label-column", "label"],
        ),
    ];
    for (model, task, columns) in tasks {
        let base = base_with_words(model, 103, &["<pad>", "<new>"], &pad);
        let arguments = |data: &str, command: &str| {
            let mut all: Vec<String> =
                [command, "--model", path(&base), "--task", task, "--data", data].map(str::to_owned).to_vec();
            all.extend(columns.iter().map(|it| (*it).to_owned()));
            if command == "train" {
                let name = Path::new(data).file_stem().unwrap().to_str().unwrap();
                let output = files.path().join(format!("{model}-{task}-{name}"));
                all.extend(["--steps".into(), "1".into(), "--output".into(), output.to_str().unwrap().to_owned()]);
            }
            all
        };
        for name in ["train", "eval"] {
            let run = |data: &str| arguments(data, name);
            let (good, bad) = (run(&fine), run(&odd));
            succeeded(&good.iter().map(String::as_str).collect::<Vec<_>>());
            let error = refused(&bad.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(
                error.contains("the token \"<new>\"") && error.contains("has the id 102"),
                "{model} {task}: {error}"
            );
            assert!(error.contains("101 rows"), "{model} {task}: {error}");
        }
    }
    let base = base_with_words("gpt2-tiny", 103, &["<pad>", "<new>"], &pad);
    let error = refused(&["generate", "--model", path(&base), "--prompt", "w5 <new>"]);
    assert!(error.contains("has the id 102"), "{error}");
    let base = base_with_words("bert-masked", 103, &["<pad>", "<new>"], &pad);
    let error =
        refused(&["eval", "--model", path(&base), "--task", "masked-lm", "--data", &fine, "--text-column", "text"]);
    assert!(error.contains("has the id 102"), "{error}");
}

/// 104 tokens beside the adapter, 101 in the base.
#[test]
fn the_tokenizer_of_an_adapter_goes_first() {
    let base = base_with_words("llama-tiny", 101, &[], &json!({}));
    let (model, _) = auto::load_causal_lm(base.path(), &device()).unwrap();
    let mut peft = PeftModel::new(model);
    peft.resize_vocabulary(104).unwrap();
    peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0).targets(["q_proj"]), 0).unwrap();
    let adapter = tempfile::tempdir().unwrap();
    peft.save(adapter.path()).unwrap();

    let file = base.path().join("rows.jsonl");
    fs::write(&file, json!({"text": "w5 <new> w6"}).to_string()).unwrap();
    let with = ["--model", path(&base), "--adapter", path(&adapter)];
    let eval = [&["eval", "--data", file.to_str().unwrap()], &with[..]].concat();
    let generate = [&["generate", "--prompt", "w5 <new>", "--max-new-tokens", "2", "--chat"], &with[..]].concat();
    for command in [&eval, &[&generate[..5], &with[..]].concat()] {
        let error = refused(command);
        assert!(error.contains("104 rows where the base has 101") && error.contains("adapter's folder"), "{error}");
    }
    let config =
        json!({"chat_template": "{% for m in messages %}{{ m.content }} <new>{% endfor %}", "eos_token": "w2"});
    write_words(adapter.path(), 104, &["<a>", "<b>", "<new>"], &config);
    succeeded(&eval);
    succeeded(&generate);
    // Two words and two new tokens; without the template of the adapter there would be none.
    fs::write(adapter.path().join("tokenizer_config.json"), "{}").unwrap();
    assert!(refused(&generate).contains("it has no chat template"));
}

/// What a user has typed is what a message speaks of.
#[test]
fn messages_name_flags_and_not_fields() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base");
    let (base, folder) = (base.to_str().unwrap(), tempfile::tempdir().unwrap());
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, "{\"prompt\": \"one two three\", \"completion\": \" four five six\"}\n").unwrap();
    let (data, output) = (data.to_str().unwrap(), folder.path().join("adapter"));
    let output = output.to_str().unwrap();
    let train = ["train", "--model", base, "--data", data, "--output", output, "--steps", "1"];
    let more = |more: &[&str]| refused(&[&train[..], more].concat());
    let cut = more(&["--truncation", "refuse", "--max-length", "3"]);
    assert!(cut.contains("line 1") && cut.contains("more than `--max-length`, 3"), "{cut}");
    let label = refused(&["eval", "--model", base, "--data", data, "--task", "seq-cls", "--text-column", "prompt"]);
    assert!(label.contains("`--label-column` is not set"), "{label}");
}
