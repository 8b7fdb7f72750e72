//! Training that is killed at any moment: nothing is half written, and the run goes on to the very same numbers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::base::TRAIN;
use super::command::wait;
use super::{Round, cannot, files, remove, tensors};

/// As often as one run may be killed.
const KILLS: usize = 3;

pub(super) fn round(round: &Round<'_>) -> Result<(), String> {
    let random = &round.random;
    let out = round.place.join("out");
    remove(&out)?;
    let lasts: f64 = read(&round.place.join("seconds"))?.parse().map_err(|_| "no time was measured")?;
    let mut words = format!("{TRAIN} --output out");
    let mut story = String::new();
    for _ in 0..1 + random.below(KILLS) {
        // Runs beside each other are slower than one alone.
        let after = Duration::from_secs_f64(lasts * 1.5 * random.share());
        let signal = *random.one(&["KILL", "KILL", "KILL", "KILL", "TERM", "INT", "HUP"]);
        story += &format!("  $ peft {words}, {signal} after {after:?}\n");
        let printed = kill_after(round, &words, signal, after)?;
        let look = if printed.contains("panicked") { Err(format!("panics: {printed}")) } else { whole(&out) };
        look.map_err(|it| format!("{it}\n{story}"))?;
        words = format!("{TRAIN} --output out --resume");
    }
    let done = |it: String| format!("{it}\n{story}");
    round.peft.expect(round.place, &words).map_err(done)?;
    whole(&out).map_err(done)?;
    let left = files(&out)?.into_iter().find(|it| it.to_string_lossy().contains("/."));
    if let Some(left) = left {
        return Err(done(format!("what a dead run left is still there: {}", left.display())));
    }
    same(&round.place.join("tuned"), &out).map_err(done)
}

/// Starts a command, ends it after a time, and gives what it printed.
fn kill_after(round: &Round<'_>, words: &str, signal: &str, after: Duration) -> Result<String, String> {
    let mut command = round.peft.command(round.place, words);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("cannot start peft: {error}"))?;
    thread::sleep(after);
    let id = child.id().to_string();
    let kill = |signal: &str| Command::new("kill").args([&format!("-{signal}"), &id]).stderr(Stdio::null()).status();
    kill(signal).map_err(|error| format!("cannot run kill: {error}"))?;
    let ended = wait(&mut child, Duration::from_secs(30))?;
    if !ended {
        kill("KILL").map_err(|error| format!("cannot run kill: {error}"))?;
    }
    let output = child.wait_with_output().map_err(|error| format!("cannot wait: {error}"))?;
    match ended {
        true => Ok(String::from_utf8_lossy(&output.stderr).into_owned()),
        false => Err(format!("does not end after {signal}: peft {words}")),
    }
}

/// Whether all files of a run are whole.
pub(super) fn whole(folder: &Path) -> Result<(), String> {
    if !folder.is_dir() {
        return Ok(());
    }
    for path in files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What is on its way to a name of its own.
        if path.strip_prefix(folder).unwrap_or(&path).iter().any(|it| it.to_string_lossy().starts_with('.')) {
            continue;
        }
        let half = |end: &str| read(&path).map(|it| !it.trim_end().ends_with(end) || it.is_empty());
        let wrong = match name.rsplit_once('.').map_or("", |it| it.1) {
            "safetensors" => tensors::fault(&path, true),
            "json" => half("}")?.then(|| format!("{} is half written", path.display())),
            "jsonl" => (!read(&path)?.is_empty() && half("}")?).then(|| format!("{} is half written", path.display())),
            "svg" => half("</svg>")?.then(|| format!("{} is half written", path.display())),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let folder = path.parent().unwrap_or(folder);
        for (name, other) in [
            ("adapter_model.safetensors", "adapter_config.json"),
            ("adapter_config.json", "adapter_model.safetensors"),
            ("model.safetensors", "config.json"),
        ] {
            if path.ends_with(name) && !folder.join(other).is_file() {
                return Err(format!("{} is there without `{other}`", path.display()));
            }
        }
    }
    Ok(())
}

/// Whether two runs have the same numbers, bit for bit.
fn same(one: &Path, other: &Path) -> Result<(), String> {
    let log = |folder: &Path| read(&folder.join("train_log.jsonl")).map(|it| without_times(&it));
    let (expected, found) = (log(one)?, log(other)?);
    if let Some((left, right)) = expected.iter().zip(&found).find(|(left, right)| left != right) {
        return Err(format!("the log differs from that of an uninterrupted run\n  {left}\n  {right}"));
    }
    if expected.len() != found.len() {
        return Err(format!("the log has {} lines instead of {}", found.len(), expected.len()));
    }
    let weights = |folder: &Path| {
        let path = folder.join("adapter_model.safetensors");
        fs::read(&path).map_err(cannot("read", &path))
    };
    match weights(one)? == weights(other)? {
        true => Ok(()),
        false => Err("the weights differ from those of an uninterrupted run".to_owned()),
    }
}

/// The lines of a log without what depends on the clock.
fn without_times(log: &str) -> Vec<String> {
    let is_time = |field: &&str| ["\"tokens_per_second\"", "\"seconds\""].iter().any(|it| field.starts_with(it));
    let line = |it: &str| {
        let fields = it.trim_matches(['{', '}']).split(',').filter(|it| !is_time(it));
        fields.collect::<Vec<_>>().join(",")
    };
    log.lines().map(line).collect()
}

fn read(path: &Path) -> Result<String, String> {
    fs::read(path).map(|it| String::from_utf8_lossy(&it).into_owned()).map_err(cannot("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_do_not_count() {
        let lines =
            without_times("{\"step\":1,\"loss\":5.5,\"tokens_per_second\":2.5,\"seconds\":0.1}\n{\"step\":2}\n");
        assert_eq!(lines, ["\"step\":1,\"loss\":5.5", "\"step\":2"]);
    }
}
