//! The chores of this workspace, in plain Rust and with hardly a dependency, so that they start at once.
//!
//! `cargo xtask check` is what continuous integration runs, and what you run before you send a change. `cargo xtask
//! bench` measures training steps, alone or beside other programs. `cargo xtask card` packs what measures them on a
//! machine with a card. `cargo xtask support` writes the book's support table. `cargo xtask docs` checks and runs the
//! book. `cargo xtask break` kills, fills, damages and lies. `cargo xtask modules` finds cycles of modules. `cargo xtask
//! features` and `cargo xtask downstream` are steps of the check.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod break_it;
mod card;
mod docs;
mod examples;
mod features;
mod modules;
mod parallel;
mod support;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: cargo xtask check [--quick] [--device NAME]

  check            crate graph, modules, format, clippy, features, docs, tests, support table, examples, a crate outside
                   the workspace, book, break, parallel, demo, bench; cheapest first, stops at the first failure
    --quick        leaves out what needs a release build: the demo and a smoke test of the bench
    --device NAME  runs the tests of the numbers on that device, and nothing else: wgpu, cube-cpu, tch, cuda:1, …

  support          writes the support table of the book from the tests that passed; --check compares

  bench            measures; `cargo xtask bench --help` says what and how

  card             packs what a machine with a card needs to measure itself, without Rust and without a network;
                   `cargo xtask card --help` says what

  break            kills runs, fills disks, damages files and lies to downloads: `cargo xtask break --help` says how often

  parallel         runs of several processes, against a run of one; what becomes of them when one dies. Needs OpenMPI and
                   libclang, and is left out without mpirun

  docs --check     commands, links and tables of the book in docs/
  docs --run       runs the book's commands; `cargo xtask docs` says with what

  modules          finds cycles of modules inside a crate, and folders that import from above

  features         builds every combination of features, without warnings

  downstream       builds and tests examples/downstream, which is no member of the workspace";

/// Which of our crates each crate may depend on. Arrows point one way: methods never see models, and models never see
/// methods. A crate that is not listed may use all of them.
const MAY_DEPEND_ON: [(&str, &[&str]); 6] = [
    ("peft-core", &[]),
    ("peft-lora", &["peft-core"]),
    ("peft-ia3", &["peft-core"]),
    ("peft-prompt", &["peft-core"]),
    ("peft-models", &["peft-core"]),
    ("peft-tasks", &["peft-core", "peft-models"]),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((word, rest)) if word == "bench" => bench::run(rest),
        Some((word, rest)) if word == "card" => card::run(rest),
        Some((word, rest)) if word == "break" => break_it::run(rest),
        Some((word, rest)) if word == "support" => support::run(rest),
        Some((word, rest)) if word == "docs" => docs::run(rest),
        Some((word, rest)) if word == "modules" => modules::run(rest),
        Some((word, [])) if word == "features" => features::check(),
        Some((word, [])) if word == "downstream" => examples::downstream(),
        Some((word, [])) if word == "parallel" => parallel::run(),
        _ => match Options::parse(&arguments) {
            Ok(options) => check(&options),
            Err(reason) => Err(format!("{reason}\n\n{USAGE}")),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("\nerror: {reason}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    quick: bool,
    device: Option<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut words = arguments.iter().map(String::as_str);
        match words.next() {
            Some("check") => {}
            Some(other) => return Err(format!("there is no subcommand `{other}`")),
            None => return Err("a subcommand is missing".to_owned()),
        }
        let mut options = Self::default();
        while let Some(word) = words.next() {
            match word {
                "--quick" => options.quick = true,
                "--device" => match words.next() {
                    Some(name) if features::is_backend(backend_of(name)) => options.device = Some(name.to_owned()),
                    Some(other) => return Err(format!("`--device {other}` is unknown; `peft devices` lists names")),
                    None => return Err("`--device` needs a name".to_owned()),
                },
                other => return Err(format!("`{other}` is unknown")),
            }
        }
        Ok(options)
    }
}

/// The feature that a device needs: `cuda` of `cuda:1`.
fn backend_of(device: &str) -> &str {
    device.split_once(':').map_or(device, |(backend, _)| backend)
}

fn check(options: &Options) -> Result<(), String> {
    let mut steps = Steps { done: Vec::new() };
    if let Some(device) = &options.device {
        let features = format!("peft/{}", backend_of(device));
        let selected = ["test", "-p", "peft", "-p", "peft-core", "--features", &features, "--lib", "--test", "main"];
        let mut test = cargo(&selected);
        steps.run_command(&format!("tests on {device}"), test.env("PEFT_TEST_DEVICE", device))?;
        return steps.summarise();
    }

    steps.run("crate graph", check_crate_graph)?;
    steps.run("modules", modules::check)?;
    steps.run_command("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    let deny = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    steps.run_command("clippy", &mut cargo(&deny))?;
    steps.run("features", features::check)?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    steps.run_command("docs", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    let mut printed = String::new();
    steps.run("tests", || {
        let (text, status) = run_and_keep(&mut cargo(&["test", "--workspace"]))?;
        printed = text;
        if status.success() { Ok(()) } else { Err(format!("{status}")) }
    })?;
    steps.run("support table", || support::compare(&printed))?;
    // Built with the whole workspace, as the tests were: `-p` would choose other features and compile our crates again.
    steps.run_command("examples", &mut cargo(&["build", "--workspace", "--bins", "--examples"]))?;
    for name in examples::runnable()? {
        steps.run_command(&format!("example {name}"), &mut Command::new(example_binary(&name)?))?;
    }
    steps.run("downstream", examples::downstream)?;
    steps.run("book", docs::check)?;
    // The command was built with the examples.
    steps.run("break", || break_it::run(&[]))?;
    steps.run("parallel", parallel::run)?;
    if !options.quick {
        let output = env::temp_dir().join(format!("peft-demo-{}", std::process::id()));
        let mut demo = cargo(&["run", "--release", "-p", "peft", "--", "demo", "--quick", "--output"]);
        let outcome = steps.run_command("demo", demo.arg(&output));
        // Nothing to remove if the demo came to nothing; that is not a failure of its own.
        let _ = fs::remove_dir_all(&output);
        outcome?;
        steps.run("bench", || bench::run(&["--quick".to_owned()]))?;
    }
    steps.summarise()
}

/// Runs steps one after another and remembers how long they took.
struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    fn run(&mut self, name: &str, step: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = step();
        let time = start.elapsed();
        self.done.push((name.to_owned(), time));
        outcome.map_err(|reason| format!("step `{name}` failed after {:.1} s: {reason}", time.as_secs_f64()))
    }

    fn run_command(&mut self, name: &str, command: &mut Command) -> Result<(), String> {
        self.run(name, || {
            let program = command.get_program().to_string_lossy().into_owned();
            let status = command.status().map_err(|error| format!("cannot start {program}: {error}"))?;
            if status.success() { Ok(()) } else { Err(format!("{status}")) }
        })
    }

    fn summarise(&self) -> Result<(), String> {
        println!("\n=== all {} steps passed", self.done.len());
        for (name, time) in &self.done {
            println!("{:8.1} s  {name}", time.as_secs_f64());
        }
        Ok(())
    }
}

/// Runs a command and shows what it prints; returns it too.
fn run_and_keep(command: &mut Command) -> Result<(String, ExitStatus), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let cannot = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} {program}: {error}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| cannot("start", &error))?;
    let mut kept = String::new();
    // A test may print bytes that are no text.
    for line in child.stdout.take().into_iter().flat_map(|it| BufReader::new(it).split(b'\n')) {
        let line = line.map_err(|error| cannot("read", &error))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        kept += &line;
        kept.push('\n');
    }
    Ok((kept, child.wait().map_err(|error| cannot("wait for", &error))?))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // What `cargo run` tells this program about itself is not for the cargo that it starts: build scripts that look at
    // these would run again whenever somebody changes between `cargo xtask` and `cargo`, and half the tree with them.
    let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
        command.env_remove(name);
    }
    command
}

