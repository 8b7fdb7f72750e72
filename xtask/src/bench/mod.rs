//! `cargo xtask bench`: seconds a step, tokens a second, peak memory, load time and cold start, alone or in turn with
//! other programs that do the same work.
//!
//! Every measurement is a process of its own (`peft/benches/measure`, `xtask/bench/peft_torch.py`), so that its peak
//! memory is its own. All of them load one synthesised checkpoint, and before a time is believed the first losses must
//! agree. In a comparison two processes are alive at once and take turns step by step: what disturbs the machine
//! disturbs both.

mod options;
pub(crate) mod programs;
pub(crate) mod report;
pub(crate) mod runner;
pub(crate) mod shapes;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use options::Options;
use programs::{Programs, Torch};
use report::{Compared, Measured};
use runner::Runner;
use shapes::{Peer, Shape, Tuner};

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|it| it == "--help" || it == "-h") {
        println!("{}", options::USAGE);
        return Ok(());
    }
    let options = Options::parse(arguments).map_err(|reason| format!("{reason}\n\n{}", options::USAGE))?;
    let worker = build_worker(&options.device)?;
    let torch = options.python.clone().map(|python| Torch {
        python,
        script: torch_script(),
        device: options.torch_device().to_owned(),
        as_on_cards: false,
    });
    let programs = Programs { worker, device: options.device.clone(), threads: options.threads, torch };
    let bench = Bench { programs, options };
    report::machine(bench.options.threads);
    match (bench.options.launches, bench.options.compare) {
        (true, _) => bench.count_launches(),
        (false, true) => bench.compare(),
        (false, false) => bench.measure(),
    }
}

struct Bench {
    options: Options,
    programs: Programs,
}

impl Bench {
    fn measure(&self) -> Result<(), String> {
        let mut rows = Vec::new();
        Measured::print_head();
        for shape in &self.options.shapes {
            let folder = self.synthesise(shape)?;
            for method in self.options.methods.iter().filter(|it| it.fits(shape)) {
                let mut runner = self.ours(shape, method, &folder.0)?;
                for _ in 0..self.options.steps {
                    runner.step()?;
                }
                rows.push(Measured::new(shape, method, &self.options.device, &runner.finish()?));
                rows[rows.len() - 1].print();
                self.write(&report::json(rows.iter().map(Measured::fields)))?;
            }
        }
        Ok(())
    }

