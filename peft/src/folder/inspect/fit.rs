//! Whether an adapter fits a base of which only `config.json` is read.

use std::collections::BTreeMap;
use std::path::Path;

#[cfg(feature = "lora")]
use peft_core::ModelSpec;
use peft_core::{
    Adaptable, AdapterFolder, DEFAULT_ADAPTER, LoadReport, MethodRegistry, PeftError, PeftModel, Result, is_suffix,
};
use peft_models::common::config::RawConfig;
use serde_json::{Map, Value, json};

use super::inspection::Fit;
use crate::device::cpu_device;
use crate::load::adapters::num_labels;
use crate::load::any_model::AnyModel;
use crate::run::registry::{KnownTask, Registry};

pub(super) fn is_tied(raw: &RawConfig) -> bool {
    // Architectures differ in what an absent field means; of those with a field that is often left out, GPT-2 is tied.
    let default = raw.model_type().is_ok_and(|it| it == "gpt2");
    raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(default)
}

/// What a base consists of, as the task of an adapter sees it. Only `config.json` is read.
#[cfg(feature = "lora")]
pub(crate) fn spec_of(base: &Path, adapter: &Map<String, Value>, registry: &Registry) -> Result<ModelSpec> {
    let (raw, device) = (RawConfig::read(base)?, cpu_device()?);
    let spec = |task: KnownTask<'_>| Ok(task.unallocated(&registry.architectures, &raw, &device)?.spec());
    let causal = || spec(registry.tasks.get("causal-lm")?);
    match adapter.get("task_type").and_then(Value::as_str) {
        // Layers of a classifier are those of the model below its head, which is trained whole.
        Some("SEQ_CLS" | "TOKEN_CLS" | "QUESTION_ANS") => causal(),
        Some(task_type) => spec(registry.tasks.of_type_on(task_type, base)?),
        None => causal()
            .or_else(|_: PeftError| spec(registry.tasks.get("feature-extraction")?))
            .or_else(|_: PeftError| spec(registry.tasks.of_class(base)?)),
    }
}

/// Compares an adapter with a base of which only `config.json` is read.
pub(super) fn fit(folder: &AdapterFolder, base: &Path, mut raw: RawConfig, registry: &Registry) -> Fit {
    if let Some(labels) = num_labels(folder) {
        raw.json.insert("num_labels".into(), json!(labels));
    }
    if names_head(&folder.config) {
        // Such an adapter is applied to a model whose head is its own.
        raw.json.insert("tie_word_embeddings".into(), json!(false));
    }
    let device = cpu_device().unwrap_or_default();
    let told = |task: KnownTask<'_>| {
        let model = task.unallocated(&registry.architectures, &raw, &device);
        match model.and_then(|model| check(model, folder, &registry.methods)) {
            Ok(not_in_reference) => (Some(true), String::new(), not_in_reference),
            Err(error @ PeftError::Unsupported { .. }) => (None, error.to_string(), Vec::new()),
            Err(error) => (Some(false), error.to_string(), Vec::new()),
        }
    };
    let (fits, report, not_in_reference) = match folder.config.get("task_type").and_then(Value::as_str) {
        Some(task_type) => match registry.tasks.of_type_on(task_type, base) {
            Ok(task) => told(task),
            Err(error) => (None, error.to_string(), Vec::new()),
        },
        None => {
            // The first answer is as good as any if all are bad.
            let mut answers = registry.tasks.iter().map(told);
            let first = answers.next().unwrap_or((None, "no task is registered".into(), Vec::new()));
            if first.0 == Some(true) { first } else { answers.find(|it| it.0 == Some(true)).unwrap_or(first) }
        }
    };
    Fit { base: base.to_path_buf(), fits, report, not_in_reference }
}

/// Whether a configuration adapts or saves the language-model head by name, as one of its own.
fn names_head(config: &Map<String, Value>) -> bool {
    if config.get("ensure_weight_tying") == Some(&true.into()) {
        return false;
    }
    ["target_modules", "modules_to_save"].iter().any(|field| {
        let names = config.get(*field).and_then(Value::as_array);
        names
            .into_iter()
            .flatten()
            .any(|name| name.as_str().is_some_and(|it| ["lm_head", "proj_out"].iter().any(|head| is_suffix(it, head))))
    })
}

/// Whether the adapter goes onto the model, and why the reference has no such adapter.
fn check(model: AnyModel, folder: &AdapterFolder, methods: &MethodRegistry) -> Result<Vec<String>> {
    let folder = &AdapterFolder::open(&folder.path)?.in_names_of(&model.spec())?;
    let config = methods.parse(folder.config.clone())?;
    let mut peft = PeftModel::new(model).with_replicated_layers(config.as_ref())?;
    // Those of a resized vocabulary; and here no table has the numbers of its checkpoint.
    peft.adopt_tables(folder)?;
    let spec = peft.spec();
    let plan = config.plan(spec)?;
    let Some(wanted) = plan.tensors() else {
        peft.load_adapter(&folder.path, DEFAULT_ADAPTER, methods)?;
        return Ok(plan.not_in_reference);
    };
    let mut report = compare(wanted, folder);
    report.unexpected.retain(|key| !folder.is_copy(key, spec));
    if report.is_clean() {
        return Ok(plan.not_in_reference);
    }
    Err(PeftError::DoesNotFit { what: format!("adapter {}", folder.path.display()), report })
}

/// Compares the tensors that a plan leads to with those of a folder, without building any.
fn compare(mut wanted: BTreeMap<String, Vec<usize>>, folder: &AdapterFolder) -> LoadReport {
    let mut report = LoadReport::default();
    for key in folder.tensors.keys() {
        let shape = folder.tensors.shape(&key).unwrap_or(&[]);
        match wanted.remove(&key) {
            None => report.unexpected.push(key),
            Some(model) if model != shape => report.misshapen.push((key, shape.to_vec(), model)),
            Some(_) => {}
        }
    }
    report.missing = wanted.into_keys().collect();
    report
}
