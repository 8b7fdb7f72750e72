//! `cargo xtask modules`: inside a crate, modules form no cycles, and folders import downwards only.
//!
//! Whoever reads a file should have to know what is below it, and nothing else. A module is a file; `lib.rs` and
//! `main.rs` are the roots and may know everything. A file uses another one where it names something that is defined
//! there, whichever re-exports lead to it: `pub use` of a child's names is no use, tests do not count, and neither do
//! methods that are called on a value without naming its type.

mod attributes;
mod cycles;
mod names;
mod sources;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::ErrorKind;

use crate::root;
use cycles::Graph;
use names::Edge;
use sources::{Load, Sources};

/// What the modules of a crate may import.
struct Rules {
    package: &'static str,
    /// Folders and root files (`"error"` is `src/error.rs`) from low to high: each may import from those before it. A
    /// folder inside a folder may have a place of its own. An empty list checks no order.
    order: &'static [&'static str],
    /// Folders inside which cycles are allowed, and why they cannot be taken apart.
    cycles: &'static [(&'static str, &'static str)],
}

const RULES: [Rules; 7] = [
    Rules {
        package: "peft-core",
        order: &[
            "error", "device", "launches", "memory", "order", "mapped", "context", "quant", "sharding", "ops",
            "erased", "spec", "files", "adapter", "forward", "nn", "plan", "config", "model", "laws",
        ],
        cycles: &[("adapter", "an adapter sees the layer below it, and that layer may be adapted too")],
    },
    Rules {
        package: "peft-lora",
        order: &["svd", "default_targets", "common", "trainable_tokens", "lora", "methods", "combine"],
        cycles: &[],
    },
    Rules { package: "peft-ia3", order: &["defaults", "vector", "config", "combine"], cycles: &[] },
    Rules {
        package: "peft-prompt",
        order: &["config", "start", "dense", "lstm", "tokens", "prefix", "p_tuning", "multitask", "adaption"],
        cycles: &[],
    },
    Rules {
        package: "peft-models",
        order: &[
            "common",
            "architecture",
            "text/decoder",
            "text/encoder",
            "text/seq2seq",
            "text",
            "vision",
            "multimodal",
            "diffusion",
            "speech",
            "auto",
        ],
        cycles: &[],
    },
    Rules { package: "peft-tasks", order: &["parallel", "data", "eval", "generate", "tasks", "train"], cycles: &[] },
    Rules {
        package: "peft",
        order: &["device", "memory", "mpi", "methods", "load", "task", "run", "folder", "prelude", "cli"],
        cycles: &[],
    },
];

/// The files that a crate starts from, as far as it has them.
const ROOTS: [&str; 2] = ["lib.rs", "main.rs"];

pub(crate) fn run(words: &[String]) -> Result<(), String> {
    if words.is_empty() { check() } else { Err("usage: cargo xtask modules".to_owned()) }
}

/// Checks all library crates.
pub(crate) fn check() -> Result<(), String> {
    let load = |path: &str| match std::fs::read_to_string(root().join(path)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {path}: {error}")),
    };
    let mut wrong = Vec::new();
    for rules in &RULES {
        let found = check_crate(rules, &load)?;
        println!("{}: {}", rules.package, if found.is_empty() { "in order" } else { "not in order" });
        wrong.extend(found);
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("modules are not in order\n\n{}", wrong.join("\n\n"))) }
}

/// All that is wrong in a crate.
fn check_crate(rules: &Rules, load: Load<'_>) -> Result<Vec<String>, String> {
    let source = format!("{}/src/", rules.package);
    let mut files = Vec::new();
    let mut edges = Vec::new();
    for root in ROOTS.map(|it| format!("{source}{it}")) {
        if load(&root)?.is_some() {
            let sources = Sources::read(&root, load)?;
            edges.extend(sources.edges());
            files.extend(sources.files.into_iter().skip(1));
        }
    }
    let mut wrong = cycles_in(rules, &source, &edges);
    if !rules.order.is_empty() {
        wrong.extend(upward_imports(rules, &source, &files, &edges));
    }
    Ok(wrong)
}

