//! Signals that end a run.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::adapters::peft;
use super::labels::at;
use super::run_file::{base, texts};

/// A process that does not outlive its test, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run that has done its first step and would go on for hours, and its standard error.
fn running(folder: &TempDir, more: &[&str]) -> (Running, BufReader<impl Read + use<>>) {
    heed_signals();
    let mut child = Command::new(env!("CARGO_BIN_EXE_peft"))
        .args(["train", "--model", &base(), "--data", &at(folder, "train.jsonl"), "--output", &at(folder, "out")])
        .args(["--log-every", "1", "--targets", "c_attn", "--steps", "100000000"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut said = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("step 1/") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it ended before its first step");
    }
    (child, said)
}

/// Signals that whoever started the tests wants ignored, as a shell does in the background, are heeded by the children
/// from here on: what a process handles is back to the default in its children. Here it does what the default does.
fn heed_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let always = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_default(signal, always.clone()).unwrap();
    }
}

fn send(child: &Running, signal: &str) {
    let sent = Command::new("kill").args([format!("-{signal}"), child.0.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

fn checkpoints(folder: &TempDir) -> Vec<String> {
    let names = fs::read_dir(at(folder, "out")).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    names.filter(|it| it.contains("checkpoint")).collect()
}

#[test]
fn a_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on() {
    for (signal, name, code) in [("INT", "Ctrl-C", 130), ("TERM", "SIGTERM", 143), ("HUP", "SIGHUP", 129)] {
        let folder = texts();
        let (mut child, mut said) = running(&folder, &[]);
        send(&child, signal);
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(code), "{rest}");
        let last = rest.lines().last().unwrap();
        assert!(last.starts_with(&format!("ended by {name} after ")) && last.ends_with("--resume"), "{last}");
        let found = checkpoints(&folder);
        let step: usize = found[0].strip_prefix("checkpoint-").unwrap().parse().unwrap();
        assert_eq!((found.len(), last.contains(&format!("after {step} steps"))), (1, true), "{last} {found:?}");
        // There is no adapter yet that one might take for the one that was asked for.
        let adapter = Path::new(&at(&folder, "out")).join("adapter_model.safetensors");
        assert!(!adapter.exists());
        let printed = peft(&[
            "train",
            "--model",
            &base(),
            "--data",
            &at(&folder, "train.jsonl"),
            "--output",
            &at(&folder, "out"),
            "--log-every",
            "1",
            "--targets",
            "c_attn",
            "--steps",
            &(step + 2).to_string(),
            "--resume",
        ])
        .unwrap();
        assert!(printed.contains(&format!("checkpoint-{step}, after {step} of {} steps", step + 2)), "{printed}");
        assert!(adapter.is_file());
    }
}

/// The two come at the same moment, because the process sleeps until both are there. A step takes longer than threads that handle
/// them may have to wait for their turn.
#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = texts();
    let rows = fs::read_to_string(at(&folder, "train.jsonl")).unwrap();
    fs::write(at(&folder, "train.jsonl"), format!("{}\n", rows.trim_end()).repeat(20)).unwrap();
    let (mut child, _said) = running(&folder, &["--batch-size", "1", "--accumulate", "60"]);
    send(&child, "STOP");
    send(&child, "INT");
    send(&child, "TERM");
    send(&child, "CONT");
    let code = child.0.wait().unwrap().code();
    assert!(code == Some(130) || code == Some(143), "{code:?}");
    assert_eq!(checkpoints(&folder), [""; 0]);
}

/// Nobody else may write to its folder while it lives; when it is killed nothing keeps the next run from it.
#[test]
fn a_folder_has_one_run_and_is_free_when_that_is_killed() {
    let folder = texts();
    let (mut child, _said) = running(&folder, &[]);
    let next = |more: &[&str]| {
        let (base, data, output) = (base(), at(&folder, "train.jsonl"), at(&folder, "out"));
        let files = ["train", "--model", &base, "--data", &data, "--output", &output, "--targets", "c_attn"];
        peft(&[&files[..], &["--steps", "1"], more].concat())
    };
    for more in ["--resume", "--overwrite-output"] {
        let error = next(&[more]).unwrap_err();
        assert!(error.contains("another run is writing to it"), "{error}");
    }
    send(&child, "KILL");
    child.0.wait().unwrap();
    assert!(next(&[]).unwrap_err().contains("the log of an earlier run"));
    let printed = next(&["--resume"]).unwrap();
    assert!(printed.contains("the run starts anew"), "{printed}");
}

/// `nohup` wants a run to outlive its terminal.
#[test]
#[cfg(target_os = "linux")]
fn a_signal_that_is_to_be_ignored_is() {
    let folder = texts();
    let command = format!(
        "trap '' HUP; exec {} train --model {} --data {} --output {} --log-every 1 --targets c_attn --steps 100000000",
        env!("CARGO_BIN_EXE_peft"),
        base(),
        at(&folder, "train.jsonl"),
        at(&folder, "out")
    );
    let mut shell = Command::new("sh");
    let spawned = shell.args(["-c", &command]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = Running(spawned.unwrap());
    let mut said = BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.by_ref().any(|it| it.starts_with("step 1/")));
    send(&child, "HUP");
    // It goes on: TERM ends it, and not what came before.
    assert!(said.by_ref().take(2).all(|it| it.starts_with("step ")));
    send(&child, "TERM");
    assert!(said.last().unwrap().starts_with("ended by SIGTERM"));
    assert_eq!(child.0.wait().unwrap().code(), Some(143));
}
