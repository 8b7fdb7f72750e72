//! One file damaged, and every command that reads it: each has to say what is wrong with which file, or to give sound
//! numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::Peft;
use super::random::Random;
use super::{NAMELESS, Round, cannot, copy, files, remove, tensors};

/// Commands, and the files and folders that they read.
const READERS: [(&str, &[&str]); 15] = [
    ("eval --model tiny-gpt --adapter tuned --data text.jsonl --max-length 16", &["tiny-gpt", "tuned", "text.jsonl"]),
    (
        "eval --model tiny-gpt --adapter sorter --task seq-cls --data classes.csv",
        &["tiny-gpt", "sorter", "classes.csv"],
    ),
    ("generate --model tiny-gpt --adapter tuned --prompt the --max-new-tokens 4", &["tiny-gpt", "tuned"]),
    ("generate --model tiny-shards --prompt the --chat --max-new-tokens 4", &["tiny-shards"]),
    ("merge --model tiny-gpt --adapter tuned --output out", &["tiny-gpt", "tuned"]),
    ("merge --model tiny-shards --adapter tuned --output out", &["tiny-shards"]),
    ("inspect tuned --model tiny-gpt", &["tiny-gpt", "tuned"]),
    ("inspect sorter", &["sorter"]),
    ("convert --model tiny-gpt --adapter tuned --rank 2 --output out", &["tuned"]),
    ("combine --model tiny-gpt --adapter tuned=1 --adapter tuned=0.5 --kind cat --output out", &["tuned"]),
    ("export --adapter tuned --model tiny-gpt --format portable --output out", &["tuned"]),
    (
        "forward --model tiny-gpt --adapter tuned --task causal-lm --inputs inputs.safetensors --output out/o.safetensors",
        &["inputs.safetensors"],
    ),
    ("train --config run.yaml --output out --steps 2", &["run.yaml"]),
    ("train --model tiny-gpt --data chat.jsonl --output out --steps 1 --batch-size 2", &["tiny-gpt", "chat.jsonl"]),
    // In a copy of the folder: it goes on in it.
    ("train --config run.yaml --output out --resume", &["tuned"]),
];

/// Numbers that no configuration should have, or hardly any.
const NUMBERS: [&str; 16] = [
    "-1",
    "0",
    "1",
    "2",
    "NaN",
    "Infinity",
    "1e30",
    "1e999",
    "1e-30",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "99999999999999999999",
    "0.5",
    "100000000",
    "1000000000000",
];

/// What is there in the place of a number, a text or a list.
const VALUES: [&str; 8] =
    ["null", "true", "[]", "{}", "\"\"", "\"\\u001b[2J\"", "[[[[1]]]]", "\"../../../../etc/passwd\""];

pub(super) fn round(round: &Round<'_>) -> Result<(), String> {
    let (place, random) = (round.place, &round.random);
    remove(&place.join("out"))?;
    let readable: Vec<PathBuf> = files(place)?.into_iter().filter(|it| is_read(place, it)).collect();
    let path = random.one(&readable);
    let bytes = fs::read(path).map_err(cannot("read", path))?;
    let what = damage(random, path, &bytes, &readable)?;
    let outcome = look(round, path);
    // The place is used again.
    remove(path)?;
    fs::write(path, bytes).map_err(cannot("write", path))?;
    outcome.map_err(|it| {
        let name = path.strip_prefix(place).unwrap_or(path).display();
        let (first, rest) = it.split_once('\n').unwrap_or((&it, ""));
        format!("{first}\n  {name}: {what}\n{rest}")
    })
}

/// Runs every command on what is not damaged.
pub(super) fn sane(peft: &Peft, place: &Path) -> Result<(), String> {
    let out = place.join("out");
    for (words, _) in READERS {
        start(place, words)?;
        peft.expect(place, words)?;
        sound(&out)?;
    }
    remove(&out)
}

/// Whether some command reads a file: of the checkpoints only that from which a run goes on.
fn is_read(place: &Path, path: &Path) -> bool {
    let is_old =
        path.to_string_lossy().contains("/checkpoint-") && !path.to_string_lossy().contains("tuned/checkpoint-10/");
    !is_old && !commands(&entry(place, path)).is_empty()
}

