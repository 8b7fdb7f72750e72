//! A folder of PEFT that every program reads that reads any: linear layers, one rank, a whole alpha, no patterns, no
//! rsLoRA, every layer that the targets name.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::TensorData;
use peft_core::files::checkpoint::Stored;
use peft_core::model::state::KEY_PREFIX;
use peft_core::{
    CONFIG_FILE, ModelSpec, Names, ParamKind, PeftConfig, PeftError, REFERENCE_VERSION, Result, WEIGHTS_FILE,
    is_suffix, write_folder_in,
};
use peft_lora::LoraConfig;
use serde_json::Value;

use super::form::Exported;
use super::pairs::{Allowed, Pair, Pairs};
use crate::folder::inspect::spec_of;
use crate::run::registry::Registry;

/// The rank that vLLM takes without a switch.
const SMALL_RANK: usize = 16;

pub(super) fn write(mut found: Pairs, output: &Path, base: Option<&Path>, registry: &Registry) -> Result<Exported> {
    // Adapters of models that read no text name no task, and their base tells.
    if let (Some(base), None) = (base, found.config.task_type.as_ref())
        && let Some(task) = registry.tasks.of_class(base).ok().filter(|it| !it.reads_text())
    {
        let reason = "its readers run language models: keep the folder of PEFT, or merge the adapter into the base";
        return Err(PeftError::unsupported(format!("an adapter for {} in the portable form", task.name()), reason));
    }
    found.refuse("the portable form", Allowed::default())?;
    let saves_head =
        found.config.task_type.as_deref().is_some_and(|it| ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"].contains(&it));
    if saves_head {
        let task = found.config.task_type.as_deref().unwrap_or_default();
        let reason = "its head is trained whole, which is no LoRA: merge the adapter into the base";
        return Err(PeftError::unsupported(format!("task_type {task} in the portable form"), reason));
    }
    let spec = base.map(|base| spec_of(base, &found.json, registry)).transpose()?;
    let named = found.json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    let base_name = named.or_else(|| base.map(|it| it.display().to_string()));
    let Some(base_name) = base_name else {
        let reason = "is not set, and readers look for it: name the base model (--model)";
        return Err(PeftError::config("base_model_name_or_path", reason));
    };

    let mut notes = Vec::new();
    let filled = fill_up(&mut found.pairs, spec.as_ref());
    if filled > 0 {
        notes.push(format!("{filled} layers that had no factors have zeros now: readers want a target in every layer"));
    }
    let rank = found.largest_rank();
    if rank > SMALL_RANK {
        notes.push(format!("vLLM needs --max-lora-rank {} for rank {rank}", rank.next_power_of_two()));
    }
    let scale = found.pairs[0].scale;
    let alpha = scale * rank as f64;
    let is_common = found.pairs.iter().all(|it| it.scale == scale) && is_whole(alpha);
    let alpha = if is_common { alpha.round() } else { rank as f64 };
    let mut tensors = Vec::new();
    for pair in &found.pairs {
        let (a, b) = pair.padded(rank, if is_common { 1.0 } else { pair.scale });
        let key = |name: &str| format!("{KEY_PREFIX}{}.{name}.weight", pair.module);
        tensors.push(Stored { key: key("lora_A"), data: TensorData::new(a, pair.shape_a(rank)) });
        tensors.push(Stored { key: key("lora_B"), data: TensorData::new(b, pair.shape_b(rank)) });
    }
    if spec.is_none() {
        notes.push("without the base model (--model) nobody knows which layers the target names mean besides".into());
    }
    let config = LoraConfig {
        r: rank,
        lora_alpha: alpha,
        lora_dropout: found.config.lora_dropout,
        target_modules: Some(Names::List(targets(&found.pairs, spec.as_ref()))),
        task_type: found.config.task_type.clone(),
        fan_in_fan_out: found.config.fan_in_fan_out,
        ..LoraConfig::default()
    };
    let mut json = config.to_json()?;
    for field in ["revision", "auto_mapping"] {
        json.insert(field.into(), found.json.get(field).cloned().unwrap_or(Value::Null));
    }
    json.insert("peft_type".into(), peft_lora::PEFT_TYPE.into());
    json.insert("peft_version".into(), REFERENCE_VERSION.into());
    json.insert("inference_mode".into(), true.into());
    json.insert("base_model_name_or_path".into(), base_name.into());
    write_folder_in(output, &json, tensors, found.float)?;
    Ok(Exported {
        files: vec![output.join(WEIGHTS_FILE), output.join(CONFIG_FILE)],
        layers: found.pairs.len(),
        rank,
        converted: Vec::new(),
        notes,
    })
}

/// Some readers take `lora_alpha` as an unsigned integer.
fn is_whole(alpha: f64) -> bool {
    (alpha - alpha.round()).abs() < 1e-9 * alpha.abs() && alpha > 0.0 && alpha <= f64::from(u32::MAX)
}

/// A path cut at the number of its layer: `model.layers.`, 3, `.self_attn.q_proj`.
fn at_number(module: &str) -> Option<(&str, usize, &str)> {
    let mut at = 0;
    for segment in module.split('.') {
        if let Ok(number) = segment.parse() {
            return Some((&module[..at], number, &module[at + segment.len()..]));
        }
        at += segment.len() + 1;
    }
    None
}

/// Adds pairs of zeros for layers that lack a kind of pair that others have, and says how many.
fn fill_up(pairs: &mut Vec<Pair>, spec: Option<&ModelSpec>) -> usize {
    let here: BTreeSet<String> = pairs.iter().map(|it| it.module.clone()).collect();
    let count = here.iter().filter_map(|it| at_number(it)).map(|it| it.1 + 1).max().unwrap_or(0);
    let mut added: Vec<Pair> = Vec::new();
    for pair in pairs.iter() {
        let Some((head, _, tail)) = at_number(&pair.module) else { continue };
        let of_base = |spec: &ModelSpec| {
            let numbers = spec.layers().filter_map(|it| at_number(&it.module));
            numbers.filter(|it| it.0 == head && it.2 == tail).map(|it| it.1).collect::<Vec<_>>()
        };
        for number in spec.map_or_else(|| (0..count).collect(), of_base) {
            let module = format!("{head}{number}{tail}");
            if !here.contains(&module) && !added.iter().any(|it| it.module == module) {
                added.push(pair.nothing(module));
            }
        }
    }
    let filled = added.len();
    pairs.extend(added);
    filled
}

/// Names that mean these layers and no other: last segments where they do, else as much of the path as it takes.
fn targets(pairs: &[Pair], spec: Option<&ModelSpec>) -> Vec<String> {
    let ours: BTreeSet<&str> = pairs.iter().map(|it| it.module.as_str()).collect();
    // Without the base a last segment is taken to be clear if all layers that have it are of one kind.
    let is_clear = |name: &str| match spec {
        Some(spec) => {
            let layers = spec.layers().filter(|it| !matches!(it.kind, ParamKind::Other | ParamKind::Buffer));
            layers.map(|it| it.module.as_str()).filter(|it| is_suffix(it, name)).all(|it| ours.contains(it))
        }
        None => {
            let kinds = ours.iter().filter(|it| is_suffix(it, name)).map(|it| at_number(it).map_or(*it, |cut| cut.2));
            kinds.collect::<BTreeSet<_>>().len() == 1
        }
    };
    let shortest = |module: &str| {
        let starts = module.match_indices('.').map(|(at, _)| at + 1);
        let mut tails: Vec<&str> = std::iter::once(0).chain(starts).map(|at| &module[at..]).collect();
        tails.reverse();
        tails.into_iter().find(|it| is_clear(it)).unwrap_or(module).to_owned()
    };
    let names: BTreeSet<String> = ours.iter().map(|it| shortest(it)).collect();
    names.into_iter().collect()
}
