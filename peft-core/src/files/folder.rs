//! The folder of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{PeftError, Result};
use crate::files::dtype::FloatType;
use crate::files::safetensors::{Stored, TensorFile, check_finite, serialize, write_atomically, write_together};
use crate::spec::{KEY_PREFIX, Labels, ModelSpec, frozen_path, plain_key};

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

impl Labels {
    /// Reads the labels of an adapter folder, if it says any.
    ///
    /// # Errors
    /// If the file is there and does not name every output once.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LABELS_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(PeftError::io("read", &path))?;
        let json: Map<String, Value> = serde_json::from_str(&text).map_err(|it| PeftError::bad_file(&path, it))?;
        let Some(names) = json.get("id2label").and_then(Value::as_object) else {
            return Err(PeftError::bad_file(&path, "it has no `id2label`"));
        };
        let name = |id: usize| names.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned);
        let names: Option<Vec<String>> = (0..names.len()).map(name).collect();
        let names = names.ok_or_else(|| PeftError::bad_file(&path, "`id2label` does not count from 0"))?;
        let problem_type = json.get("problem_type").and_then(Value::as_str).map(str::to_owned);
        Ok(Some(Self { problem_type, names }))
    }

    /// Writes them beside an adapter; `None` removes those of an earlier one.
    pub(crate) fn write(labels: Option<&Self>, folder: &Path) -> Result<()> {
        let path = folder.join(LABELS_FILE);
        match labels {
            Some(labels) => {
                let json = serde_json::to_string_pretty(&labels.to_json());
                let json = json.map_err(|error| PeftError::Invalid(error.to_string()))?;
                write_atomically(&path, json.as_bytes())
            }
            None if path.is_file() => fs::remove_file(&path).map_err(PeftError::io("remove", &path)),
            None => Ok(()),
        }
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

    /// Whether a tensor is one that the reference writes beside the adapter's own, and that the base has: loading passes
    /// over it.
    pub fn is_copy(&self, key: &str, spec: &ModelSpec) -> bool {
        let Some(path) = key.strip_prefix(KEY_PREFIX) else { return false };
        // With `bias = "all"` it writes the biases of a saved module three times, under the names of its wrapper too.
        if path.contains(".modules_to_save.") || path.contains(".original_module.") {
            return true;
        }
        // A tied head is the table by another name.
        let is_tied = |head: &&String| {
            let weight = format!("{head}.weight");
            let rows = format!("{head}.trainable_tokens_delta");
            spec.get(&weight).is_none() && (path == weight || path == rows)
        };
        if spec.heads.iter().any(|head| is_tied(&head)) {
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
    let text = fs::read_to_string(&file).map_err(PeftError::io("read", &file))?;
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
    write_all(path.as_ref(), config, tensors, Vec::new(), FloatType::F32)
}

/// The same in other numbers than single precision.
pub fn write_folder_in(
    path: impl AsRef<Path>,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    float: FloatType,
) -> Result<()> {
    write_all(path.as_ref(), config, tensors, Vec::new(), float)
}

/// The same with the tensors of an encoder whose outcome `tensors` holds, if there are any.
pub fn write_folder_with_encoder(
    path: impl AsRef<Path>,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    encoder: Vec<Stored>,
) -> Result<()> {
    write_all(path.as_ref(), config, tensors, encoder, FloatType::F32)
}

fn write_all(
    path: &Path,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    encoder: Vec<Stored>,
    float: FloatType,
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
    let bytes = serialize(tensors, float)?;

    let [weights, config, beside] = [WEIGHTS_FILE, CONFIG_FILE, ENCODER_FILE].map(|it| path.join(it));
    if encoder.is_empty() {
        write_together(&[(&weights, &bytes), (&config, json.as_bytes())])?;
        // One of an earlier adapter does not belong here any more.
        return match beside.is_file() {
            true => fs::remove_file(&beside).map_err(PeftError::io("remove", &beside)),
            false => Ok(()),
        };
    }
    let encoder = serialize(encoder, FloatType::F32)?;
    write_together(&[(&weights, &bytes), (&config, json.as_bytes()), (&beside, &encoder)])
}