fn root() -> PathBuf {
    // As `cargo run` says it: with a target folder that clones share, this program may have been built in another one.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("..")
}

/// Examples lie beside this program: `xtask` and `examples/` share a profile folder.
fn example_binary(name: &str) -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|error| format!("cannot tell where xtask lies: {error}"))?;
    Ok(own.with_file_name("examples").join(format!("{name}{}", env::consts::EXE_SUFFIX)))
}

fn check_crate_graph() -> Result<(), String> {
    let ours = members(&read(&root().join("Cargo.toml"))?);
    let mut wrong = Vec::new();
    for (name, allowed) in MAY_DEPEND_ON {
        let used = dependencies(&read(&root().join(name).join("Cargo.toml"))?);
        let used: Vec<String> = used.into_iter().filter(|it| ours.contains(it)).collect();
        println!("{name} -> {}", if used.is_empty() { "nothing of ours".to_owned() } else { used.join(", ") });
        let forbidden = used.iter().filter(|it| !allowed.contains(&it.as_str()));
        wrong.extend(forbidden.map(|it| format!("{name} must not depend on {it}")));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The folders of a workspace; ours are named after their packages.
fn members(manifest: &str) -> Vec<String> {
    let list = manifest.lines().find_map(|line| line.strip_prefix("members = "));
    list.unwrap_or_default().split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Names in `[dependencies]`, also where a target or a table of its own is given. Tests may use what they like.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.split(']').next().unwrap_or_default();
            inside = section == "dependencies" || section.ends_with(".dependencies");
            let table =
                section.strip_prefix("dependencies.").or_else(|| section.split_once(".dependencies.").map(|it| it.1));
            names.extend(table.map(str::to_owned));
        } else if inside && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            names.extend((!name.is_empty()).then(|| name.to_owned()));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_dependencies_count() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nburn.workspace = true\n# note\npeft-core = { path = \"c\" }\n\
            [dependencies.serde]\nversion = \"1\"\n[target.'cfg(unix)'.dependencies]\nlibc = \"1\"\n\
            [dev-dependencies]\npeft-models.workspace = true\n";
        assert_eq!(dependencies(manifest), ["burn", "peft-core", "serde", "libc"]);
    }

    #[test]
    fn members_are_the_quoted_names() {
        assert_eq!(members("[workspace]\nmembers = [\"peft\", \"xtask\"]\n"), ["peft", "xtask"]);
    }

    #[test]
    fn the_command_line_is_understood() {
        let parse = |line: &str| Options::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse("check --quick"), Ok(Options { quick: true, device: None }));
        assert_eq!(parse("check --device wgpu"), Ok(Options { quick: false, device: Some("wgpu".to_owned()) }));
        assert!(parse("check --device").is_err());
        assert!(parse("check --device abacus").is_err());
        assert!(parse("fly").is_err());
    }
}
