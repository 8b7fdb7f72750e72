//! Adapters folded into the weights of their base: a plain checkpoint.

use std::fs;
use std::path::PathBuf;

use peft_core::files::checkpoint::{Checkpoint, FloatType, Placement, model_tensors, write_atomically, write_tensors};
use peft_core::{PeftError, Result, read_config};
use peft_models::common::config::RawConfig;
use serde_json::Value;

use crate::load::adapters::{AdapterSource, head_of, is_same_folder, with_adapters};
use crate::run::labels;
use crate::run::registry::{KnownTask, Registry};

/// What to merge, and where to write it.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// Folder of the base model.
    pub base: PathBuf,
    /// The adapters; all are folded in.
    pub adapters: Vec<AdapterSource>,
    /// Folder to write the checkpoint to.
    pub output: PathBuf,
    /// Name of the task. By default that of the first adapter's `task_type`, or `causal-lm`.
    pub task: Option<String>,
    /// Element type of the weights. By default that of the base.
    pub float: Option<FloatType>,
}

/// Files of a checkpoint that merging does not change.
const COMPANIONS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
];

/// Writes a plain checkpoint in which the adapters are folded into the weights.
///
/// # Errors
/// If something cannot be read, an adapter does not fit or cannot be merged, or the output is the base's own folder.
pub fn merge(request: &MergeRequest, registry: &Registry, place: impl Into<Placement>) -> Result<()> {
    let MergeRequest { base: folder, adapters, output, .. } = request;
    let float = match request.float {
        Some(float) => float,
        None => Checkpoint::open(folder)?.float_type(),
    };
    if is_same_folder(folder, output) {
        return Err(PeftError::config("output", "is the base model's folder: a base is never written"));
    }
    let task = task_of(request, registry)?;
    let base = task.load(&registry.architectures, folder, place, &head_of(adapters))?;
    let tensors = model_tensors(&with_adapters(base, adapters, &registry.methods)?.merge()?);
    // A head that an adapter has moved apart from the table is read only if the configuration does not tie them.
    let has_head = tensors.iter().any(|it| it.key.ends_with("lm_head.weight"));
    write_tensors(output.join("model.safetensors"), tensors, float)?;
    for file in COMPANIONS {
        let from = folder.join(file);
        if from.is_file() {
            let to = output.join(file);
            fs::copy(&from, &to).map_err(PeftError::io("write", &to))?;
        }
    }
    let labels = labels::of_adapters(adapters)?;
    let mut config = match &labels {
        Some(labels) => labels::in_config(folder, labels)?,
        None => RawConfig::read(folder)?.json,
    };
    let moved_apart = has_head && !config.get("tie_word_embeddings").is_some_and(|it| it == false);
    if moved_apart {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    if moved_apart || labels.is_some() {
        let text = serde_json::to_string_pretty(&config).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(output.join("config.json"), text.as_bytes())?;
    }
    Ok(())
}

fn task_of<'a>(request: &MergeRequest, registry: &'a Registry) -> Result<KnownTask<'a>> {
    if let Some(name) = &request.task {
        return registry.tasks.get(name);
    }
    let config = request.adapters.first().map(|it| read_config(&it.folder)).transpose()?;
    match config.as_ref().and_then(|it| it.get("task_type")).and_then(Value::as_str) {
        Some(task_type) => registry.tasks.of_type(task_type),
        None => registry.tasks.get("causal-lm"),
    }
}
