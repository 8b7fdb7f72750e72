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
    check_output_with(output, overwrite, |_| false)
}

/// The same where other files, by their names, are what nobody gave away either.
pub(crate) fn check_output_with(output: &Path, overwrite: bool, more: impl Fn(&str) -> bool) -> Result<()> {
    let Ok(entries) = output.read_dir() else { return Ok(()) };
    RunFolder::check_free(output)?;
    let names = entries.filter_map(|it| it.ok()?.file_name().into_string().ok());
    match names.filter(|it| KNOWN.contains(&it.as_str()) || more(it)).min().filter(|_| !overwrite) {
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
