//! How the words of a checkpoint of GPTQ or AWQ are filled: its tensors do not say it. `quantization_config` of `config.json` does, or
//! `quantize_config.json` of older folders.

use std::path::Path;

use serde_json::{Map, Value};

use super::plain::read_text;
use crate::error::{PeftError, Result};
use crate::quant::{GroupedConfig, StoredQuant};

/// The key of a layer's codes, if it is such a layer's.
pub(super) fn codes_of(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|module| format!("{module}.qweight"))
}

/// How words are filled, as the folder of a checkpoint says it.
///
/// # Errors
/// If it does not say so, or says what is not read.
pub(super) fn config(folder: &Path) -> Result<GroupedConfig> {
    let parsed = |path: &Path| -> Result<Map<String, Value>> {
        serde_json::from_str(&read_text(path)?).map_err(|error| PeftError::bad_file(path, error))
    };
    let (whole, own) = (folder.join("config.json"), folder.join("quantize_config.json"));
    let of_whole = match parsed(&whole)?.get("quantization_config") {
        Some(Value::Object(config)) => Some((config.clone(), whole.clone())),
        _ => None,
    };
    let Some((mut config, path)) = of_whole.or_else(|| Some((parsed(&own).ok()?, own))) else {
        let reason = "has no `quantization_config`, without which the words of `qweight` mean nothing: fetch it again";
        return Err(PeftError::bad_file(whole, reason));
    };
    // Files of AutoGPTQ's own do not name it.
    config.entry("quant_method").or_insert("gptq".into());
    match StoredQuant::from_json(&config).map_err(|error| error.in_file(&path))? {
        StoredQuant::Grouped(config) => Ok(config),
        StoredQuant::BitsAndBytes(_) => {
            Err(PeftError::bad_file(path, "says bitsandbytes, and the weights are of GPTQ or AWQ: fetch it again"))
        }
    }
}
