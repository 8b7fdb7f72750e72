//! Which tokens play which part, and who says so.

use std::path::Path;

use indexmap::IndexMap;
use peft_core::files::plain::read_text;
use peft_core::{PeftError, Result};
use serde_json::{Map, Value};

use crate::data::tokenizer_class;

/// Special tokens by role: `bos_token` → `<s>`.
///
/// [`Tokenizer::load`](crate::data::tokenizer::Tokenizer::load) asks, until somebody knows: `tokenizer_config.json`,
/// `special_tokens_map.json`, `tokenizer.json`, the defaults of the tokenizer's class in transformers, and the ids in
/// `config.json` and `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Role, with its `_token` ending, to the token's text.
    pub roles: IndexMap<String, String>,
    /// Roles of which a file says that they have no token.
    denied: Vec<String>,
    /// Role to who says so, for messages.
    sources: IndexMap<String, String>,
}

/// Names of the files that say which tokens are special.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// Roles that `config.json` has an id for: `eos_token_id`.
const ROLES_WITH_IDS: [&str; 6] = ["bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// What a `tokenizer.json` and the files of its model add to the special tokens of a folder.
pub(crate) struct Fallbacks<'a> {
    /// Role and token, as `tokenizer.json` has them.
    pub(crate) in_json: Vec<(&'static str, String)>,
    /// Folder of the tokenizer.
    pub(crate) folder: &'a Path,
    /// Folder of the model, with its `config.json`.
    pub(crate) model: &'a Path,
    /// Whether the vocabulary has a token.
    pub(crate) has: &'a dyn Fn(&str) -> bool,
    /// The token of an id.
    pub(crate) token: &'a dyn Fn(u32) -> Option<String>,
}

impl SpecialTokens {
    /// Special tokens from `(role, token)` pairs.
    pub fn new<'a>(roles: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let roles = roles.into_iter().map(|(role, token)| (role.to_owned(), token.to_owned())).collect();
        Self { roles, ..Self::default() }
    }

    /// Reads `tokenizer_config.json` and `special_tokens_map.json` of a folder; both may be absent.
    ///
    /// # Errors
    /// A file is there and is not a JSON object.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let config = json_object(&folder.as_ref().join(TOKENIZER_CONFIG))?.unwrap_or_default();
        let mut special = Self::default();
        special.read(&config, TOKENIZER_CONFIG);
        // The map is the older file and speaks where the config predates it: transformers,
        // `tokenization_utils_base.py`, `_from_pretrained`.
        if !config.contains_key("added_tokens_decoder")
            && let Some(map) = json_object(&folder.as_ref().join(SPECIAL_TOKENS_MAP))?
        {
            special.read(&map, SPECIAL_TOKENS_MAP);
        }
        Ok(special)
    }

    /// The token of a role such as `eos_token`.
    pub fn get(&self, role: &str) -> Option<&str> {
        self.roles.get(role).map(String::as_str)
    }

    /// Who says what the token of a role is: a file, or a class of transformers.
    pub fn source(&self, role: &str) -> Option<&str> {
        self.sources.get(role).map(String::as_str)
    }

    /// Fills in the roles that no file of the tokenizer names.
    pub(crate) fn complete(&mut self, more: &Fallbacks<'_>) -> Result<()> {
        for (role, token) in &more.in_json {
            self.fill(role, token, "tokenizer.json");
        }
        let config = json_object(&more.folder.join(TOKENIZER_CONFIG))?.unwrap_or_default();
        let model = json_object(&more.model.join("config.json"))?.unwrap_or_default();
        if let Some(class) = tokenizer_class::of(&config, &model) {
            // transformers would add a default that the vocabulary lacks as a new token, which no model has learned.
            for (role, token) in class.defaults() {
                if self.denies(role) || !(more.has)(token) {
                    continue;
                }
                self.fill(role, token, &format!("the class {}", class.name));
            }
        }
        let generation = json_object(&more.model.join("generation_config.json"))?.unwrap_or_default();
        for (file, fields) in [("config.json", &model), ("generation_config.json", &generation)] {
            for role in ROLES_WITH_IDS {
                if let Some(token) = fields.get(&format!("{role}_id")).and_then(first_id).and_then(more.token) {
                    self.fill(role, &token, file);
                }
            }
        }
        Ok(())
    }

    fn denies(&self, role: &str) -> bool {
        self.denied.iter().any(|it| it == role)
    }

    fn fill(&mut self, role: &str, token: &str, source: &str) {
        if !self.roles.contains_key(role) {
            self.set(role, token, source);
        }
    }

    fn set(&mut self, role: &str, token: &str, source: &str) {
        self.roles.insert(role.to_owned(), token.to_owned());
        self.sources.insert(role.to_owned(), source.to_owned());
    }

    fn read(&mut self, fields: &Map<String, Value>, file: &str) {
        for (role, value) in fields.iter().filter(|(role, _)| role.ends_with("_token")) {
            // Older files hold an object: {"content": "<s>", "lstrip": false, …}.
            match value.as_str().or_else(|| value.get("content").and_then(Value::as_str)) {
                Some(token) => self.set(role, token, file),
                None if value.is_null() => self.denied.push(role.clone()),
                None => {}
            }
        }
    }
}

/// An id, or the first of several.
fn first_id(value: &Value) -> Option<u32> {
    let id = value.as_array().map_or(Some(value), |ids| ids.first())?;
    id.as_u64().and_then(|it| u32::try_from(it).ok())
}

/// A JSON object file; `None` where there is no file.
pub(crate) fn json_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path)?;
    serde_json::from_str(&text).map(Some).map_err(|error| PeftError::bad_file(path, error))
}
