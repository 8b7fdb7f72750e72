//! Disks without room: what was there stays whole, what is new is whole or not there, and the message says why.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::base::TRAIN;
use super::command::finish;
use super::kills::whole;
use super::{Round, cannot, copy, remove};

/// Commands that write, and what to.
const WRITERS: [&str; 8] = [
    "train",
    "merge --model tiny-gpt --adapter tuned --output out",
    "merge --model tiny-shards --adapter tuned --output out",
    "combine --model tiny-gpt --adapter tuned=1 --adapter tuned=0.5 --output out",
    "convert --model tiny-gpt --adapter tuned --rank 2 --output out",
    "export --adapter tuned --model tiny-gpt --format portable --output out",
    "forward --model tiny-gpt --adapter tuned --task causal-lm --inputs inputs.safetensors --output out/outputs.safetensors",
    "train --resume",
];

/// Commands that print.
const PRINTERS: [&str; 5] = [
    "inspect tuned --model tiny-gpt",
    "inspect tuned --json",
    "methods",
    "generate --model tiny-gpt --adapter tuned --prompt the",
    "eval --model tiny-gpt --adapter tuned --data text.jsonl --max-length 16",
];

pub(super) fn round(round: &Round<'_>) -> Result<(), String> {
    let random = &round.random;
    if random.below(4) == 0 {
        let words = random.one(&PRINTERS);
        return full_output(round, words);
    }
    let words = match *random.one(&WRITERS) {
        "train" => format!("{TRAIN} --output out"),
        "train --resume" => format!("{TRAIN} --output out --resume"),
        words => words.to_owned(),
    };
    let out = round.place.join("out");
    remove(&out)?;
    let disk = if random.below(2) == 0 { Disk::mount(&out) } else { None };
    let resumes = words.ends_with("--resume");
    if resumes {
        copy(&round.place.join("tuned"), &out)?;
        // As if the run had not come to its end.
        remove(&out.join("checkpoint-12"))?;
    } else if words.starts_with("forward") {
        fs::create_dir_all(&out).map_err(cannot("create", &out))?;
    }
    // From nothing at all to almost enough; small files are what most of this writes.
    let room = (1 << random.below(9)) * 1024 / 2;
    let limit = match &disk {
        Some(_) => {
            fill(&out, room)?;
            "unlimited".to_owned()
        }
        None => (room / 1024).to_string(),
    };
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {limit} && exec \"$0\" \"$@\"");
    let inner = round.peft.command(round.place, &words);
    command.args(["-c", &script]).arg(inner.get_program()).args(inner.get_args()).current_dir(round.place);
    command.env("HF_HUB_OFFLINE", "1").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let outcome = finish(command, &format!("(with room for {room} bytes) peft {words}"))?;
    outcome.verdict()?;
    remove(&out.join("filler"))?;
    let told = |it: String| format!("{it}\n{}", outcome.shown());
    if outcome.code != Some(0) && ![" out", "/out", ".out"].iter().any(|it| outcome.stderr.contains(it)) {
        return Err(told("does not say which file could not be written".to_owned()));
    }
    whole(&out).map_err(told)?;
    if outcome.code != Some(0) && out.is_dir() && resumes {
        // With room again it goes on as if nothing had been.
        round.peft.expect(round.place, &words).map_err(told)?;
    }
    Ok(())
}

/// A full standard output: an error, and no panic.
fn full_output(round: &Round<'_>, words: &str) -> Result<(), String> {
    // Not every system has it.
    if !Path::new("/dev/full").exists() {
        return Ok(());
    }
    let inner = round.peft.command(round.place, words);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" >/dev/full"]).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(round.place).env("HF_HUB_OFFLINE", "1").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let outcome = finish(command, &format!("peft {words} > /dev/full"))?;
    outcome.verdict()?;
    match outcome.code {
        Some(0) => Err(format!("succeeds although nothing could be printed\n{}", outcome.shown())),
        _ => Ok(()),
    }
}

/// Takes all room but so many bytes.
fn fill(disk: &Path, room: usize) -> Result<(), String> {
    let path = disk.join("filler");
    let piece = vec![1_u8; 4096];
    let mut file = fs::File::create(&path).map_err(cannot("create", &path))?;
    let mut size = 0;
    // Until there is none.
    while std::io::Write::write_all(&mut file, &piece).is_ok() {
        size += piece.len();
    }
    file.set_len(size.saturating_sub(room) as u64).map_err(cannot("shorten", &path))
}

/// A small file system in memory, where mounting one is allowed.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).stderr(Stdio::null());
        mount.status().ok()?.success().then_some(Self(at))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // Lazily, so that it goes even if somebody still looks at it; nothing can be done if it fails.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