/// Makes the folder that a command starts from.
fn start(place: &Path, words: &str) -> Result<(), String> {
    let out = place.join("out");
    remove(&out)?;
    if words.contains("--resume") {
        copy(&place.join("tuned"), &out)?;
        // As if the run had ended before its last steps.
        return remove(&out.join("checkpoint-12"));
    }
    match words.contains("out/") {
        true => fs::create_dir_all(&out).map_err(cannot("create", &out)),
        false => Ok(()),
    }
}

/// The first part of a path in a place.
fn entry(place: &Path, path: &Path) -> String {
    let inner = path.strip_prefix(place).unwrap_or(path);
    inner.iter().next().unwrap_or_default().to_string_lossy().into_owned()
}

fn commands(entry: &str) -> Vec<&'static str> {
    READERS.iter().filter(|(_, reads)| reads.contains(&entry)).map(|it| it.0).collect()
}

/// Runs every command that reads a damaged file.
fn look(round: &Round<'_>, path: &Path) -> Result<(), String> {
    let out = round.place.join("out");
    for words in commands(&entry(round.place, path)) {
        start(round.place, words)?;
        let outcome = round.peft.run(round.place, words)?;
        let kept = keep(round, path);
        outcome
            .verdict()
            .and_then(|()| match outcome.code {
                Some(0) => sound(&out).map_err(|it| format!("succeeds, but {it}\n{}", outcome.shown())),
                _ if names(&outcome.stderr, path) => Ok(()),
                _ => Err(format!("{NAMELESS} {}\n{}", path.file_name().unwrap_or_default().display(), outcome.shown())),
            })
            .map_err(|it| match &kept {
                Ok(()) => it,
                Err(error) => format!("{it}\n{error}"),
            })?;
    }
    remove(&out)
}

/// Leaves a copy of the damaged file beside the folder, which is mended before it is kept.
fn keep(round: &Round<'_>, path: &Path) -> Result<(), String> {
    let damaged = round.place.join("damaged");
    remove(&damaged)?;
    fs::create_dir_all(&damaged).map_err(cannot("create", &damaged))?;
    if path.is_file() {
        let to = damaged.join(path.file_name().unwrap_or_default());
        fs::copy(path, &to).map_err(cannot("copy", path))?;
    }
    Ok(())
}

/// Whether a message says which file it is about: by its name, or by that of its folder.
fn names(message: &str, path: &Path) -> bool {
    let name = |it: Option<&std::ffi::OsStr>| it.map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    message.contains(&name(path.file_name())) || message.contains(&name(path.parent().and_then(Path::file_name)))
}

/// Whether all numbers that were written are numbers.
fn sound(out: &Path) -> Result<(), String> {
    if !out.is_dir() {
        return Ok(());
    }
    for path in files(out)? {
        if path.extension().is_some_and(|it| it == "safetensors")
            && let Some(fault) = tensors::fault(&path, true)
        {
            return Err(fault);
        }
    }
    Ok(())
}

