//! What a checkpoint holds and a model does not read.

use peft_core::files::checkpoint::Checkpoint;
use peft_core::{Adaptable, LoadReport, ModelSpec, PeftError, Result};

use crate::common::config::RawConfig;

/// Fields that say how many layers there are. Those of one stack go before those of the whole model.
const LAYERS: [(&str, &[&str]); 3] = [
    ("decoder", &["decoder_layers", "num_decoder_layers"]),
    ("encoder", &["encoder_layers"]),
    ("", &["num_hidden_layers", "n_layer", "num_layers", "n_layers"]),
];

/// Refuses a configuration that leaves out a part of the stack that its checkpoint holds: fewer layers, or layers without
/// the biases that they have. The model would be another one.
///
/// What lies beside the stack is of no concern to it: heads for other tasks, towers for other inputs. It is logged, and so
/// are buffers that earlier releases of transformers wrote.
pub(super) fn check(
    report: &LoadReport,
    checkpoint: &Checkpoint,
    model: &impl Adaptable,
    prefix: &str,
    raw: &RawConfig,
) -> Result<()> {
    let spec = model.spec();
    let has_layers = LAYERS.iter().flat_map(|it| it.1).all(|it| raw.json.get(*it).is_none_or(|it| it != 0));
    let is_layer = |key: &str| key.split('.').any(|it| it.parse::<usize>().is_ok());
    let is_missed = |key: &&String| {
        (is_of_stack(key, &spec, prefix) || (!has_layers && is_layer(key))) && !is_harmless(key, checkpoint)
    };
    let (missed, beside): (Vec<&String>, Vec<&String>) = report.unexpected.iter().partition(is_missed);
    if !beside.is_empty() {
        let shown: Vec<&str> = beside.iter().take(3).map(|it| it.as_str()).collect();
        let more = if beside.len() > shown.len() { ", …" } else { "" };
        tracing::info!("{} tensors of the checkpoint are not used: {}{more}", beside.len(), shown.join(", "));
    }
    let Some(example) = missed.first() else { return Ok(()) };
    let others = match missed.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more tensors"),
    };
    let field = LAYERS.iter().filter(|it| example.contains(it.0)).flat_map(|it| it.1).find_map(|field| {
        let value = raw.json.get(*field).filter(|_| is_layer(example))?;
        Some(format!("`{field}` is {value}"))
    });
    let why = field.unwrap_or_else(|| "is it the configuration of this checkpoint?".to_owned());
    let reason = format!(
        "the checkpoint holds `{example}`{others} that this configuration does not ask for, so that another model would \
         be computed; {why}"
    );
    Err(PeftError::bad_file(raw.path(), reason))
}

/// Whether a key is of the stack, or of a layer that the model has: not of a module beside them.
fn is_of_stack(key: &str, spec: &ModelSpec, prefix: &str) -> bool {
    // Whether a module with more than `least` characters holds the path.
    let within = |path: &str, least: usize| {
        let modules: Vec<&str> =
            path.match_indices('.').map(|(at, _)| &path[..at]).filter(|it| it.len() >= least).collect();
        let parent = path.rsplit_once('.').map_or("", |it| it.0);
        !spec.is_head(parent) && spec.modules().any(|it| modules.contains(&it))
    };
    // Where a checkpoint lacks the prefix, heads for other tasks lack it too: only deeper modules tell.
    within(key, 1)
        || key.strip_prefix(prefix).is_some_and(|it| within(it, 1))
        || (!prefix.is_empty() && within(&format!("{prefix}{key}"), prefix.len()))
}

/// Whether a tensor is known to be of no use.
fn is_harmless(key: &str, checkpoint: &Checkpoint) -> bool {
    let rank = checkpoint.file(key).and_then(|it| it.shape(key)).map_or(0, <[usize]>::len);
    let ends = |names: &[&str]| names.iter().any(|it| key.ends_with(it));
    // Causal masks were buffers called `bias`; poolers and heads of language models are of other tasks; tied tables lie
    // under several names; what is named by a version came from fairseq.
    (ends(&["attn.bias", "attention.bias"]) && rank > 1)
        || ends(&[
            "masked_bias",
            "inv_freq",
            "cos_cached",
            "sin_cached",
            "position_ids",
            "token_type_ids",
            "embed_tokens.weight",
            "shared.weight",
            "num_batches_tracked",
            "relative_position_index",
            ".version",
            "embed_positions._float_tensor",
            "EncDecAttention.relative_attention_bias.weight",
        ])
        || ["pooler", "position_embeddings", "lm_head", "proj_out", "mask_predictions", "output_projection"]
            .iter()
            .any(|it| key.split('.').any(|part| part == *it))
}
