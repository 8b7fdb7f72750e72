//! `cargo xtask break`: kills, full disks, damaged files and bad servers, at random but so that every finding can be seen
//! again.
//!
//! A round depends on the seed and its own number alone. What a round must not do: panic, end by a signal, hang, succeed
//! with numbers that are none, or leave a file that is half written.

pub(crate) mod base;
pub(crate) mod command;
mod damages;
mod fills;
mod kills;
mod random;
mod servers;
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use command::Peft;
use random::Random;

const USAGE: &str = "\
usage: cargo xtask break [--rounds N] [--only kills|fills|damages|servers] [--seed S] [--round R] [--peft FILE]

  kills runs and goes on, fills disks, damages files and lies to downloads, and looks at what the command makes of it

  --rounds N   so many rounds of each kind; without it a small number, about a minute together. A full run has
               300 kills, 5000 damaged files and 500 of the others
  --only KIND  one kind
  --seed S     another choice of what is broken (0)
  --round R    this round alone, as a finding names it
  --peft FILE  the command, otherwise the one that is built beside this program";

/// How a finding starts that is shown, and is no failure yet: a true error that leaves the file to be guessed.
const NAMELESS: &str = "does not name";

/// Something that goes wrong in many ways, one of them a round.
struct Kind {
    name: &'static str,
    /// Rounds where nobody says how many.
    few: usize,
    round: fn(&Round<'_>) -> Result<(), String>,
}

const KINDS: [Kind; 4] = [
    Kind { name: "kills", few: 12, round: kills::round },
    Kind { name: "fills", few: 24, round: fills::round },
    Kind { name: "damages", few: 120, round: damages::round },
    Kind { name: "servers", few: 40, round: servers::round },
];

/// What a round works with.
struct Round<'a> {
    peft: &'a Peft,
    /// A folder of its own, which holds a copy of what [`base::prepare`] makes.
    place: &'a Path,
    random: Random,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    rounds: Option<usize>,
    only: Option<String>,
    seed: u64,
    round: Option<usize>,
    peft: Option<PathBuf>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("`{word}` needs a value"));
            let number = |it: &String| it.parse::<u64>().map_err(|_| format!("`{it}` is no number"));
            match word.as_str() {
                "--rounds" => options.rounds = Some(number(value()?)? as usize),
                "--round" => options.round = Some(number(value()?)? as usize),
                "--seed" => options.seed = number(value()?)?,
                "--peft" => options.peft = Some(PathBuf::from(value()?)),
                "--only" => {
                    let name = value()?;
                    if !KINDS.iter().any(|it| it.name == name) {
                        return Err(format!("`--only {name}` is unknown"));
                    }
                    options.only = Some(name.clone());
                }
                other => return Err(format!("`{other}` is unknown")),
            }
        }
        if options.round.is_some() && options.only.is_none() {
            return Err("`--round` needs `--only`".to_owned());
        }
        Ok(options)
    }
}

