//! Whether an adapter fits a base of which only `config.json` is read.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::model::state::KEY_PREFIX;
use peft_core::{Adaptable, AdapterFolder, LoadReport, ModelSpec, PeftError, PeftModel, Result};
use peft_models::auto::{
    AutoCausalLm, AutoFeatureExtractor, AutoMaskedLm, AutoQuestionAnswerer, AutoSeq2SeqLm, AutoSequenceClassifier,
    AutoTokenClassifier,
};
use peft_models::common::config::RawConfig;
use serde_json::{Map, Value, json};

use super::Fit;
use crate::methods;

pub(super) fn is_tied(raw: &RawConfig) -> bool {
    // Architectures differ in what an absent field means; of those with a field that is often left out, GPT-2 is tied.
    let default = raw.model_type().is_ok_and(|it| it == "gpt2");
    raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(default)
}

/// What a base consists of, as the task of an adapter sees it. Only `config.json` is read.
#[cfg(feature = "lora")]
pub(crate) fn sites_of(base: &Path, adapter: &Map<String, Value>) -> Result<ModelSpec> {
    let (raw, device) = (RawConfig::read(base)?, Device::default());
    let features = || Ok(AutoFeatureExtractor::from_config(&raw, &device)?.spec());
    let causal = || Ok(AutoCausalLm::from_config(&raw, &device)?.spec());
    match adapter.get("task_type").and_then(Value::as_str) {
        Some("SEQ_2_SEQ_LM") => Ok(AutoSeq2SeqLm::from_config(&raw, &device)?.spec()),
        Some("FEATURE_EXTRACTION") => features(),
        Some(_) => causal(),
        None => causal().or_else(|_: PeftError| features()),
    }
}

/// Compares an adapter with a base of which only `config.json` is read.
pub(super) fn fit(folder: &AdapterFolder, base: &Path, mut raw: RawConfig) -> Fit {
    let heads = ["score.weight", "classifier.weight", "classifier.out_proj.weight"];
    // The head beside a prompt has the shorter prefix.
    let keys = heads.iter().flat_map(|it| [KEY_PREFIX, "base_model."].map(|prefix| format!("{prefix}{it}")));
    let labels = keys.into_iter().find_map(|key| folder.tensors.shape(&key).map(<[usize]>::to_vec));
    if let Some(labels) = labels.and_then(|shape| shape.first().copied()) {
        raw.json.insert("num_labels".into(), json!(labels));
    }
    if crate::forward::names_head(&folder.config) {
        // Such an adapter is applied to a model whose head is its own.
        raw.json.insert("tie_word_embeddings".into(), json!(false));
    }
    let device = crate::device::devices().last().and_then(|it| crate::device::device(it).ok()).unwrap_or_default();
    let causal = || check(AutoCausalLm::from_config(&raw, &device), folder, &device);
    let classifier = || check(AutoSequenceClassifier::from_config(&raw, &device), folder, &device);
    let features = || check(AutoFeatureExtractor::from_config(&raw, &device), folder, &device);
    let masked = || check(AutoMaskedLm::from_config(&raw, &device), folder, &device);
    let told = |result: Result<()>| match result {
        Ok(()) => (Some(true), String::new()),
        Err(error @ PeftError::Unsupported { .. }) => (None, error.to_string()),
        Err(error) => (Some(false), error.to_string()),
    };
    let (fits, report) = match folder.config.get("task_type").and_then(Value::as_str) {
        Some("CAUSAL_LM") => told(causal()),
        Some("SEQ_CLS") => told(classifier()),
        Some("FEATURE_EXTRACTION") => told(features()),
        Some("TOKEN_CLS") => told(check(AutoTokenClassifier::from_config(&raw, &device), folder, &device)),
        Some("QUESTION_ANS") => told(check(AutoQuestionAnswerer::from_config(&raw, &device), folder, &device)),
        Some("SEQ_2_SEQ_LM") => told(check(AutoSeq2SeqLm::from_config(&raw, &device), folder, &device)),
        Some(other) => (None, format!("models for task_type {other} are not there in this version")),
        None => {
            // The first answer is as good as any if all are bad.
            let first = told(causal());
            let others =
                || [told(masked()), told(classifier()), told(features())].into_iter().find(|it| it.0 == Some(true));
            if first.0 == Some(true) { first } else { others().unwrap_or(first) }
        }
    };
    Fit { base: base.to_path_buf(), fits, report }
}

fn check<M: Module + Adaptable>(model: Result<M>, folder: &AdapterFolder, _device: &Device) -> Result<()> {
    let model = model?;
    let config = methods().parse(folder.config.clone())?;
    let mut peft = PeftModel::new(model);
    // Those of a resized vocabulary; and here no table has the numbers of its checkpoint.
    peft.adopt_tables(folder)?;
    let spec = peft.spec();
    let Some(wanted) = config.plan(spec)?.tensors() else {
        return peft.load_adapter(&folder.path, peft_core::DEFAULT_ADAPTER, &methods());
    };
    let mut report = compare(wanted, folder);
    report.unexpected.retain(|key| !folder.is_copy(key, spec));
    if report.is_clean() {
        return Ok(());
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
