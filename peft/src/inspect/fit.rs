//! Whether an adapter fits a base of which only `config.json` is read.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::state::KEY_PREFIX;
use peft_core::{AdapterFolder, Describe, LoadReport, PeftError, PeftModel, Plan, Result, SiteKind, Sites, is_off};
use peft_models::auto::{
    AutoCausalLm, AutoFeatureExtractor, AutoQuestionAnswerer, AutoSeq2SeqLm, AutoSequenceClassifier,
    AutoTokenClassifier,
};
use peft_models::config::RawConfig;
use serde_json::{Value, json};

use super::Fit;
use crate::methods;

pub(super) fn is_tied(raw: &RawConfig) -> bool {
    // Architectures differ in what an absent field means; of those with a field that is often left out, GPT-2 is tied.
    let default = raw.model_type().is_ok_and(|it| it == "gpt2");
    raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(default)
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
            let others = || [told(classifier()), told(features())].into_iter().find(|it| it.0 == Some(true));
            if first.0 == Some(true) { first } else { others().unwrap_or(first) }
        }
    };
    Fit { base: base.to_path_buf(), fits, report }
}

fn check<M: Module + Describe>(model: Result<M>, folder: &AdapterFolder, device: &Device) -> Result<()> {
    let model = model?;
    let config = methods().parse(folder.config.clone())?;
    let sites = model.describe();
    if config.peft_type() != "LORA" {
        return PeftModel::with_sites(model, sites, device).load_adapter(
            &folder.path,
            peft_core::DEFAULT_ADAPTER,
            &methods(),
        );
    }
    let plan = config.plan(&sites)?;
    let mut report = compare(&plan, folder);
    report.unexpected.retain(|key| !is_copy(key, &sites, folder));
    if report.is_clean() {
        return Ok(());
    }
    Err(PeftError::DoesNotFit { what: format!("adapter {}", folder.path.display()), report })
}

/// Whether a tensor is one that the reference writes beside the adapter's own: loading passes over it.
fn is_copy(key: &str, sites: &Sites, folder: &AdapterFolder) -> bool {
    let Some(path) = key.strip_prefix(KEY_PREFIX) else { return false };
    let is_wrapped = path.contains(".modules_to_save.") || path.contains(".original_module.");
    let is_head = sites.heads.iter().any(|it| path == format!("{it}.weight"));
    let path = path.replace(".base_layer.", ".");
    match sites.get(&path) {
        Some(site) => folder.tensors.shape(key) == Some(&site.shape_on_disk()),
        None => is_wrapped || is_head,
    }
}

/// Compares the tensors that a LoRA plan leads to with those of a folder, without building any.
fn compare(plan: &Plan, folder: &AdapterFolder) -> LoadReport {
    let on = |field: &str| folder.config.get(field).is_some_and(|it| !is_off(it));
    let (dora, bias) = (on("use_dora"), on("lora_bias"));
    let mut wanted: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for row in &plan.rows {
        let (site, module) = (&row.site, format!("{KEY_PREFIX}{}", row.site.module));
        if row.label.ends_with(" rows") {
            let width = site.shape[1];
            let key = format!("{module}.token_adapter.trainable_tokens_delta");
            wanted.insert(key, vec![row.parameters / width, width]);
            continue;
        }
        if !row.label.starts_with("r=") {
            let wrapped = format!("{module}.base_layer.{}", site.param);
            let key =
                if folder.tensors.shape(&wrapped).is_some() { wrapped } else { format!("{KEY_PREFIX}{}", site.path()) };
            wanted.insert(key, site.shape_on_disk());
            continue;
        }
        let (d_in, d_out) = site.features();
        let is_table = site.kind == SiteKind::Embedding;
        let extra = if dora || (bias && !is_table) { d_out } else { 0 };
        let rank = (row.parameters - extra) / (d_in + d_out);
        let (mut a, mut b, mut magnitude) = (vec![rank, d_in], vec![d_out, rank], vec![d_out]);
        if site.kind == SiteKind::Conv {
            a = [&[rank], &site.shape[1..]].concat();
            let ones = vec![1; site.shape.len() - 2];
            b = [&[d_out, rank], &ones[..]].concat();
            magnitude = [&[1, d_out], &ones[..]].concat();
        }
        let (name_a, name_b) =
            if is_table { ("lora_embedding_A", "lora_embedding_B") } else { ("lora_A.weight", "lora_B.weight") };
        wanted.insert(format!("{module}.{name_a}"), a);
        wanted.insert(format!("{module}.{name_b}"), b);
        if dora {
            wanted.insert(format!("{module}.lora_magnitude_vector"), magnitude);
        }
        if bias && !is_table {
            wanted.insert(format!("{module}.lora_B.bias"), vec![d_out]);
        }
    }
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
