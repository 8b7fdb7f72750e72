//! The command under test, and what it must never do.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing here takes seconds; what is not there after this many hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Address space of a run in KiB: what wants more has taken a number from a file for a size.
const MEMORY: u64 = 12 << 20;

/// More than any message should say.
const LONGEST: usize = 6000;

pub(crate) struct Peft {
    program: PathBuf,
}

/// What a run came to.
pub(crate) struct Outcome {
    /// How to do it again.
    pub line: String,
    /// The exit code, nothing if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    hung: bool,
}

impl Peft {
    pub(crate) fn find(given: Option<PathBuf>) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| format!("cannot tell where xtask lies: {error}"))?;
        let program = given.unwrap_or_else(|| own.with_file_name(format!("peft{}", std::env::consts::EXE_SUFFIX)));
        // Runs have folders of their own.
        match program.canonicalize() {
            Ok(program) => Ok(Self { program }),
            Err(_) => Err(format!("there is no {}: run `cargo build --workspace`", program.display())),
        }
    }

    /// Where it lies.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The command in a folder, with the words of a line.
    pub(super) fn command(&self, place: &Path, words: &str) -> Command {
        let mut command = Command::new("sh");
        // A file that may not grow any more is an error, as on a full disk, and not the end of the process.
        let script = format!("trap '' XFSZ; ulimit -v {MEMORY} && exec \"$0\" \"$@\"");
        command.args(["-c", &script]).arg(&self.program).args(words.split_whitespace());
        command.current_dir(place).stdin(Stdio::null());
        // Nothing of whoever runs this: neither the token nor the cache.
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "PEFT_LOG"] {
            command.env_remove(name);
        }
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", place.join("hf")).env("RUST_BACKTRACE", "0");
        command
    }

    pub(super) fn run(&self, place: &Path, words: &str) -> Result<Outcome, String> {
        finish(self.command(place, words), &format!("peft {words}"))
    }

    /// A run that has to succeed.
    pub(crate) fn expect(&self, place: &Path, words: &str) -> Result<Outcome, String> {
        let outcome = self.run(place, words)?;
        outcome.verdict()?;
        match outcome.code {
            Some(0) => Ok(outcome),
            _ => Err(format!("a sound folder is refused\n{}", outcome.shown())),
        }
    }
}

/// Runs a command to its end, or for as long as patience lasts.
pub(crate) fn finish(mut command: Command, line: &str) -> Result<Outcome, String> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("cannot start {line}: {error}"))?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let hung = !wait(&mut child, PATIENCE)?;
    if hung {
        child.kill().map_err(|error| format!("cannot end {line}: {error}"))?;
    }
    let status = child.wait().map_err(|error| format!("cannot wait for {line}: {error}"))?;
    let text = |it: Option<thread::JoinHandle<String>>| it.and_then(|it| it.join().ok()).unwrap_or_default();
    Ok(Outcome { line: line.to_owned(), code: status.code(), stdout: text(stdout), stderr: text(stderr), hung })
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came until the end is all there is to look at.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether a process ends within a time.
pub(crate) fn wait(child: &mut Child, within: Duration) -> Result<bool, String> {
    let start = Instant::now();
    while start.elapsed() < within {
        if child.try_wait().map_err(|error| format!("cannot wait: {error}"))?.is_some() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(false)
}

impl Outcome {
    /// What no run may do, whatever it is given.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        let all = format!("{}\n{}", self.stdout, self.stderr);
        let word = |it: &str| all.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == it);
        let wrong = if self.hung {
            format!("does not end within {} s", PATIENCE.as_secs())
        } else if let Some(line) = all.lines().find(|it| it.contains("panicked at")) {
            let after = all.lines().skip_while(|it| it != &line).nth(1).unwrap_or_default();
            format!("panics: {} {after}", line.trim())
        } else if self.code == Some(101) || self.code.is_none_or(|it| it > 2) {
            format!("ends with code {:?}: {}", self.code, self.stderr.lines().last().unwrap_or_default())
        } else if self.stderr.chars().chain(self.stdout.chars()).any(|it| it.is_control() && !"\n\t".contains(it)) {
            "prints control characters".to_owned()
        } else if self.code == Some(0) && (word("NaN") || word("nan") || self.stdout.contains(" inf")) {
            "succeeds with a number that is none".to_owned()
        } else if self.code != Some(0) && self.stderr.trim().is_empty() {
            "fails without a word".to_owned()
        } else if self.stderr.len() > LONGEST {
            format!("says {} bytes", self.stderr.len())
        } else {
            return Ok(());
        };
        Err(format!("{wrong}\n{}", self.shown()))
    }

    /// The line and what it printed.
    pub(crate) fn shown(&self) -> String {
        let short = |text: &str| {
            text.chars()
                .take(1500)
                .flat_map(|c| match c {
                    '\n' | '\t' => vec![c],
                    c if c.is_control() => c.escape_default().collect(),
                    c => vec![c],
                })
                .collect::<String>()
        };
        format!("  $ {}\n  code {:?}\n{}\n{}", self.line, self.code, short(&self.stdout), short(&self.stderr))
    }
}
