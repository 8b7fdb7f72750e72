//! Outputs that nobody reads, or that are full.
#![cfg(unix)]

use std::fs::File;
use std::io::pipe;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::labels::at;
use super::run_file::{base, texts};
use crate::support::fixtures;

/// A pipe whose reader has gone.
fn closed() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

fn run(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> (Option<i32>, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_peft")).args(arguments).stdout(stdout).stderr(stderr).spawn();
    let Output { status, stderr, .. } = child.unwrap().wait_with_output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn a_command_whose_reader_has_gone_ends_without_a_word() {
    let folder = texts();
    let (base, data) = (base(), at(&folder, "eval.jsonl"));
    let adapter = fixtures().join("cases/llama_lora_patterns/default").display().to_string();
    let (exported, converted, llama) =
        (at(&folder, "exported"), at(&folder, "converted"), fixtures().join("models/llama-tiny").display().to_string());
    let commands: [&[&str]; 9] = [
        &["methods"],
        &["methods", "--json"],
        &["inspect", &adapter],
        &["eval", "--model", &base, "--data", &data],
        &["generate", "--model", &base, "--prompt", "In", "--max-new-tokens", "2"],
        &["train", "--model", &base, "--data", &data, "--output", "never", "--print-config"],
        &["export", "--adapter", &adapter, "--format", "mlx", "--output", &exported],
        &["convert", "--model", &llama, "--adapter", &adapter, "--rank", "2", "--output", &converted],
        &["--help"],
    ];
    for command in commands {
        assert_eq!(run(command, closed(), Stdio::piped()), (Some(141), String::new()), "{command:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn an_output_that_is_full_is_an_error() {
    let folder = texts();
    let (base, data) = (base(), at(&folder, "eval.jsonl"));
    let full = || File::options().write(true).open("/dev/full").unwrap().into();
    for command in [&["methods"][..], &["eval", "--model", &base, "--data", &data], &["--help"]] {
        let (code, said) = run(command, full(), Stdio::piped());
        assert_eq!(code, Some(1), "{command:?}");
        assert!(said.starts_with("error: cannot write standard output: No space left"), "{said}");
    }
}

/// Its work is worth more than what it prints.
#[test]
fn a_run_goes_on_without_its_outputs() {
    let folder = texts();
    let (base, data) = (base(), at(&folder, "train.jsonl"));
    let trained = |output: &str, stdout: Stdio, stderr: Stdio| {
        let output = at(&folder, output);
        let command = ["train", "--model", &base, "--data", &data, "--eval-data", &data, "--output", &output];
        let more = ["--steps", "3", "--log-every", "1", "--save-every", "2", "--targets", "c_attn"];
        let outcome = run(&[&command[..], &more].concat(), stdout, stderr);
        assert!(Path::new(&output).join("adapter_model.safetensors").is_file());
        outcome
    };
    let (code, said) = trained("one", closed(), Stdio::piped());
    assert!(code == Some(0) && !said.contains("error") && !said.contains("warning"), "{said}");
    assert_eq!(trained("two", closed(), closed()).0, Some(0));
    assert_eq!(trained("three", Stdio::null(), closed()).0, Some(0));
    if cfg!(target_os = "linux") {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = trained("four", full.into(), Stdio::piped());
        assert_eq!(code, Some(1));
        assert!(said.contains("warning: cannot write standard output: No space left"), "{said}");
        assert!(said.lines().last().unwrap().starts_with("error: cannot write standard output"), "{said}");
    }
}

#[test]
fn an_error_that_nobody_reads_has_its_exit_code() {
    assert_eq!(run(&["inspect", "nowhere"], Stdio::null(), closed()).0, Some(1));
    assert_eq!(run(&["inspect"], Stdio::null(), closed()).0, Some(2));
}

/// Without a terminal there is no bar: what it would show is a line now and then.
#[test]
fn a_run_without_a_terminal_says_how_far_it_is() {
    let folder = texts();
    let (base, data, output) = (base(), at(&folder, "train.jsonl"), at(&folder, "out"));
    let command = ["train", "--model", &base, "--data", &data, "--eval-data", &data, "--output", &output];
    let more = ["--steps", "4", "--log-every", "2", "--targets", "c_attn"];
    let (code, said) = run(&[&command[..], &more].concat(), Stdio::null(), Stdio::piped());
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = said.lines().collect();
    let starts = [
        &*format!("reading {data}"),
        "texts end with \"<|endoftext|>\" (0), as tokenizer_config.json says",
        &*format!("loading {base}"),
        "evaluating before",
        "step 2/4  loss ",
        "step 4/4  loss ",
    ];
    assert_eq!(lines.len(), starts.len(), "{said}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

/// Names come from the files of others: raw, they could rewrite what is on a terminal.
#[test]
fn control_characters_of_names_are_spelled_out() {
    let folder = texts();
    let data = at(&folder, "columns.csv");
    std::fs::write(&data, "\u{1b}[2Jtitle,other\na,b\n").unwrap();
    let adapter = folder.path().join("adapter");
    let source = fixtures().join("cases/llama_lora_default/default");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::copy(source.join("adapter_model.safetensors"), adapter.join("adapter_model.safetensors")).unwrap();
    let config = std::fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let config = config.replace("models/llama-tiny", "evil\\u001b[2J");
    std::fs::write(adapter.join("adapter_config.json"), config).unwrap();
    let adapter = adapter.display().to_string();
    for command in [&["eval", "--model", &base(), "--data", &data][..], &["inspect", &adapter]] {
        let output = Command::new(env!("CARGO_BIN_EXE_peft")).args(command).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("\\u{1b}[2J") && !said.contains('\u{1b}'), "{said:?}");
    }
}
