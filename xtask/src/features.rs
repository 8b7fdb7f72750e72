//! Combinations of features: each builds without a warning, and `peft` without a backend is refused in a single line.
//!
//! What takes long is compiling dependencies anew, whose features follow from those of the packages that are selected. So
//! the same packages are always selected, which leaves two sets of dependencies: with the backend, where it is the one
//! that `cargo xtask check` compiles anyway, and without. Clippy sees each combination, with the arguments of the step
//! before: it reads the same dependencies as `cargo check`, and the compiler's warnings are among its own.

use std::process::Command;

use super::cargo;

const METHODS: [&str; 3] = ["lora", "ia3", "prompt"];

/// Readers of data that are not text.
const MEDIA: [&str; 2] = ["image", "audio"];

/// What the tests of the whole need (`required-features` in peft's manifest).
const TESTED: [&str; 7] = ["flex", "lora", "ia3", "prompt", "cli", "image", "audio"];

const BACKENDS: [&str; 7] = ["flex", "wgpu", "vulkan", "metal", "cuda", "tch", "cube-cpu"];

pub(crate) fn is_backend(name: &str) -> bool {
    BACKENDS.contains(&name)
}

/// What `peft` may be built from, selected so that their dependencies are there in every combination.
const SELECTED: [&str; 4] = ["peft", "peft-lora", "peft-ia3", "peft-prompt"];

const ALONE: [&str; 6] = ["peft-core", "peft-lora", "peft-ia3", "peft-prompt", "peft-models", "peft-tasks"];

pub(crate) fn check() -> Result<(), String> {
    check_refusal()?;
    let mut failures = Vec::new();
    let mut run = |what: &str, command: &mut Command| -> Result<(), String> {
        println!("{what}");
        let status = command.args(["--", "-D", "warnings"]).status().map_err(|error| format!("no cargo: {error}"))?;
        if !status.success() {
            failures.push(what.to_owned());
        }
        Ok(())
    };
    run("the crates below peft, without a backend", clippy(&ALONE, &["--lib"]).arg("--no-default-features"))?;
    for features in combinations() {
        let targets: &[&str] = if TESTED.iter().all(|it| features.contains(it)) {
            &["--lib", "--bins", "--tests"]
        } else {
            &["--lib", "--bins"]
        };
        let list: Vec<String> = features.iter().map(|it| format!("peft/{it}")).collect();
        let mut command = clippy(&SELECTED, targets);
        run(
            &format!("peft with {}", features.join(", ")),
            command.args(["--no-default-features", "--features"]).arg(list.join(",")),
        )?;
    }
    if failures.is_empty() { Ok(()) } else { Err(format!("warnings or errors of {}", failures.join("; "))) }
}

/// Every set of methods, with and without the hub and the command: with one of both at least, for without either the
/// dependencies that they share have other features, and all of Burn is compiled again. Then pictures and sound, each
/// alone and both together.
fn combinations() -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for more in [&["hub", "cli"][..], &["cli"], &["hub"]] {
        for methods in 0..1usize << METHODS.len() {
            let methods = (0..METHODS.len()).filter(|it| methods & 1 << it != 0).map(|it| METHODS[it]);
            all.push([&["flex"], more, &methods.collect::<Vec<_>>()[..]].concat());
        }
    }
    for media in [&MEDIA[..], &MEDIA[..1], &MEDIA[1..]] {
        all.push([&["flex", "cli"], &METHODS[..], media].concat());
    }
    all
}

fn clippy(packages: &[&str], targets: &[&str]) -> Command {
    selecting("clippy", packages, targets)
}

fn selecting(subcommand: &str, packages: &[&str], targets: &[&str]) -> Command {
    let mut command = cargo(&[subcommand, "--quiet"]);
    command.args(packages.iter().flat_map(|it| ["-p", it])).args(targets);
    command
}

/// Without a backend there is one error, which names those to choose from.
fn check_refusal() -> Result<(), String> {
    println!("peft without a backend");
    let mut command = selecting("check", &SELECTED, &["--lib", "--message-format", "short"]);
    command.args(["--no-default-features", "--features", "peft/lora"]);
    let output = command.output().map_err(|error| format!("no cargo: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    match errors(&printed)[..] {
        [error] if BACKENDS.iter().all(|it| error.contains(it)) => Ok(()),
        _ => {
            Err(format!("`peft` without a backend should fail with one error that names all of them, not:\n{printed}"))
        }
    }
}

/// Errors in what cargo prints in its short form, without its own summary.
fn errors(printed: &str) -> Vec<&str> {
    let is_error = |line: &&str| line.contains(": error") && !line.starts_with("error: could not compile");
    printed.lines().filter(is_error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_methods_is_there_with_the_hub_and_without() {
        let all = combinations();
        assert_eq!(all.len(), 27);
        assert!(all.iter().any(|set| TESTED.iter().all(|it| set.contains(it))), "nothing compiles the tests");
        assert!(MEDIA.iter().all(|one| all.iter().any(|set| MEDIA.iter().all(|it| set.contains(it) == (it == one)))));
        for methods in [&[][..], &["lora"], &["ia3", "prompt"], &METHODS] {
            for hub in [true, false] {
                let is_it = |it: &&Vec<&str>| {
                    METHODS.iter().all(|name| it.contains(name) == methods.contains(name)) && it.contains(&"hub") == hub
                };
                assert!(all.iter().any(|it| is_it(&it)), "{methods:?}, hub {hub}");
            }
        }
    }

    #[test]
    fn a_cascade_is_more_than_one_error() {
        let one =
            "peft/src/lib.rs:9:1: error: choose flex\nerror: could not compile `peft` (lib) due to 1 previous error\n";
        assert_eq!(errors(one), ["peft/src/lib.rs:9:1: error: choose flex"]);
        let two =
            format!("peft/src/device.rs:3:1: error[E0432]: unresolved\npeft/src/a.rs:1:1: warning: unused\n{one}");
        assert_eq!(errors(&two).len(), 2);
        assert!(errors("    Finished\n").is_empty());
    }
}