fn cycles_in(rules: &Rules, source: &str, edges: &[Edge]) -> Vec<String> {
    let graph = Graph::new(edges);
    let mut cycles = graph.cycles();
    let mut wrong = Vec::new();
    for (folder, _) in rules.cycles {
        let before = cycles.len();
        cycles.retain(|files| !files.iter().all(|file| is_below(file, &format!("{source}{folder}"))));
        if cycles.len() == before {
            wrong.push(format!(
                "{}: no cycle is left inside `{folder}`; take it out of `cycles` in RULES of xtask/src/modules/mod.rs",
                rules.package
            ));
        }
    }
    for component in cycles::components(cycles) {
        let files: BTreeSet<&str> = component.iter().flatten().copied().collect();
        let names: Vec<&str> = files.iter().map(|it| it.strip_prefix(source).unwrap_or(it)).collect();
        let mut text = format!(
            "{}: {} modules use each other in cycles: {}.\nMove what both sides need into a module below them, or what \
             needs both into one above.",
            rules.package,
            names.len(),
            names.join(", ")
        );
        let mut shown = BTreeSet::new();
        for cycle in component {
            let uses = graph.uses(&cycle);
            // A longer cycle is worth reading if it has a use that no shorter one has.
            if uses.iter().all(|it| shown.contains(it[0])) {
                continue;
            }
            shown.extend(uses.iter().map(|it| it[0]));
            let _ = write!(text, "\n  a cycle of {}:", cycle.len());
            for lines in uses {
                let _ = write!(text, "\n    {}", describe(lines, source));
            }
        }
        wrong.push(text);
    }
    wrong
}

/// One file's uses of another: the first in full, of the others how many lines they are on.
fn describe(uses: &[&Edge], source: &str) -> String {
    let lines: BTreeSet<usize> = uses.iter().map(|it| it.line).collect();
    let more = match lines.len() {
        1 => String::new(),
        2 => ", and on another line".to_owned(),
        many => format!(", and on {} more lines", many - 1),
    };
    let first = uses[0];
    format!("{}:{} uses {} (`{}`{more})", first.from, first.line, first.to.trim_start_matches(source), first.name)
}

fn upward_imports(rules: &Rules, source: &str, files: &[String], edges: &[Edge]) -> Vec<String> {
    let present: BTreeSet<&str> = files.iter().map(|it| folder(it, source, rules.order)).collect();
    let height: BTreeMap<&str, usize> = rules.order.iter().enumerate().map(|(at, it)| (*it, at)).collect();
    let mut wrong = Vec::new();
    for missing in present.iter().filter(|it| !height.contains_key(*it)) {
        wrong.push(format!(
            "{}: `{missing}` has no place yet; put it into `order` in RULES of xtask/src/modules/mod.rs, behind all that \
             it imports from and before all that imports from it",
            rules.package
        ));
    }
    for gone in rules.order.iter().filter(|it| !present.contains(*it)) {
        wrong.push(format!(
            "{}: there is no `{gone}`; take it out of `order` in RULES of xtask/src/modules/mod.rs",
            rules.package
        ));
    }
    for edge in edges {
        let (from, to) = (folder(&edge.from, source, rules.order), folder(&edge.to, source, rules.order));
        if let (Some(low), Some(high)) = (height.get(from), height.get(to))
            && low < high
        {
            wrong.push(format!(
                "{}:{} imports `{}` from {}: `{from}` is below `{to}` and must not know it; move one of the two, or what \
                 they share to a folder below both",
                edge.from,
                edge.line,
                edge.name,
                edge.to.trim_start_matches(source)
            ));
        }
    }
    wrong
}

/// The place of a file in an order: the innermost folder that the order names, or else the first one below `src/`, or the
/// name of a file there.
fn folder<'a>(file: &'a str, source: &str, order: &[&'a str]) -> &'a str {
    let inner = file.strip_prefix(source).unwrap_or(file);
    let named = order.iter().filter(|it| is_below(inner, it)).max_by_key(|it| it.len());
    named.copied().unwrap_or_else(|| inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs"))
}

/// Whether a file is the module `folder` or one of those in it.
fn is_below(file: &str, folder: &str) -> bool {
    file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}
