//! What a checkpoint belongs to: the settings, data and base that a run must have to give the numbers of another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result, stable_hash};
use serde_json::{Map, Value};

use crate::data::reading;

/// Settings that a resumed run may change: how long it goes on, what it tells, what it keeps.
const MAY_CHANGE: [&str; 8] = [
    "training.max_steps",
    "training.num_train_epochs",
    "training.logging_steps",
    "training.eval_steps",
    "training.eval_batch_size",
    "training.save_steps",
    "training.save_total_limit",
    "training.gradient_checkpointing",
];
/// Beside them, as long as evaluations decide nothing.
const MAY_CHANGE_UNDECIDED: [&str; 1] = ["data.eval"];
/// Fields of an adapter's configuration that say nothing about what it computes.
const NAMES: [&str; 5] = ["base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"];

/// Size and hash of a file, such as `1024 bytes, 83c0…`. A pipe has none of its own.
///
/// # Errors
/// If it cannot be read.
pub fn file_mark(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    // Opening a pipe would wait for somebody to write into it.
    if !std::fs::metadata(path).map_err(PeftError::io("read", path))?.is_file() {
        return Ok("no file".to_owned());
    }
    let mut file = File::open(path).map_err(PeftError::io("read", path))?;
    // FNV-1a: against mistakes and damage, not against malice.
    let (mut hash, mut size) = (0xcbf2_9ce4_8422_2325_u64, 0u64);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer).map_err(PeftError::io("read", path))?;
        if read == 0 {
            return Ok(format!("{size} bytes, {hash:016x}"));
        }
        size += read as u64;
        hash = buffer[..read].iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }
}

/// What is remembered of many files: tables by their contents, all others, such as pictures, by their names and sizes.
///
/// # Errors
/// If one cannot be read.
pub fn files_mark(files: &[PathBuf]) -> Result<String> {
    let (mut tables, mut names) = (Vec::new(), String::new());
    for file in files {
        if reading::ending(file).is_some() {
            tables.push(file_mark(file)?);
        } else {
            let size = std::fs::metadata(file).map_err(PeftError::io("read", file))?.len();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            names.push_str(&format!("{name} {size}\n"));
        }
    }
    tables.push(format!("{} files, {:016x}", files.len() - tables.len(), stable_hash(&names)));
    Ok(tables.join("; "))
}

/// An adapter's configuration without what only names things.
pub(crate) fn of_adapter(mut config: Map<String, Value>) -> Value {
    config.retain(|field, _| !NAMES.contains(&field.as_str()));
    Value::Object(config)
}

/// How two runs differ.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Differences {
    /// In what a resumed run may change.
    pub(crate) allowed: Vec<String>,
    /// In what makes it another run.
    pub(crate) refused: Vec<String>,
}

/// Compares what a checkpoint was written with and what a run has now.
pub(crate) fn differences(before: &Map<String, Value>, now: &Map<String, Value>) -> Differences {
    let [before, now] = [before, now].map(|it| {
        let mut flat = BTreeMap::new();
        it.iter().for_each(|(name, value)| flatten(name, value, &mut flat));
        flat
    });
    let decided = before.get("training.early_stopping_patience").is_some_and(|it| it != "0");
    let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let mut differences = Differences::default();
    for name in names {
        let [was, is] = [&before, &now].map(|it| it.get(name).map_or("nothing", String::as_str));
        if was == is {
            continue;
        }
        let shown = name.strip_prefix("training.").unwrap_or(name);
        let text = format!("`{shown}` was {was} and is {is}");
        let may = MAY_CHANGE.contains(&name.as_str()) || !decided && MAY_CHANGE_UNDECIDED.contains(&name.as_str());
        if may { differences.allowed.push(text) } else { differences.refused.push(text) }
    }
    differences
}

/// `{a: {b: 1}}` as `a.b`: `1`. What is null is not there.
fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| flatten(&format!("{name}.{field}"), value, into))
        }
        Value::Null => {}
        Value::String(text) => {
            into.insert(name.to_owned(), text.clone());
        }
        other => {
            into.insert(name.to_owned(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compared(before: Value, now: Value) -> Differences {
        let map = |it: Value| it.as_object().unwrap().clone();
        differences(&map(before), &map(now))
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        let before =
            json!({"base": "5 parameters, ab", "training": {"learning_rate": 0.1, "max_steps": 4, "lora_fa": false}});
        let now =
            json!({"base": "5 parameters, cd", "training": {"learning_rate": 0.2, "max_steps": 9, "lora_fa": false}});
        let found = compared(before.clone(), now);
        assert_eq!(found.allowed, ["`max_steps` was 4 and is 9"]);
        assert_eq!(
            found.refused,
            ["`base` was 5 parameters, ab and is 5 parameters, cd", "`learning_rate` was 0.1 and is 0.2"]
        );
        assert_eq!(compared(before.clone(), before), Differences::default());
        // A field that is left out is one that is null.
        let found = compared(json!({"training": {"max_steps": null}}), json!({"training": {"max_steps": 3}}));
        assert_eq!(found.allowed, ["`max_steps` was nothing and is 3"]);
        assert_eq!(compared(json!({"data": {"columns": null}}), json!({})), Differences::default());
    }

    #[test]
    fn evaluation_data_may_change_unless_it_decides() {
        let run = |eval: &str, patience: u32| json!({"data": {"eval": eval}, "training": {"early_stopping_patience": patience}});
        assert_eq!(compared(run("a", 0), run("b", 0)).refused, [""; 0]);
        assert_eq!(compared(run("a", 2), run("b", 2)).refused, ["`data.eval` was a and is b"]);
    }

    #[test]
    fn a_file_is_told_by_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mark = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            file_mark(folder.path().join(name)).unwrap()
        };
        // The hash of nothing, and the published one of `foobar` (Fowler, Noll, Vo).
        assert_eq!(mark("empty", b""), "0 bytes, cbf29ce484222325");
        assert_eq!(mark("a", b"foobar"), "6 bytes, 85944171f73967e8");
        assert_eq!(mark("b", b"foobar"), mark("a", b"foobar"));
        assert_ne!(mark("a", &[7; 100_000]), mark("b", &[[7; 99_999].as_slice(), &[8]].concat()));
        assert_eq!(file_mark(folder.path()).unwrap_or("no file".into()), "no file");
        assert!(file_mark(folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
