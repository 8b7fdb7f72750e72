//! The tokenizer of CLIP's text encoder, in the files that folders of diffusers hold: `vocab.json` and `merges.txt`.
//!
//! Source: `transformers/models/clip/tokenization_clip.py` (5.23).

use std::path::Path;

use peft_core::files::plain::{read_bytes, read_text};
use peft_core::{PeftError, Result};
use serde_json::{Map, Value, json};

use crate::data::special_tokens::SpecialTokens;
use crate::data::tokenizer::{TOKENIZER_FILE, Tokenizer};

/// The tokens of a text where `tokenizer_config.json` does not say otherwise.
const MAX_LENGTH: usize = 77;

/// What begins every text.
const BEGIN: &str = "<|startoftext|>";
/// What ends every text.
const END: &str = "<|endoftext|>";

/// More than any tokenizer of this kind takes: a guard against lengths that stand for "no limit".
const LONGEST: u64 = 4096;

/// A tokenizer that gives every text the same length.
#[derive(Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    pad: u32,
}

impl ClipTokenizer {
    /// Reads the tokenizer of a folder.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = object(&folder.join("tokenizer_config.json"))?;
        let special = object(&folder.join("special_tokens_map.json"))?;
        let named = [&special, &config].into_iter().find_map(|it| token(it.get("pad_token")?));
        let pad = named.unwrap_or(END);
        let tokenizer = match folder.join(TOKENIZER_FILE).is_file() {
            true => Tokenizer::load(folder)?,
            false => Tokenizer::from_bytes(&assembled(folder, pad)?, SpecialTokens::default())
                .map_err(|error| PeftError::bad_file(folder, error))?,
        };
        let pad = tokenizer.inner().token_to_id(pad).ok_or_else(|| {
            PeftError::bad_file(folder, format!("its padding token {pad:?} is not in the vocabulary"))
        })?;
        let given = config.get("model_max_length").and_then(Value::as_u64).filter(|it| (3..=LONGEST).contains(it));
        Ok(Self { tokenizer, max_length: given.map_or(MAX_LENGTH, |it| it as usize), pad })
    }

    /// How many tokens every text has.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The tokens of a text, cut or padded to [`max_length`](Self::max_length), and how many were cut.
    ///
    /// # Errors
    /// If the tokenizer gives up.
    pub fn ids(&self, text: &str) -> Result<(Vec<u32>, usize)> {
        let encoded = self.tokenizer.encode_within(text, None, self.max_length)?;
        let mut ids = encoded.ids;
        ids.resize(self.max_length, self.pad);
        Ok((ids, encoded.cut))
    }
}

/// A JSON file that may be missing.
fn object(path: &Path) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    serde_json::from_str(&read_text(path)?).map_err(|error| PeftError::bad_file(path, error))
}

/// A token as text, or as an object that says more of it.
fn token(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The `tokenizer.json` that the two files amount to. What pads is a special token, in a text, too: to the second tokenizer of
/// SDXL, which pads with `!`, every exclamation mark is padding.
fn assembled(folder: &Path, pad: &str) -> Result<Vec<u8>> {
    let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocab_path.is_file() || !merges_path.is_file() {
        let reason = format!("it has neither `{TOKENIZER_FILE}` nor `vocab.json` with `merges.txt`");
        return Err(PeftError::bad_file(folder, reason));
    }
    let vocab: Map<String, Value> =
        serde_json::from_slice(&read_bytes(&vocab_path)?).map_err(|error| PeftError::bad_file(&vocab_path, error))?;
    let id = |token: &str| {
        let id = vocab.get(token).and_then(Value::as_u64);
        id.ok_or_else(|| PeftError::bad_file(&vocab_path, format!("it lacks the token {token:?}")))
    };
    let (begin, end) = (id(BEGIN)?, id(END)?);
    let merges = read_text(&merges_path)?;
    // The first line is a version.
    let merges: Vec<&str> = merges
        .lines()
        .enumerate()
        .filter(|(at, it)| !it.is_empty() && (*at > 0 || !it.starts_with("#version")))
        .map(|it| it.1)
        .collect();
    let mut special = vec![(BEGIN, begin), (END, end)];
    // One that the vocabulary lacks is refused by name later.
    special.extend(id(pad).ok().filter(|_| ![BEGIN, END].contains(&pad)).map(|id| (pad, id)));
    let added = special.into_iter().map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let added: Vec<Value> = added.collect();
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": true}, bytes,
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [BEGIN, begin],
            "trim_offsets": false, "add_prefix_space": false},
        "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    });
    serde_json::to_vec(&tokenizer).map_err(|error| PeftError::bad_file(folder, error))
}
