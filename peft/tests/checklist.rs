//! `fixtures/CHECKLIST.md` says which test covers what the reference's own tests check. It must not rot.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::fixtures;

/// Names of tests: functions behind `#[test]`, and rows of the tables that make one each.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let root = fixtures().join("..");
    for package in ["peft", "peft-core", "peft-lora", "peft-ia3", "peft-prompt", "peft-models", "peft-tasks"] {
        collect(&root.join(package).join("src"), &mut names);
        collect(&root.join(package).join("tests"), &mut names);
    }
    names
}

fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for (at, _) in text.match_indices("#[test]") {
                let name = text[at..].split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
                names.extend(name.map(|(name, _)| name.to_owned()));
            }
            // `parity! { … }`, `layers! { … }`: names with commas between.
            for (at, _) in text.match_indices("! {\n") {
                let table = text[at + 3..].split_once("\n}").map_or("", |(table, _)| table);
                let words = table.split(|it: char| !(it.is_alphanumeric() || it == '_')).filter(|it| !it.is_empty());
                names.extend(words.map(str::to_owned));
            }
        }
    }
}

#[test]
fn every_row_names_tests_that_exist() {
    let text = std::fs::read_to_string(fixtures().join("CHECKLIST.md")).unwrap();
    let tests = tests();
    assert!(tests.contains("gpt2_dora") && tests.contains("every_row_names_tests_that_exist"));
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in
        text.lines().filter(|it| it.starts_with("| ") && !it.starts_with("| ---") && !it.starts_with("| reference"))
    {
        rows += 1;
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [reference, here] = cells[..] else {
            wrong.push(format!("no two cells: {line}"));
            continue;
        };
        let named: Vec<&str> = here.split('`').skip(1).step_by(2).filter(|it| it.contains("::")).collect();
        let excused = here.starts_with("not here") || here.contains("**missing**");
        if reference.is_empty() || (named.is_empty() && !excused && !here.contains("examples/")) {
            wrong.push(format!("neither a test nor a reason: {line}"));
        }
        for name in named {
            let last = name.rsplit("::").next().unwrap();
            if last != "…" && !tests.contains(last) {
                wrong.push(format!("no test is called {name}"));
            }
        }
    }
    assert!(rows > 100, "{rows} rows");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
