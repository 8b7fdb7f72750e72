//! What the outputs of a classifier mean: said by the adapter, by the base, or learned from the data.

use std::path::Path;

use peft_core::{LABELS_FILE, Labels, PeftError, Result};
use peft_models::common::config::LabelConfig;
use peft_tasks::data::labels::{LabelKind, LabelSet};

use crate::load::adapters::AdapterSource;

/// The labels that adapters bring. Those that bring none do not count.
///
/// # Errors
/// If two of them name their outputs differently.
pub fn of_adapters(adapters: &[AdapterSource]) -> Result<Option<Labels>> {
    let mut found: Option<(&Path, Labels)> = None;
    for AdapterSource { folder, .. } in adapters {
        let Some(labels) = Labels::read(folder)? else { continue };
        match &found {
            Some((first, known)) if *known != labels => {
                let reason = format!("its labels differ from those of {}", first.display());
                return Err(PeftError::bad_file(folder.join(LABELS_FILE), reason));
            }
            Some(_) => {}
            None => found = Some((folder, labels)),
        }
    }
    Ok(found.map(|(_, labels)| labels))
}

/// The labels that data is read with: those that the adapters bring, else those of the base if its head has as many
/// outputs, else what `learn` finds in the data.
///
/// # Errors
/// If there are not as many as the head has outputs.
pub fn for_head(
    adapters: &[AdapterSource],
    base: &Path,
    head: &LabelConfig,
    learn: impl FnOnce() -> Result<LabelSet>,
) -> Result<LabelSet> {
    let outputs = head.num_labels();
    let set = match of_adapters(adapters)? {
        Some(labels) => {
            let mut files = adapters.iter().map(|it| it.folder.join(LABELS_FILE));
            let file = files.find(|it| it.is_file()).unwrap_or_else(|| LABELS_FILE.into());
            LabelSet::from_labels(&labels).map_err(|it| it.in_file(&file))?.said_in(file)
        }
        None => match head.labels() {
            Some(labels) => {
                let file = base.join("config.json");
                let kind = kind(labels.problem_type.as_deref()).map_err(|it| it.in_file(&file))?;
                LabelSet::new(kind, labels.names).said_in(file)
            }
            None => learn()?,
        },
    };
    if set.outputs() == outputs {
        return Ok(set);
    }
    let named = set.outputs();
    Err(match &set.source {
        Some(file) => {
            PeftError::bad_file(file, format!("it names {named} classes, but the head has {outputs} outputs"))
        }
        None => {
            let reason = format!("the data names {named} classes, but the head has {outputs} outputs");
            PeftError::Invalid(format!("{reason}; an adapter says its labels in `{LABELS_FILE}`"))
        }
    })
}

fn kind(problem_type: Option<&str>) -> Result<LabelKind> {
    problem_type.map_or(Ok(LabelKind::Single), str::parse)
}