/// Damages a file, and says how.
fn damage(random: &Random, path: &Path, bytes: &[u8], others: &[PathBuf]) -> Result<String, String> {
    let is_text = std::str::from_utf8(bytes).is_ok();
    let is_tensors = path.extension().is_some_and(|it| it == "safetensors");
    let kinds = if is_text { 22 } else { 14 };
    let at = random.below(bytes.len());
    let span = at..(at + 1 + random.below(64)).min(bytes.len());
    let mut new = bytes.to_vec();
    let what = match random.below(kinds) {
        0 => {
            new.truncate(at);
            format!("cut after {at} bytes")
        }
        1 => {
            let count = 1 + random.below(8);
            for _ in 0..count {
                let at = random.below(new.len());
                if let Some(it) = new.get_mut(at) {
                    *it ^= 1 << random.below(8);
                }
            }
            format!("{count} bits flipped")
        }
        2 | 3 => {
            let value = *random.one(&[0, 0xff, 0x7f, b' ', b'9', b'"']);
            new[span.clone()].fill(value);
            format!("bytes {span:?} are {value}")
        }
        4 => {
            new.extend_from_slice(bytes);
            "doubled".to_owned()
        }
        5 => {
            let other = random.one(others);
            new = fs::read(other).map_err(cannot("read", other))?;
            format!("replaced by {}", other.file_name().unwrap_or_default().display())
        }
        6 => {
            new.drain(span.clone());
            format!("bytes {span:?} are gone")
        }
        7 => {
            let more: Vec<u8> = (0..1 + random.below(64)).map(|_| random.next() as u8).collect();
            let count = more.len();
            new.splice(at..at, more);
            format!("{count} bytes more at {at}")
        }
        8 => {
            new.clear();
            "empty".to_owned()
        }
        9 => return special(random, path),
        // Numbers of the file itself, which are not in the header.
        10..=13 if is_tensors && bytes.len() > 16 => {
            let header = bytes.first_chunk::<8>().map_or(0, |it| u64::from_le_bytes(*it) as usize) + 8;
            let count = (bytes.len().saturating_sub(header) / 4).max(1);
            let at = header + random.below(count) * 4;
            let number = *random.one(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e38, 1e-40]);
            if let Some(place) = new.get_mut(at..at + 4) {
                place.copy_from_slice(&number.to_le_bytes());
            }
            format!("the number at {at} is {number}")
        }
        10..=13 => {
            new[..span.end].fill(0);
            format!("the first {} bytes are 0", span.end)
        }
        14..=18 => replace(random, &mut new, |c| c.is_ascii_digit() || b"-.e".contains(&c), &NUMBERS),
        19 | 20 => replace(random, &mut new, |c| !b",:{}[]\n".contains(&c), &VALUES),
        _ => {
            let lines: Vec<&[u8]> = bytes.split_inclusive(|it| *it == b'\n').collect();
            let gone = random.below(lines.len());
            new = lines.iter().enumerate().filter(|(at, _)| *at != gone).flat_map(|it| it.1.to_vec()).collect();
            format!("line {} is gone", gone + 1)
        }
    };
    fs::write(path, new).map_err(cannot("write", path))?;
    Ok(what)
}

/// Puts another value in the place of a run of characters.
fn replace(random: &Random, text: &mut Vec<u8>, belongs: impl Fn(u8) -> bool, values: &[&str]) -> String {
    let starts: Vec<usize> =
        (0..text.len()).filter(|at| belongs(text[*at]) && (*at == 0 || !belongs(text[*at - 1]))).collect();
    if starts.is_empty() {
        text.clear();
        return "empty".to_owned();
    }
    let start = *random.one(&starts);
    let end = (start..text.len()).find(|at| !belongs(text[*at])).unwrap_or(text.len());
    let value = *random.one(values);
    let old = String::from_utf8_lossy(&text[start..end]).into_owned();
    text.splice(start..end, value.bytes());
    format!("{old:?} at {start} is {value:?}")
}

/// In the place of a file what is none.
fn special(random: &Random, path: &Path) -> Result<String, String> {
    remove(path)?;
    let kind = *random.one(&["gone", "folder", "loop", "dangling", "pipe", "device"]);
    match kind {
        "gone" => Ok(()),
        "folder" => fs::create_dir(path).map_err(cannot("create", path)),
        "pipe" => match Command::new("mkfifo").arg(path).status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("cannot make a pipe: {other:?}")),
        },
        _ => link(
            match kind {
                "loop" => path,
                "device" => Path::new("/dev/zero"),
                _ => Path::new("/nowhere/at/all"),
            },
            path,
        ),
    }?;
    Ok(format!("a {kind} in its place"))
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> Result<(), String> {
    std::os::unix::fs::symlink(to, at).map_err(cannot("link", at))
}

#[cfg(not(unix))]
fn link(_: &Path, at: &Path) -> Result<(), String> {
    fs::create_dir(at).map_err(cannot("create", at))
}
