//! The folder of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{PeftError, Result};
use crate::files::dtype::FloatType;
use crate::files::place::StagedFolder;
use crate::files::plain::read_text;
use crate::files::safetensors::{Stored, TensorFile, check_finite, serialize, write_together};
use crate::spec::{KEY_PREFIX, Labels, ModelSpec, frozen_path, key_of, plain_key};

/// Name of the configuration in the folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors in the folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Name of the file beside them from which the training of a prompt's encoder goes on. The reference, which forgets the
/// encoder, does not look at it.
pub const ENCODER_FILE: &str = "prompt_encoder.safetensors";

/// Name of the file that says what the outputs of a trained head mean. The reference keeps this in the `config.json` of
/// the model, which an adapter folder has not; it does not look at this file.
pub const LABELS_FILE: &str = "labels.json";

/// What transformers calls the kinds of classification.
const PROBLEM_TYPES: [&str; 3] = ["regression", "single_label_classification", "multi_label_classification"];

impl Labels {
    /// Reads the labels of an adapter folder, if it says any.
    ///
    /// # Errors
    /// If the file is there and does not name every output once, or knows another kind of problem.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LABELS_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = read_text(&path)?;
        let json: Map<String, Value> = serde_json::from_str(&text).map_err(|it| PeftError::bad_file(&path, it))?;
        let Some(names) = json.get("id2label").and_then(Value::as_object) else {
            return Err(PeftError::bad_file(&path, "it has no `id2label`"));
        };
        let name = |id: usize| names.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned);
        let names: Option<Vec<String>> = (0..names.len()).map(name).collect();
        let names = names.ok_or_else(|| PeftError::bad_file(&path, "`id2label` does not count from 0"))?;
        let problem_type = match json.get("problem_type") {
            None | Some(Value::Null) => None,
            Some(Value::String(kind)) if PROBLEM_TYPES.contains(&kind.as_str()) => Some(kind.clone()),
            Some(other) => {
                let reason = format!("`problem_type` is {other}, expected one of {}", PROBLEM_TYPES.join(", "));
                return Err(PeftError::bad_file(&path, reason));
            }
        };
        Ok(Some(Self { problem_type, names }))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(&self.to_json()).map_err(|error| PeftError::Invalid(error.to_string()))
    }
}

/// An adapter folder, opened.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Where it lies.
    pub path: PathBuf,
    /// The configuration as written.
    pub config: Map<String, Value>,
    /// The tensors.
    pub tensors: TensorFile,
    /// The tensors of an encoder whose outcome `tensors` holds.
    pub encoder: Option<TensorFile>,
    /// What the outputs of its head mean.
    pub labels: Option<Labels>,
}

impl AdapterFolder {
    /// Opens a folder that the reference or this workspace wrote.
    ///
    /// Keys are known as the reference saves them, also where the file has the adapter's name or those of torch's wrappers
    /// in them.
    ///
    /// # Errors
    /// If there is no such folder, it is something else than an adapter, or a file of it is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config = read_config(path)?;
        let weights = path.join(WEIGHTS_FILE);
        if !weights.is_file() {
            let what = foreign(path).unwrap_or("has no `adapter_model.safetensors`");
            return Err(PeftError::bad_file(path, format!("it {what}")));
        }
        let tensors = TensorFile::open(weights)?.renamed(plain_key)?;
        if tensors.keys().is_empty() {
            return Err(PeftError::bad_file(tensors.path(), "it holds no tensor: the adapter was saved empty"));
        }
        let encoder = path.join(ENCODER_FILE);
        let encoder = encoder.is_file().then(|| TensorFile::open(encoder)).transpose()?;
        Ok(Self { path: path.to_path_buf(), config, tensors, encoder, labels: Labels::read(path)? })
    }

    /// The folder as if it had been written for the names of this model: see [`ModelSpec::with_other_names`].
    ///
    /// # Errors
    /// If two tensors are the same by these names.
    pub fn in_names_of(mut self, spec: &ModelSpec) -> Result<Self> {
        let names = spec.names_elsewhere();
        // Its keys tell by which names a folder goes: a name in its configuration may mean layers by either.
        if self.tensors.keys().iter().any(|key| key_of(&names, key) != *key) {
            self.tensors = self.tensors.renamed(|key| Cow::Owned(key_of(&names, key)))?;
            names.translate(&mut self.config);
        }
        Ok(self)
    }

    /// Whether a tensor is one that the reference writes beside the adapter's own, and that the base has: loading passes
    /// over it.
    pub fn is_copy(&self, key: &str, spec: &ModelSpec) -> bool {
        let Some(path) = key.strip_prefix(KEY_PREFIX) else { return false };
        // With `bias = "all"` it writes the biases of a saved module three times, under the names of its wrapper too.
        if path.contains(".modules_to_save.") || path.contains(".original_module.") {
            return true;
        }
        // A tied head is the table by another name, with adapters of the table or without.
        let names = ["weight", "bias", "base_layer.weight", "base_layer.bias", "trainable_tokens_delta"];
        let is_of = |module: &str| {
            let field = path.strip_prefix(module).and_then(|it| it.strip_prefix('.'));
            field.is_some_and(|it| names.contains(&it.strip_prefix("token_adapter.").unwrap_or(it)))
        };
        if spec.heads.iter().any(|head| spec.get(&format!("{head}.weight")).is_none() && is_of(head)) {
            return true;
        }
        // So are the tables of an encoder and a decoder that share one.
        let shared = spec.modules().find_map(|it| it.strip_suffix("shared"));
        let tables = ["encoder.embed_tokens", "decoder.embed_tokens"];
        if shared.is_some_and(|stack| tables.iter().any(|it| is_of(&format!("{stack}{it}")))) {
            return true;
        }
        let path = frozen_path(key).unwrap_or_default();
        let shape = self.tensors.shape(key).unwrap_or(&[]);
        spec.get(&path).is_some_and(|param| param.shape_on_disk() == shape)
    }
}

