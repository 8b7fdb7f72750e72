//! The tokenizer and the chat template of a base model with adapters: an adapter may bring its own.

use std::path::Path;
use std::sync::Arc;

use peft_core::{AdapterFolder, CONFIG_FILE, ModelSpec, PeftError, Result};
use peft_tasks::data::chat::ChatTemplate;
use peft_tasks::data::text_data::TextData;
use peft_tasks::data::tokenizer::{TOKENIZER_FILE, Tokenizer};

use serde_json::{Map, Value};

use crate::load::adapters::AdapterSource;

/// The folder whose tokenizer counts: the first adapter's that has one, else the base's. Training with new tokens saves the
/// tokenizer with the adapter, as `Trainer` of transformers does.
pub fn tokenizer_folder<'a>(base: &'a Path, adapters: &'a [AdapterSource]) -> &'a Path {
    first(adapters, |folder| folder.join(TOKENIZER_FILE).is_file()).unwrap_or(base)
}

/// The folder whose chat template counts, by the same order.
pub fn chat_template_folder<'a>(base: &'a Path, adapters: &'a [AdapterSource]) -> &'a Path {
    first(adapters, ChatTemplate::is_in).unwrap_or(base)
}

fn first(adapters: &[AdapterSource], has: impl Fn(&Path) -> bool) -> Option<&Path> {
    adapters.iter().map(|it| it.folder.as_path()).find(|it| has(it))
}

/// The tokenizer of a base with adapters. Special tokens that its files do not name are those of the base's.
///
/// # Errors
/// If there is none, or a file does not parse.
pub fn load_tokenizer(base: &Path, adapters: &[AdapterSource]) -> Result<Tokenizer> {
    let folder = tokenizer_folder(base, adapters);
    for other in adapters.iter().map(|it| it.folder.as_path()).filter(|it| *it != folder) {
        let (ours, theirs) = (folder.join(TOKENIZER_FILE), other.join(TOKENIZER_FILE));
        if folder != base && theirs.is_file() && std::fs::read(&ours).ok() != std::fs::read(&theirs).ok() {
            tracing::warn!("{} and {} differ: the first is used", ours.display(), theirs.display());
        }
    }
    Tokenizer::load_beside(folder, base)
}

/// The chat template of a base with adapters, if there is one.
///
/// # Errors
/// If a file does not parse.
pub fn load_chat_template(
    base: &Path,
    adapters: &[AdapterSource],
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>> {
    ChatTemplate::load(chat_template_folder(base, adapters), tokenizer.special())
}

/// A data file that is split and worded as the base with its adapters wants it, for a model of this description.
///
/// # Errors
/// If the tokenizer or the chat template cannot be read.
pub fn with_text_files(
    data: TextData,
    tokenizer: &Arc<Tokenizer>,
    base: &Path,
    spec: &ModelSpec,
    adapters: &[AdapterSource],
) -> Result<TextData> {
    let template = load_chat_template(base, adapters, tokenizer)?;
    Ok(TextData {
        chat_template: template.map(Arc::new),
        positions: spec.max_positions(),
        ..data.tokenizer(tokenizer.clone())
    })
}

/// Has a method train the rows of new tokens: `trainable_token_indices` of LoRA, as PEFT's guide recommends, or `token_indices`
/// of trainable tokens. A head of its own gets rows of its own.
///
/// # Errors
/// If the method trains no single rows.
pub fn train_new_tokens(method: &mut Map<String, Value>, ids: &[u32], base: &ModelSpec, is_tied: bool) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    match method.get("peft_type").and_then(Value::as_str) {
        None | Some("LORA") if method.get("trainable_token_indices").is_none_or(Value::is_null) => {
            let rows = base.token_table().map(|it| it.shape[0]);
            let head = base.layers().find(|it| base.heads.contains(&it.module) && it.shape.first().copied() == rows);
            let tables = [base.token_table(), head.filter(|_| !is_tied)];
            let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
            let indices = tables.into_iter().flatten().map(|it| (last(&it.module), ids.into())).collect();
            method.insert("trainable_token_indices".into(), Value::Object(indices));
        }
        Some("TRAINABLE_TOKENS") if method.get("token_indices").and_then(Value::as_array).is_none_or(Vec::is_empty) => {
            method.insert("token_indices".into(), ids.into());
        }
        None | Some("LORA" | "TRAINABLE_TOKENS") => {
            return Err(PeftError::config("new_tokens", "does not go with rows that the method names itself"));
        }
        Some(other) => {
            let reason = format!("goes with LoRA and trainable tokens, whose rows are trained; the method is {other}");
            return Err(PeftError::config("new_tokens", reason));
        }
    }
    Ok(())
}

/// The tokenizer of a base with adapters, for a model of the base's description.
///
/// # Errors
/// As [`load_tokenizer`], [`rows_with`] and [`fitted`].
pub fn fitted_tokenizer(base: &Path, spec: &ModelSpec, adapters: &[AdapterSource]) -> Result<Tokenizer> {
    let [own, rows] = [rows_with(spec, &[])?, rows_with(spec, adapters)?];
    fitted(load_tokenizer(base, adapters)?, own, rows)
}

/// Rows of the embedding matrix of a base with adapters, which may bring a larger one.
///
/// # Errors
/// If an adapter's folder cannot be read.
pub fn rows_with(base: &ModelSpec, adapters: &[AdapterSource]) -> Result<Option<usize>> {
    let Some(table) = base.token_table() else { return Ok(None) };
    for adapter in adapters {
        let folder = AdapterFolder::open(&adapter.folder)?;
        let names = ["", ".base_layer", ".token_adapter.base_layer"].map(|it| format!("{}{it}.weight", table.module));
        let keys = folder.tensors.keys().into_iter();
        let brought =
            keys.filter(|key| names.iter().any(|name| key.strip_suffix(name).is_some_and(|it| it.ends_with('.'))));
        if let Some(rows) = brought.filter_map(|key| folder.tensors.shape(&key)?.first().copied()).next() {
            return Ok(Some(rows));
        }
    }
    Ok(Some(table.shape[0]))
}

/// The tokenizer for a model whose embedding matrix has `rows`, of which the base has `own`.
///
/// # Errors
/// If an adapter has brought a larger embedding matrix, and no tokenizer that knows the new tokens.
pub fn fitted(tokenizer: Tokenizer, own: Option<usize>, rows: Option<usize>) -> Result<Tokenizer> {
    let (Some(own), Some(rows)) = (own, rows) else { return Ok(tokenizer) };
    if rows > own && tokenizer.vocab_size() <= own {
        // The adapter's own knows all that it was trained with: the rest was added to make the number of rows even.
        if tokenizer.path().and_then(Path::parent).is_some_and(|it| it.join(CONFIG_FILE).is_file()) {
            let known = tokenizer.vocab_size();
            tracing::warn!(
                "the embedding matrix has {rows} rows for {known} tokens: the others are taken to be padding"
            );
            return Ok(tokenizer.within(rows));
        }
        let file = tokenizer.path().map_or(String::new(), |it| format!(" {}", it.display()));
        return Err(PeftError::Invalid(format!(
            "the adapter has an embedding matrix of {rows} rows where the base has {own}, but the tokenizer{file} knows \
             {} tokens: put the tokenizer that the adapter was trained with into the adapter's folder, \
             that of the base if the rows are padding",
            tokenizer.vocab_size()
        )));
    }
    Ok(tokenizer.within(rows))
}