pub(crate) fn run(words: &[String]) -> Result<(), String> {
    if words.iter().any(|it| it == "--help" || it == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse(words).map_err(|reason| format!("{reason}\n\n{USAGE}"))?;
    if !cfg!(unix) {
        println!("needs kill, links and limits of a Unix system; left out");
        return Ok(());
    }
    let peft = Peft::find(options.peft.clone())?;
    let scratch = std::env::temp_dir().join(format!("peft-break-{}", std::process::id()));
    let outcome = all(&options, &peft, &scratch);
    // What is worth keeping was moved away.
    let _ = fs::remove_dir_all(&scratch);
    outcome
}

fn all(options: &Options, peft: &Peft, scratch: &Path) -> Result<(), String> {
    let sound = scratch.join("sound");
    base::prepare(peft, &sound)?;
    damages::sane(peft, &sound)?;
    let mut found = 0;
    for kind in KINDS.iter().filter(|it| options.only.as_ref().is_none_or(|only| only == it.name)) {
        let start = Instant::now();
        let rounds = match options.round {
            Some(round) => round..round + 1,
            None => 0..options.rounds.unwrap_or(kind.few),
        };
        let count = rounds.len();
        let findings = all_rounds(kind, rounds, options.seed, peft, scratch)?;
        println!("{}: {count} rounds in {:.1} s, {} found", kind.name, start.elapsed().as_secs_f64(), findings.len());
        report(kind, &findings, options.seed);
        found += findings.iter().filter(|it| !it.what.starts_with(NAMELESS)).count();
    }
    if found == 0 { Ok(()) } else { Err(format!("{found} rounds found something")) }
}

struct Finding {
    round: usize,
    what: String,
    kept: PathBuf,
}

/// Runs the rounds of a kind on all processors.
fn all_rounds(
    kind: &Kind,
    rounds: std::ops::Range<usize>,
    seed: u64,
    peft: &Peft,
    scratch: &Path,
) -> Result<Vec<Finding>, String> {
    let next = AtomicUsize::new(rounds.start);
    let findings = Mutex::new(Vec::new());
    let worker = |number: usize| -> Result<(), String> {
        let place = scratch.join(format!("{}-{number}", kind.name));
        copy(&scratch.join("sound"), &place)?;
        loop {
            let round = next.fetch_add(1, Ordering::Relaxed);
            if round >= rounds.end {
                return Ok(());
            }
            let random = Random::new(kind.name, seed, round as u64);
            let outcome = (kind.round)(&Round { peft, place: &place, random });
            if let Err(what) = outcome {
                let kept = crate::root().join(format!("target/break/{}-{seed}-{round}", kind.name));
                let _ = fs::remove_dir_all(&kept);
                copy(&place, &kept)?;
                println!("  {} {round}: {}", kind.name, what.lines().next().unwrap_or_default());
                findings.lock().unwrap_or_else(|it| it.into_inner()).push(Finding { round, what, kept });
                fs::remove_dir_all(&place).map_err(cannot("remove", &place))?;
                copy(&scratch.join("sound"), &place)?;
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(rounds.len());
    thread::scope(|scope| {
        let all: Vec<_> = (0..workers).map(|it| scope.spawn(move || worker(it))).collect();
        all.into_iter().try_for_each(|it| it.join().map_err(|_| "a worker panicked".to_owned())?)
    })?;
    let mut findings = findings.into_inner().unwrap_or_else(|it| it.into_inner());
    findings.sort_by_key(|it| it.round);
    Ok(findings)
}

/// Prints what was found, each thing once: a bug shows in many rounds.
fn report(kind: &Kind, findings: &[Finding], seed: u64) {
    let mut alike: BTreeMap<String, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        let line = finding.what.lines().next().unwrap_or_default();
        alike.entry(line.chars().filter(|it| !it.is_ascii_digit()).collect()).or_default().push(finding);
    }
    for same in alike.values() {
        let Finding { round, what, kept } = same[0];
        println!("\n{what}");
        println!("  in {} rounds; the files are in {}", same.len(), kept.display());
        println!("  again: cargo xtask break --only {} --seed {seed} --round {round}", kind.name);
    }
}

fn cannot(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("cannot {what} {path}: {error}")
}

/// Copies a folder. Links are copied as links; what is neither a file nor a folder is left out.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(cannot("create", to))?;
    for entry in fs::read_dir(from).map_err(cannot("read", from))? {
        let entry = entry.map_err(cannot("read", from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(cannot("read", &path))?;
        if kind.is_dir() {
            copy(&path, &target)?;
        } else if kind.is_symlink() {
            #[cfg(unix)]
            fs::read_link(&path)
                .and_then(|it| std::os::unix::fs::symlink(it, &target))
                .map_err(cannot("link", &target))?;
        } else if kind.is_file() {
            fs::copy(&path, &target).map_err(cannot("copy", &path))?;
        }
    }
    Ok(())
}

/// All files below a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot("read", folder))? {
        let path = entry.map_err(cannot("read", folder))?.path();
        match path.is_dir() && !path.is_symlink() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}

fn remove(path: &Path) -> Result<(), String> {
    match path.is_dir() && !path.is_symlink() {
        true => fs::remove_dir_all(path),
        false if path.symlink_metadata().is_ok() => fs::remove_file(path),
        false => Ok(()),
    }
    .map_err(cannot("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_understood() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let expected = Options { rounds: Some(9), only: Some("kills".to_owned()), seed: 3, ..Options::default() };
        assert_eq!(parse("--rounds 9 --only kills --seed 3"), Ok(expected));
        for wrong in ["--rounds", "--rounds x", "--only fires", "--round 3", "fly"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