/// Reads the configuration of an adapter folder.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let file = folder.join(CONFIG_FILE);
    if !file.is_file() {
        let reason = match (folder.is_dir(), foreign(folder)) {
            (false, _) => "there is no such folder".to_owned(),
            (true, Some(what)) => format!("it {what}"),
            (true, None) => format!("it has no `{CONFIG_FILE}`, so it is no adapter folder"),
        };
        return Err(PeftError::bad_file(folder, reason));
    }
    let text = read_text(&file)?;
    let config: Map<String, Value> = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(&file, error))?;
    // mlx-lm calls its configuration by the same name.
    match config.contains_key("peft_type") {
        false if config.contains_key("fine_tune_type") || config.contains_key("lora_parameters") => {
            Err(PeftError::bad_file(folder, format!("it {MLX}")))
        }
        _ => Ok(config),
    }
}

const MLX: &str = "is an adapter of mlx-lm, whose factors lie the other way round: train it again here, or fuse it into \
                   its base with `mlx_lm.fuse` and use that model";

/// What a folder is that is none of ours, and what to do with it: the end of a sentence that begins with `it`.
fn foreign(folder: &Path) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 8] = [
        (
            "adapter_model.bin",
            "has its weights in `adapter_model.bin`, a pickle, which may run any program and is not opened: write it \
             once from Python with `PeftModel.from_pretrained(…).save_pretrained(…)`",
        ),
        ("adapters.safetensors", MLX),
        ("adapters.npz", MLX),
        (
            "pytorch_lora_weights.safetensors",
            "is an adapter of an image pipeline in the layout of diffusers; language models have no use for it",
        ),
        ("pytorch_lora_weights.bin", "is an adapter of an image pipeline, in a pickle, which is not opened"),
        ("model.safetensors", "is a model, no adapter: give it as the model"),
        ("model.safetensors.index.json", "is a model, no adapter: give it as the model"),
        ("pytorch_model.bin", "is a model in a pickle, no adapter"),
    ];
    if let Some((_, what)) = KNOWN.iter().find(|(file, _)| folder.join(file).is_file()) {
        return Some(what);
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|it| it.file_name().into_string().ok()).collect();
    let any = |test: fn(&String) -> bool| names.iter().any(test);
    if any(|it| it.ends_with(".gguf")) {
        return Some("holds GGUF, the form of llama.cpp: give the folder that it was converted from");
    }
    any(|it| it.starts_with("checkpoint-")).then_some("holds checkpoints: give one of them, such as the last")
}

/// Writes an adapter folder. Until the last moment an adapter that was there stays whole.
pub fn write_folder(path: impl AsRef<Path>, config: &Map<String, Value>, tensors: Vec<Stored>) -> Result<()> {
    write_adapter(path.as_ref(), config, tensors, Vec::new(), FloatType::F32, None)
}

/// The same in other numbers than single precision.
pub fn write_folder_in(
    path: impl AsRef<Path>,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    float: FloatType,
) -> Result<()> {
    write_adapter(path.as_ref(), config, tensors, Vec::new(), float, None)
}

/// The same with the tensors of an encoder whose outcome `tensors` holds, if there are any.
pub fn write_folder_with_encoder(
    path: impl AsRef<Path>,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    encoder: Vec<Stored>,
) -> Result<()> {
    write_adapter(path.as_ref(), config, tensors, encoder, FloatType::F32, None)
}

