//! The folder that a command writes to: what is in it is not lost by chance.

use std::path::Path;

use peft_core::{CONFIG_FILE, PeftError, Result, WEIGHTS_FILE};
use peft_tasks::train::RunFolder;

/// Files by which an adapter or a model is known, in the forms that are written here.
const KNOWN: [&str; 6] = [
    CONFIG_FILE,
    WEIGHTS_FILE,
    "config.json",
    "adapters.safetensors",
    "lora.safetensors",
    "pytorch_lora_weights.safetensors",
];

/// Refuses a folder that a run writes to, and unless `overwrite` is set one that holds an adapter or a model already.
///
/// # Errors
/// Names what is there.
pub fn check_output(output: &Path, overwrite: bool) -> Result<()> {
    if output.is_dir() {
        RunFolder::check_free(output)?;
    }
    match KNOWN.iter().find(|it| output.join(it).exists()).filter(|_| !overwrite) {
        Some(name) => {
            let reason = format!(
                "{} holds `{name}` already: give another folder, or --overwrite to replace what is there",
                output.display()
            );
            Err(PeftError::config("--output", reason))
        }
        None => Ok(()),
    }
}
