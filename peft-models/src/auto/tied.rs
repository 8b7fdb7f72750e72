//! Heads that are the embedding matrix read the other way, and where a checkpoint has it.

use peft_core::files::checkpoint::{BaseDtype, Checkpoint};
use peft_core::{Adaptable, ModelSpec, PromptShape, Result};

/// Keys of language-model heads.
pub(super) const HEADS: [&str; 3] = ["lm_head.weight", "embed_out.weight", "proj_out.weight"];

/// Keys of a table that an encoder and a decoder share.
pub(super) const ENDS_OF_TABLES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

fn key_with_ending<'a>(checkpoint: &'a Checkpoint, ending: &str) -> Option<&'a str> {
    checkpoint.keys().find(|key| *key == ending || key.ends_with(&format!(".{ending}")))
}

/// An embedding matrix that is read in several places is stored once, under the name of any of them.
pub(super) fn embedding_is_also_under(checkpoint: &mut Checkpoint, model: &impl Adaptable, endings: &[&str]) {
    let spec = model.spec();
    let table = spec.prompts.as_ref().map(|it| it.table.clone()).or_else(|| spec.tokens.clone());
    let Some(table) = table else { return };
    if let Some(key) = endings.iter().find_map(|it| key_with_ending(checkpoint, it)).map(str::to_owned) {
        checkpoint.also_under(format!("{table}.weight"), key);
    }
}

/// The same for a model that takes no prompts: its first table.
pub(super) fn table_is_also_under(checkpoint: &mut Checkpoint, model: &impl Adaptable, endings: &[&str]) {
    let spec = model.spec();
    let Some(table) = spec.token_table().map(|it| it.path()).filter(|it| !checkpoint.contains(it)) else { return };
    if let Some(key) = endings.iter().find_map(|it| key_with_ending(checkpoint, it)).map(str::to_owned) {
        checkpoint.also_under(table, key);
    }
}

/// The bias of a masked language model's head is one tensor of two names, `bias` and `decoder.bias`: files hold either, or
/// both.
pub(super) fn bias_is_also_beside(checkpoint: &mut Checkpoint, model: &impl Adaptable) {
    for path in model.spec().iter().filter(|it| it.name == "bias").map(|it| it.path()) {
        let other = match path.strip_suffix("decoder.bias") {
            Some(module) if !module.is_empty() => format!("{module}bias"),
            _ => path.strip_suffix("bias").map(|module| format!("{module}decoder.bias")).unwrap_or_default(),
        };
        if !checkpoint.contains(&path) && checkpoint.contains(&other) {
            checkpoint.also_under(path, other);
        }
    }
}

/// A tensor that a checkpoint holds once more under another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The other key.
    pub key: String,
    /// Path of the parameter.
    pub of: String,
}

/// What a file must hold twice where its head is not the embedding matrix: transformers shares these tensors only while
/// `tie_word_embeddings` holds, and else starts those that are not there at random.
pub fn copies_in_file(model_type: &str, spec: &ModelSpec, is_tied: bool) -> Vec<Copy> {
    if is_tied {
        return Vec::new();
    }
    let mut copies = Vec::new();
    if matches!(model_type, "bart" | "mbart")
        && let Some(table) = spec.iter().find(|it| it.module.ends_with("shared"))
    {
        let stack = table.module.strip_suffix("shared").unwrap_or_default();
        let key = |part: &str| format!("{stack}{part}.embed_tokens.weight");
        copies.extend(["encoder", "decoder"].map(|part| Copy { key: key(part), of: table.path() }));
    }
    copies
}

/// Whether a checkpoint holds a head that is not its embedding matrix.
///
/// The reference then unties the two whatever `config.json` says.
///
/// `prompts` says what the model calls its embedding matrix, where that is not one of the usual names.
pub(super) fn has_another_head(checkpoint: &Checkpoint, prompts: Option<&PromptShape>) -> Result<bool> {
    // Codes are a matrix of their own.
    let in_codes = |ending: &&str| {
        ending.strip_suffix("weight").is_some_and(|it| key_with_ending(checkpoint, &format!("{it}qweight")).is_some())
    };
    if HEADS.iter().any(in_codes) {
        return Ok(true);
    }
    let find = |ending: &str| {
        let key = key_with_ending(checkpoint, ending)?;
        Some((checkpoint.file(key)?, key))
    };
    let own = prompts.map(|it| it.table.rsplit('.').next().unwrap_or(&it.table));
    let table = ["wte", "shared", "embed_tokens", "word_embeddings", "embed_in", "tok_embeddings"]
        .into_iter()
        .chain(own)
        .find_map(|it| find(&format!("{it}.weight")));
    let head = HEADS.into_iter().chain(["decoder.weight"]).find_map(find);
    let (Some((head_file, head)), Some((table_file, table))) = (head, table) else {
        return Ok(false);
    };
    if head_file.shape(head) != table_file.shape(table) {
        return Ok(true);
    }
    if head_file.dtype(head) == table_file.dtype(table) {
        return Ok(head_file.numbers(head, BaseDtype::Auto)? != table_file.numbers(table, BaseDtype::Auto)?);
    }
    Ok(head_file.floats(head)? != table_file.floats(table)?)
}
