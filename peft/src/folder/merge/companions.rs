//! What goes along with weights: everything in the base's folder that is none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use peft_core::files::inside::inside;
use peft_core::{CONFIG_FILE, PeftError, Result};
use peft_models::common::tokenizer_files::{CHAT_TEMPLATES, SETTINGS, VOCABULARIES, is_tokenizer_file};
use serde_json::Value;

use crate::load::adapters::AdapterSource;

/// What was copied from where, by name.
pub(super) struct Companions {
    pub(super) from_base: Vec<String>,
    pub(super) from_adapter: Vec<String>,
    pub(super) left_out: Vec<String>,
}

/// Endings of files of weights, and of the states of optimizers.
const WEIGHTS: [&str; 24] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".index",
    ".data-00000-of-00001",
    ".meta",
    ".h5",
    ".h5.index.json",
    ".hdf5",
    ".keras",
    ".msgpack",
    ".msgpack.index.json",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".npz",
];

/// What training leaves beside weights, what would make transformers put the adapter on once more, and how the base was stored.
const STATES: [&str; 5] =
    ["trainer_state.json", CONFIG_FILE, "config.json", "quantize_config.json", "quant_config.json"];

/// Whether a file holds weights, or lists files that do.
pub(super) fn is_weight_file(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WEIGHTS.iter().any(|ending| name.ends_with(ending))
}

/// Copies what belongs to a checkpoint beside its weights and its `config.json`.
///
/// The tokenizer and the chat template of the first adapter that brings them go before those of the base: the adapter was
/// trained with them. A tokenizer is taken whole, never half of one and half of the other.
pub(super) fn copy(base: &Path, adapters: &[AdapterSource], to: &Path) -> Result<Companions> {
    let mut left_out = Vec::new();
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for entry in fs::read_dir(base).map_err(PeftError::io("read", base))? {
        let entry = entry.map_err(PeftError::io("read", base))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A link may lead to anything of the user's.
        let stays = inside(base, &name).is_ok();
        match stays && goes_along(&entry.path(), &name) {
            true => drop(files.insert(name, entry.path())),
            // It is written anew.
            false if name == "config.json" => {}
            false => left_out.push(name),
        }
    }
    let mut from_adapter = Vec::new();
    if let Some((folder, names)) = adapters.iter().find_map(|it| Some((&it.folder, brought(&it.folder)?))) {
        if names.iter().any(|it| VOCABULARIES.contains(&it.as_str())) {
            files.retain(|name, _| !is_tokenizer_file(name));
        }
        if names.iter().any(|it| it == "tokenizer_config.json") && has_template(&folder.join("tokenizer_config.json")) {
            files.retain(|name, _| !CHAT_TEMPLATES.contains(&name.as_str()));
        }
        for name in names {
            files.insert(name.clone(), folder.join(&name));
            from_adapter.push(name);
        }
    }
    for (name, from) in &files {
        let to = to.join(name);
        fs::copy(from, &to).map_err(PeftError::io("write", &to))?;
    }
    left_out.sort();
    let from_base = files.into_keys().filter(|it| !from_adapter.contains(it)).collect();
    Ok(Companions { from_base, from_adapter, left_out })
}

fn goes_along(path: &Path, name: &str) -> bool {
    path.is_file()
        && !name.starts_with('.')
        && !name.ends_with(".lock")
        && !is_weight_file(name)
        && !STATES.contains(&name)
}

/// The files of a tokenizer or a chat template in an adapter's folder, if it has any that say more than special tokens.
fn brought(folder: &Path) -> Option<Vec<String>> {
    let there = |names: &[&str]| -> Vec<String> {
        names.iter().filter(|it| folder.join(it).is_file()).map(|it| (*it).to_owned()).collect()
    };
    let (vocabulary, chat) = (there(&VOCABULARIES), there(&CHAT_TEMPLATES));
    match (vocabulary.is_empty(), chat.is_empty()) {
        (true, true) => None,
        (true, false) => Some(chat),
        (false, _) => Some([vocabulary, there(&SETTINGS), chat].concat()),
    }
}

/// Whether a `tokenizer_config.json` holds a chat template, before which one in a file of its own would go.
fn has_template(file: &Path) -> bool {
    let json = fs::read_to_string(file).ok().and_then(|it| serde_json::from_str::<Value>(&it).ok());
    json.is_some_and(|it| it.get("chat_template").is_some_and(|it| !it.is_null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn text(folder: &Path, name: &str) -> Option<String> {
        fs::read_to_string(folder.join(name)).ok()
    }

    #[test]
    fn all_but_weights_goes_along_and_the_rest_is_named() {
        let kept = ["tokenizer.model", "spiece.model", "added_tokens.json", "LICENSE", "modeling_own.py", "README.md"];
        let weights =
            ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "m.gguf", "m.onnx"];
        let states = ["optimizer.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin.index.json"];
        let all = [&kept[..], &weights, &states, &[".cache", "x.lock", "config.json"]].concat();
        let base = folder(&all.iter().map(|it| (*it, "base")).collect::<Vec<_>>());
        fs::create_dir(base.path().join("onnx")).unwrap();
        let to = tempfile::tempdir().unwrap();
        let copied = copy(base.path(), &[], to.path()).unwrap();
        let mut kept: Vec<String> = kept.iter().map(|it| (*it).to_owned()).collect();
        kept.sort();
        assert_eq!(copied.from_base, kept);
        assert!(kept.iter().all(|it| text(to.path(), it).as_deref() == Some("base")));
        assert_eq!(copied.left_out.len(), weights.len() + states.len() + 3, "{:?}", copied.left_out);
        assert!(copied.left_out.contains(&"onnx".to_owned()) && !copied.left_out.contains(&"config.json".to_owned()));
    }

    #[test]
    fn an_adapters_tokenizer_is_taken_whole() {
        let base = folder(&[
            ("tokenizer.json", "base"),
            ("vocab.json", "base"),
            ("chat_template.jinja", "base"),
            ("generation_config.json", "base"),
        ]);
        let adapter = folder(&[("tokenizer.json", "own"), ("tokenizer_config.json", "{}"), ("README.md", "own")]);
        let (to, sources) = (tempfile::tempdir().unwrap(), [AdapterSource::new(adapter.path())]);
        let copied = copy(base.path(), &sources, to.path()).unwrap();
        assert_eq!(copied.from_adapter, ["tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(copied.from_base, ["chat_template.jinja", "generation_config.json"]);
        assert_eq!(text(to.path(), "tokenizer.json").unwrap(), "own");
        assert_eq!(text(to.path(), "vocab.json"), None, "half of another tokenizer");

        fs::write(adapter.path().join("tokenizer_config.json"), r#"{"chat_template": "own"}"#).unwrap();
        let again = tempfile::tempdir().unwrap();
        copy(base.path(), &sources, again.path()).unwrap();
        assert_eq!(text(again.path(), "chat_template.jinja"), None, "it would go before the adapter's");

        let template = folder(&[("chat_template.jinja", "own"), ("tokenizer_config.json", "{}")]);
        let third = tempfile::tempdir().unwrap();
        let copied = copy(base.path(), &[AdapterSource::new(template.path())], third.path()).unwrap();
        assert_eq!(copied.from_adapter, ["chat_template.jinja"]);
        assert_eq!(text(third.path(), "vocab.json").unwrap(), "base");
    }
}
