//! The folder of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{PeftError, Result};
use crate::files::dtype::FloatType;
use crate::files::safetensors::{Stored, TensorFile, serialize, write_atomically, write_together};
use crate::spec::{KEY_PREFIX, ModelSpec, frozen_path};

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

/// What the outputs of a head mean, as fields of the reference's `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `regression`, `single_label_classification` or `multi_label_classification`; `None` for labels of tokens.
    pub problem_type: Option<String>,
    /// Output → name: `id2label`. Empty for a regression.
    pub names: Vec<String>,
}

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

    /// The fields `problem_type`, `id2label` and `label2id`.
    pub fn to_json(&self) -> Map<String, Value> {
        let ids = || self.names.iter().enumerate();
        let id2label: Map<String, Value> =
            ids().map(|(id, name)| (id.to_string(), Value::from(name.as_str()))).collect();
        let label2id: Map<String, Value> = ids().map(|(id, name)| (name.clone(), Value::from(id))).collect();
        let mut json = Map::new();
        json.insert("problem_type".into(), self.problem_type.clone().into());
        json.insert("id2label".into(), id2label.into());
        json.insert("label2id".into(), label2id.into());
        json
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
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config = read_config(path)?;
        let weights = path.join(WEIGHTS_FILE);
        if !weights.is_file() {
            let reason = if path.join("adapter_model.bin").is_file() {
                "it has only `adapter_model.bin`; save it once from Python with `safe_serialization=True`".to_owned()
            } else {
                format!("it has no `{WEIGHTS_FILE}`")
            };
            return Err(PeftError::bad_file(path, reason));
        }
        let tensors = TensorFile::open(weights)?;
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
        return Err(PeftError::bad_file(folder, format!("it has no `{CONFIG_FILE}`, so it is no adapter folder")));
    }
    let text = fs::read_to_string(&file).map_err(PeftError::io("read", &file))?;
    serde_json::from_str(&text).map_err(|error| PeftError::bad_file(&file, error))
}

/// Writes an adapter folder. Until the last moment an adapter that was there stays whole.
pub fn write_folder(path: impl AsRef<Path>, config: &Map<String, Value>, tensors: Vec<Stored>) -> Result<()> {
    write_folder_with_encoder(path, config, tensors, Vec::new())
}

/// The same with the tensors of an encoder whose outcome `tensors` holds, if there are any.
pub fn write_folder_with_encoder(
    path: impl AsRef<Path>,
    config: &Map<String, Value>,
    tensors: Vec<Stored>,
    encoder: Vec<Stored>,
) -> Result<()> {
    let path = path.as_ref();
    if path.is_file() {
        return Err(PeftError::bad_file(path, "it is a file; give a folder to save the adapter in"));
    }
    if tensors.is_empty() {
        return Err(PeftError::Invalid("refusing to save an adapter without a single tensor".into()));
    }
    for Stored { key, data } in tensors.iter().chain(&encoder) {
        let finite = !data.dtype().is_float() || data.iter::<f32>().all(f32::is_finite);
        if !finite {
            let reason = format!("refusing to save: `{key}` holds NaN or infinity; train with a smaller learning rate");
            return Err(PeftError::NotFinite(reason));
        }
    }
    let sorted: BTreeMap<&String, &Value> = config.iter().collect();
    let json = serde_json::to_string_pretty(&sorted).map_err(|error| PeftError::Invalid(error.to_string()))?;
    let bytes = serialize(tensors, FloatType::F32)?;

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
