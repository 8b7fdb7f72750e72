//! The programs of `examples/`: which run by themselves, and the crate there that is no member of the workspace.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::{cargo, read, root};

/// Names of the examples that need no arguments. One that needs a model or data takes them behind `--`, and says so in
/// the line of its head that calls it.
pub(crate) fn runnable() -> Result<Vec<String>, String> {
    let folder = root().join("examples");
    let manifest = read(&folder.join("Cargo.toml"))?;
    let mut names = Vec::new();
    for name in sources(&folder)? {
        if !manifest.contains(&format!("path = \"{name}.rs\"")) {
            return Err(format!("examples/Cargo.toml has no [[example]] of {name}.rs"));
        }
        let text = read(&folder.join(&name).with_extension("rs"))?;
        let arguments = arguments(&name, &text).ok_or_else(|| {
            format!(
                "the head of examples/{name}.rs should have the line `//! cargo run -p peft-examples --example {name}`"
            )
        })?;
        if arguments.is_empty() {
            names.push(name);
        }
    }
    if names.is_empty() { Err("no example runs by itself".to_owned()) } else { Ok(names) }
}

fn sources(folder: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let paths = entries.filter_map(|it| Some(it.ok()?.path()));
    let rust = paths.filter(|it| it.extension().is_some_and(|it| it == "rs"));
    let mut names: Vec<String> = rust.filter_map(|it| Some(it.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// What the call in the head of an example has behind its name.
fn arguments<'a>(name: &str, text: &'a str) -> Option<&'a str> {
    let calls = text.lines().filter(|it| it.starts_with("//! cargo run "));
    let mut words = calls.filter_map(|it| it.split_once("--example ")?.1.strip_prefix(name));
    words.find(|it| it.is_empty() || it.starts_with(' ')).map(str::trim)
}

/// Builds and tests the crate that uses ours from outside.
pub(crate) fn downstream() -> Result<(), String> {
    let folder = root().join("examples/downstream");
    // The versions that everything else was built with, so that it is not built again. Cargo leaves out what is not used.
    let lock = folder.join("Cargo.lock");
    fs::copy(root().join("Cargo.lock"), &lock).map_err(|error| format!("cannot write {}: {error}", lock.display()))?;
    let manifest = folder.join("Cargo.toml");
    let target = target_folder()?;
    let run = |name: &str, more: &[&str]| -> Result<(), String> {
        let mut command = cargo(&[name, "--manifest-path"]);
        command.arg(&manifest).args(more);
        let status = command.env("CARGO_TARGET_DIR", &target).status();
        let status = status.map_err(|error| format!("cannot start cargo: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("cargo {name} of examples/downstream: {status}")) }
    };
    run("fmt", &["--check"])?;
    run("clippy", &["--all-targets", "--", "-D", "warnings"])?;
    run("test", &[])
}

/// Where cargo has put this program.
fn target_folder() -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|error| format!("cannot tell where xtask lies: {error}"))?;
    let folder = own.parent().and_then(Path::parent).ok_or("xtask lies in no target folder")?;
    Ok(folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_with_arguments_does_not_run_by_itself() {
        let head = |call: &str| format!("//! Title.\n//!\n//! ```text\n//! cargo run {call}\n//! ```\n");
        assert_eq!(arguments("a", &head("-p x --example a")), Some(""));
        assert_eq!(arguments("a", &head("--release --example a -- MODEL")), Some("-- MODEL"));
        assert_eq!(arguments("a", &head("--example ab")), None);
        assert_eq!(arguments("a", "fn main() {}"), None);
    }

    #[test]
    fn every_example_says_how_it_is_run() {
        let names = runnable().unwrap();
        assert!(names.iter().any(|it| it == "custom_method"), "{names:?}");
        assert!(names.iter().all(|it| it != "load_and_merge"), "{names:?}");
    }
}