/// The same with the labels of a head that the adapter brings; `Some(None)` removes those of an earlier adapter.
pub(crate) fn write_adapter(
    path: &Path,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    encoder: Vec<Stored>,
    float: FloatType,
    labels: Option<Option<&Labels>>,
) -> Result<()> {
    if path.is_file() {
        return Err(PeftError::bad_file(path, "it is a file; give a folder to save the adapter in"));
    }
    if tensors.is_empty() {
        return Err(PeftError::Invalid("refusing to save an adapter without a single tensor".into()));
    }
    let next = "if training made it, train with a smaller learning rate";
    check_finite(&tensors, float, next)?;
    check_finite(&encoder, FloatType::F32, next)?;
    let sorted: BTreeMap<&String, &Value> = config.iter().collect();
    let json = serde_json::to_string_pretty(&sorted).map_err(|error| PeftError::Invalid(error.to_string()))?;
    let mut files = vec![
        (WEIGHTS_FILE, Some(serialize(tensors, float)?)),
        // One of an earlier adapter does not belong here any more.
        (ENCODER_FILE, (!encoder.is_empty()).then(|| serialize(encoder, FloatType::F32)).transpose()?),
    ];
    if let Some(labels) = labels {
        files.push((LABELS_FILE, labels.map(Labels::to_bytes).transpose()?));
    }
    files.push((CONFIG_FILE, Some(json.into_bytes())));
    put_files(path, &files)
}

/// Writes the files of an adapter, and removes those without contents, so that no two of different adapters lie together
/// at any time.
///
/// If no more than one of them changes, or there is no adapter yet, each takes its place in turn, the configuration last:
/// without it the folder is none of an adapter. Else the whole folder is exchanged, with all else that is in it.
fn put_files(path: &Path, files: &[(&str, Option<Vec<u8>>)]) -> Result<()> {
    let changes = |(name, new): &&(&str, Option<Vec<u8>>)| {
        let old = fs::read(path.join(name)).ok();
        old.as_ref() != new.as_ref()
    };
    let changed: Vec<&(&str, Option<Vec<u8>>)> = files.iter().filter(changes).collect();
    let is_adapter = [WEIGHTS_FILE, CONFIG_FILE].iter().all(|it| path.join(it).is_file());
    if is_adapter
        && changed.len() > 1
        && let Ok(staged) = StagedFolder::beside(path)
    {
        let files = changed.iter().filter_map(|(name, bytes)| Some((staged.path().join(name), bytes.as_deref()?)));
        let files: Vec<(PathBuf, &[u8])> = files.collect();
        write_together(&files.iter().map(|(path, bytes)| (path.as_path(), *bytes)).collect::<Vec<_>>())?;
        return staged.put(|name| changed.iter().any(|it| it.0 == name));
    }
    let written = changed.iter().filter_map(|(name, bytes)| Some((path.join(name), bytes.as_deref()?)));
    let written: Vec<(PathBuf, &[u8])> = written.collect();
    write_together(&written.iter().map(|(path, bytes)| (path.as_path(), *bytes)).collect::<Vec<_>>())?;
    for (name, _) in changed.iter().filter(|it| it.1.is_none()) {
        fs::remove_file(path.join(name)).map_err(PeftError::io("remove", path.join(name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use serde_json::json;

    use super::*;

    fn write(folder: &Path, value: f32, rank: u64, labels: Option<&Labels>, encoder: bool) {
        let tensor = |key: &str| Stored { key: key.to_owned(), data: TensorData::from([value]) };
        let config = Map::from_iter([("r".to_owned(), json!(rank))]);
        let of_encoder = Stored { key: "e".to_owned(), data: TensorData::from([0.5f32]) };
        let encoder = if encoder { vec![of_encoder] } else { Vec::new() };
        write_adapter(folder, &config, vec![tensor("w")], encoder, FloatType::F32, Some(labels)).unwrap();
    }

    #[test]
    fn a_folder_is_replaced_whole_and_what_else_is_in_it_stays() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("adapter");
        let labels = Labels { problem_type: None, names: vec!["a".into()] };
        write(&folder, 1.0, 8, Some(&labels), true);
        fs::create_dir(folder.join("checkpoint-5")).unwrap();
        fs::write(folder.join("log.jsonl"), "kept").unwrap();
        // The folder itself stays what it is while only the weights change.
        #[cfg(unix)]
        let identity = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        #[cfg(unix)]
        let first = identity(&folder);
        write(&folder, 2.0, 8, Some(&labels), true);
        #[cfg(unix)]
        assert_eq!(identity(&folder), first);

        write(&folder, 3.0, 16, None, false);
        #[cfg(target_os = "linux")]
        assert_ne!(identity(&folder), first, "a weight and a configuration change in one step");
        let opened = AdapterFolder::open(&folder).unwrap();
        assert_eq!(opened.config["r"], 16);
        assert_eq!(opened.tensors.floats("w").unwrap().iter::<f32>().next(), Some(3.0));
        assert!(opened.labels.is_none() && opened.encoder.is_none());
        assert!(folder.join("checkpoint-5").is_dir() && folder.join("log.jsonl").is_file());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
