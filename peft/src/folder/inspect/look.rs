//! Looking into an adapter folder.

use std::path::Path;

use peft_core::{AdapterFolder, Result};
use peft_models::common::config::RawConfig;

use super::facts::Facts;
use super::fit::{fit, is_tied};
use super::inspection::Inspection;
use crate::run::registry::Registry;

/// Looks into an adapter folder of any type, known to this build or not. Nothing is computed and no base weight is read.
///
/// # Errors
/// If the folder or the base's `config.json` cannot be read. An adapter that does not fit its base is no error.
pub fn inspect(folder: &Path, base: Option<&Path>, registry: &Registry) -> Result<Inspection> {
    let opened = AdapterFolder::open(folder)?;
    let base_config = base.map(RawConfig::read).transpose()?;
    let mut facts = Facts::read(&opened)?;
    facts.base_type = base_config.as_ref().and_then(|it| it.model_type().ok().map(str::to_owned));
    facts.base_is_tied = base_config.as_ref().map(is_tied);
    let fit = base.zip(base_config).map(|(base, raw)| fit(&opened, base, raw, registry));
    facts.not_in_reference = fit.as_ref().map(|it| it.not_in_reference.clone()).unwrap_or_default();
    let consumers = vec![
        facts.peft(),
        facts.vllm(),
        facts.llama_cpp(),
        facts.lorax(),
        facts.mistral_rs(),
        facts.ollama(),
        facts.own_form("mlx-lm", "mlx"),
        facts.own_form("diffusers", "diffusers"),
    ];
    let warnings = facts.warnings(&opened, &registry.methods);
    let peft_type = facts.peft_type.clone();
    Ok(Inspection {
        path: folder.to_path_buf(),
        known: registry.methods.names().any(|it| it == peft_type),
        peft_type,
        task_type: facts.text("task_type"),
        base_model_name_or_path: facts.text("base_model_name_or_path"),
        rank: facts.rank,
        ranks: facts.ranks,
        alpha: facts.alpha,
        scale: facts.rank.zip(facts.alpha).filter(|(rank, _)| *rank > 0).map(|(rank, alpha)| {
            let rank = rank as f64;
            alpha / if facts.flags.use_rslora { rank.sqrt() } else { rank }
        }),
        flags: facts.flags,
        tensors: facts.keys.len(),
        parameters: facts.parameters,
        bytes: facts.bytes,
        dtypes: facts.dtypes,
        layers: facts.layers,
        labels: opened.labels.map(|it| it.names).unwrap_or_default(),
        whole: facts.whole,
        zero: facts.zero,
        not_finite: facts.not_finite,
        missing_partners: facts.missing_partners,
        warnings,
        consumers,
        fit,
    })
}
