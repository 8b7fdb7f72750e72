//! `tokenizer.json`, read with care, and what it says of special tokens.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, PostProcessorWrapper};

use crate::data::growth::{MAX_GROWTH, growth};
use crate::data::guard::guarded;

/// The parts of a `tokenizer.json` that may make texts longer.
#[derive(Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// A tokenizer, and by how much its normalizer lengthens texts.
pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<(tokenizers::Tokenizer, f64), String> {
    let steps: Steps = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let (normalizer, decoder) = (growth(&steps.normalizer), growth(&steps.decoder));
    if normalizer > MAX_GROWTH || decoder > MAX_GROWTH {
        let times = normalizer.max(decoder);
        return Err(format!("its replacements can make a text {times:.0} times as long, which no tokenizer needs"));
    }
    match guarded(|| tokenizers::Tokenizer::from_bytes(bytes)) {
        Some(Ok(inner)) => Ok((inner, normalizer)),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("it is damaged: no tokenizer can be made of it".to_owned()),
    }
}

/// Special tokens that `tokenizer.json` itself names by their part.
pub(crate) fn roles_of(inner: &tokenizers::Tokenizer) -> Vec<(&'static str, String)> {
    let unknown = match inner.get_model() {
        ModelWrapper::BPE(model) => model.unk_token.clone(),
        ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
        ModelWrapper::Unigram(_) => None,
    };
    let mut roles: Vec<(&'static str, String)> = unknown.map(|it| ("unk_token", it)).into_iter().collect();
    roles.extend(inner.get_padding().map(|it| ("pad_token", it.pad_token.clone())));
    let mut parts: Vec<&PostProcessorWrapper> = inner.get_post_processor().into_iter().collect();
    while let Some(part) = parts.pop() {
        let (sep, cls) = match part {
            PostProcessorWrapper::Sequence(several) => {
                parts.extend(several.as_ref());
                continue;
            }
            PostProcessorWrapper::Bert(it) => (&it.sep, &it.cls),
            PostProcessorWrapper::Roberta(it) => (&it.sep, &it.cls),
            _ => continue,
        };
        roles.extend([("sep_token", sep.0.clone()), ("cls_token", cls.0.clone())]);
    }
    roles.retain(|(_, token)| inner.token_to_id(token).is_some());
    roles
}
