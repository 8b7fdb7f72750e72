//! A base model with the adapters of some folders on it, whatever their task.

use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, PeftModel, Result, read_config};
use serde_json::Value;

use crate::load::adapters::{AdapterSource, head_of, is_same_folder};
use crate::load::any_model::AnyModel;
use crate::run::registry::{KnownTask, Registry};

/// Loads the base in the folder `base` as the task of the first adapter wants it, and puts all adapters on it by their
/// names, all active.
///
/// A folder without `task_type` goes on a causal language model if it fits one, else on the bare model, and else on the model
/// that `config.json` names.
///
/// # Errors
/// If something cannot be read, or an adapter does not fit.
pub fn adapted(
    base: &Path,
    adapters: &[(String, PathBuf)],
    registry: &Registry,
    place: impl Into<Placement>,
) -> Result<PeftModel<AnyModel>> {
    let place = &place.into();
    let configs = adapters.iter().map(|(_, folder)| read_config(folder)).collect::<Result<Vec<_>>>()?;
    let sources: Vec<AdapterSource> = adapters.iter().map(|(_, folder)| AdapterSource::new(folder)).collect();
    let head = head_of(&sources);
    let on = |task: KnownTask<'_>| {
        let mut model = PeftModel::new(task.load(&registry.architectures, base, place, &head)?);
        for (name, folder) in adapters {
            model.load_adapter(folder, name, &registry.methods)?;
        }
        Ok(model)
    };
    let task_type = configs.first().and_then(|it| it.get("task_type")).and_then(Value::as_str);
    let mut model = match task_type {
        Some(task_type) => on(registry.tasks.of_type_on(task_type, base)?)?,
        None => on(registry.tasks.get("causal-lm")?)
            .or_else(|error| on(registry.tasks.get("feature-extraction")?).map_err(|_| error))
            .or_else(|error| on(registry.tasks.of_class(base)?).map_err(|_| error))?,
    };
    let named = configs.iter().find_map(|it| it.get("base_model_name_or_path")?.as_str());
    model.set_base_name(named.map_or_else(|| base.display().to_string(), str::to_owned));
    if let Some(task_type) = task_type {
        model.set_task_type(task_type);
    }
    Ok(model)
}

/// Refuses to write over what is read.
///
/// # Errors
/// If both are the same folder.
pub fn refuse_source(source: &Path, output: &Path) -> Result<()> {
    match is_same_folder(source, output) {
        true => {
            Err(PeftError::config("output", format!("is {}, which is read: give another folder", source.display())))
        }
        false => Ok(()),
    }
}

/// The error of numbers that are none, with the folders that they come from.
pub(crate) fn made_of(error: PeftError, from: &[PathBuf]) -> PeftError {
    match error {
        PeftError::NotFinite(reason) if !from.is_empty() => {
            let names: Vec<String> = from.iter().map(|it| it.display().to_string()).collect();
            PeftError::NotFinite(format!("{}: {reason}", names.join(", ")))
        }
        other => other,
    }
}
