//! The folder of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{FloatType, Stored, TensorFile, serialize, write_together};
use crate::error::{PeftError, Result};

/// Name of the configuration in the folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors in the folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// An adapter folder, opened.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Where it lies.
    pub path: PathBuf,
    /// The configuration as written.
    pub config: Map<String, Value>,
    /// The tensors.
    pub tensors: TensorFile,
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
        Ok(Self { path: path.to_path_buf(), config, tensors })
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
    let path = path.as_ref();
    if path.is_file() {
        return Err(PeftError::bad_file(path, "it is a file; give a folder to save the adapter in"));
    }
    if tensors.is_empty() {
        return Err(PeftError::Invalid("refusing to save an adapter without a single tensor".into()));
    }
    for Stored { key, data } in &tensors {
        let finite = !data.dtype().is_float() || data.iter::<f32>().all(f32::is_finite);
        if !finite {
            let reason = format!("refusing to save: `{key}` holds NaN or infinity; train with a smaller learning rate");
            return Err(PeftError::NotFinite(reason));
        }
    }
    let sorted: BTreeMap<&String, &Value> = config.iter().collect();
    let json = serde_json::to_string_pretty(&sorted).map_err(|error| PeftError::Invalid(error.to_string()))?;
    let bytes = serialize(tensors, FloatType::F32)?;

    let (weights, config) = (path.join(WEIGHTS_FILE), path.join(CONFIG_FILE));
    write_together(&[(&weights, &bytes), (&config, json.as_bytes())])
}