    /// With a few tokens: how many kernels there are does not depend on it, as long as scores and logits are not cut.
    fn count_launches(&self) -> Result<(), String> {
        println!("| shape | method | ours | Burn's only | most often |\n| --- | --- | ---: | ---: | --- |");
        for shape in self.options.shapes.iter().filter(|it| it.is_text()) {
            let shape = Shape { batch: 1, seq: 16, ..**shape };
            let folder = self.synthesise(&shape)?;
            for method in self.options.methods.iter().filter(|it| it.fits(&shape)) {
                let count = |composed: bool| {
                    let mut command = self.programs.ours(&shape, method, &folder.0);
                    command.args(composed.then_some("--composed"));
                    let mut runner = Runner::start(command, &format!("ours ({}, {})", shape.name, method.name))?;
                    let launches = runner.count()?;
                    runner.finish().map(|_| launches)
                };
                let ((ours, kernels), (composed, _)) = (count(false)?, count(true)?);
                let kernels: Vec<_> = kernels.iter().take(8).map(|(name, count)| format!("{count} {name}")).collect();
                println!("| {} | {} | {ours} | {composed} | {} |", shape.name, method.name, kernels.join(", "));
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), String> {
        let mut rows = Vec::new();
        Compared::print_head();
        for shape in &self.options.shapes {
            let folder = self.synthesise(shape)?;
            for method in self.options.methods.iter().filter(|it| it.fits(shape)) {
                for peer in self.options.peers.iter().filter(|it| it.can(shape, method)) {
                    rows.push(self.duel(shape, method, *peer, &folder.0)?);
                    rows[rows.len() - 1].print();
                    // After every row: a run that is cut off leaves what it had.
                    self.write(&report::json(rows.iter().map(Compared::fields)))?;
                }
            }
        }
        Ok(())
    }

    fn duel(&self, shape: &Shape, method: &Tuner, peer: Peer, folder: &Path) -> Result<Compared, String> {
        // One after the other up to here, so that neither disturbs the other's load time and cold start.
        let mut ours = self.ours(shape, method, folder)?;
        let mut theirs = self.peer(shape, method, peer, folder)?;
        check_same_work(&ours, &theirs, peer, peer.tolerance(method))?;
        for round in 0..self.options.steps {
            // The second one finds warmer or hotter silicon: let both be it equally often.
            if round % 2 == 0 {
                ours.step()?;
                theirs.step()?;
            } else {
                theirs.step()?;
                ours.step()?;
            }
        }
        let (ours, theirs) = (ours.finish()?, theirs.finish()?);
        Ok(Compared::new(shape, method, &self.options.device, peer, &ours, &theirs))
    }

    /// Our program, loaded and past its first step.
    fn ours(&self, shape: &Shape, method: &Tuner, folder: &Path) -> Result<Runner, String> {
        let command = self.programs.ours(shape, method, folder);
        Runner::start(command, &format!("ours ({}, {})", shape.name, method.name))
    }

    fn peer(&self, shape: &Shape, method: &Tuner, peer: Peer, folder: &Path) -> Result<Runner, String> {
        let command = self.programs.peer(shape, method, peer, folder)?;
        Runner::start(command, &format!("{} ({}, {})", peer.name(), shape.name, method.name))
    }

    /// A checkpoint of the shape with random weights.
    fn synthesise(&self, shape: &Shape) -> Result<TempFolder, String> {
        let folder = env::temp_dir().join(format!("peft-bench-{}-{}", std::process::id(), shape.name));
        let folder = TempFolder::new(folder)?;
        write_config(shape, &folder.0)?;
        let mut command = self.programs.synthesise(shape, &folder.0);
        match command.status() {
            Ok(status) if status.success() => Ok(folder),
            Ok(status) => Err(format!("the weights of {} could not be made: {status}", shape.name)),
            Err(error) => Err(format!("cannot start {}: {error}", self.programs.worker.display())),
        }
    }

    fn write(&self, json: &str) -> Result<(), String> {
        let Some(path) = &self.options.json else { return Ok(()) };
        fs::write(path, json).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// Before any update both compute the same function of the same weights.
fn check_same_work(ours: &Runner, theirs: &Runner, peer: Peer, same: f64) -> Result<(), String> {
    let (a, b) = (ours.first_value, theirs.first_value);
    let difference = (a - b).abs() / a.abs().max(b.abs());
    if difference.is_nan() || difference > same {
        return Err(format!("{} does other work than {}: {b} at the first step, not {a}", theirs.name, ours.name));
    }
    if peer != Peer::Full && ours.trainable != theirs.trainable {
        let counts = format!("{} parameters, not {}", theirs.trainable, ours.trainable);
        return Err(format!("{} does other work than {}: it trains {counts}", theirs.name, ours.name));
    }
    Ok(())
}

/// What a checkpoint of the shape begins with.
pub(crate) fn write_config(shape: &Shape, folder: &Path) -> Result<(), String> {
    let config = folder.join("config.json");
    fs::write(&config, shape.config).map_err(|error| format!("cannot write {}: {error}", config.display()))
}

/// A folder that goes away with the value.
#[derive(Debug)]
pub(crate) struct TempFolder(pub(crate) PathBuf);

impl TempFolder {
    pub(crate) fn new(path: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // It lies in the folder for such things; a failure to remove it is not one of the bench.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The other side of a comparison with torch.
pub(crate) fn torch_script() -> PathBuf {
    crate::root().join("xtask").join("bench").join("peft_torch.py")
}

fn build_worker(device: &str) -> Result<PathBuf, String> {
    let mut cargo = worker_build();
    let backend = crate::backend_of(device);
    if !matches!(backend, "flex" | "cpu") {
        cargo.args(["--features", backend]);
    }
    built(cargo)
}

/// What builds the worker, with the features of the command; more words may follow.
pub(crate) fn worker_build() -> Command {
    let mut cargo = crate::cargo(&["build", "--release", "-p", "peft", "--bench", "measure"]);
    cargo.arg("--message-format=json-render-diagnostics");
    cargo
}

/// Builds the worker and asks cargo where it put it.
pub(crate) fn built(mut cargo: Command) -> Result<PathBuf, String> {
    let output = cargo.stderr(Stdio::inherit()).output().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("the worker does not build: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let path = messages.lines().filter(|it| it.contains("\"name\":\"measure\"")).find_map(executable);
    path.map(PathBuf::from).ok_or_else(|| "cargo does not say where the worker lies".to_owned())
}

/// The value of `executable` in a message of cargo's.
fn executable(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("\"executable\":\"")?;
    let (path, _) = rest.split_once('"')?;
    // Paths of Windows; a quotation mark cannot be part of one.
    Some(path.replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_is_found_in_what_cargo_says() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"measure"},"executable":"C:\\t\\measure.exe"}"#;
        assert_eq!(executable(message).as_deref(), Some(r"C:\t\measure.exe"));
        assert_eq!(executable(r#"{"target":{"name":"measure"},"executable":null}"#), None);
    }
}
