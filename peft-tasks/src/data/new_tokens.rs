//! Tokens that a tokenizer is taught, and the files that such a tokenizer is saved in.

use std::fs;
use std::path::Path;

use peft_core::files::checkpoint::write_atomically;
use peft_core::{PeftError, Result};
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::data::special_tokens::{TOKENIZER_CONFIG, json_object};
use crate::data::tokenizer::{TOKENIZER_FILE, Tokenizer};
use crate::data::tokenizer_class;

/// Files that a tokenizer's new tokens do not change.
const COMPANIONS: [&str; 2] = ["special_tokens_map.json", "chat_template.jinja"];

/// The files that [`Tokenizer::save`] may write.
pub(crate) const SAVED_FILES: [&str; 4] = [TOKENIZER_FILE, TOKENIZER_CONFIG, COMPANIONS[0], COMPANIONS[1]];

impl Tokenizer {
    /// The tokenizer with more tokens, and the ids of these: `add_tokens` of transformers. One that is known already keeps its
    /// id.
    ///
    /// # Errors
    /// A token is empty.
    pub fn with_new_tokens<T: AsRef<str>>(&self, tokens: &[T]) -> Result<(Self, Vec<u32>)> {
        let names: Vec<&str> = tokens.iter().map(AsRef::as_ref).collect();
        if names.iter().any(|it| it.trim().is_empty()) {
            return Err(PeftError::config("new_tokens", "names a token without a letter"));
        }
        let mut inner = self.inner().clone();
        let new: Vec<AddedToken> = names
            .iter()
            .filter(|it| self.id(it).is_none())
            .map(|it| AddedToken::from((*it).to_owned(), false))
            .collect();
        inner.add_tokens(new).map_err(|error| PeftError::config("new_tokens", error))?;
        let tokenizer = self.with_inner(inner);
        let ids = names.iter().map(|it| {
            let missing =
                || PeftError::config("new_tokens", format!("names {it:?}, which the tokenizer does not take"));
            tokenizer.id(it).ok_or_else(missing)
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        Ok((tokenizer, ids))
    }

    /// Writes the tokenizer into a folder, beside an adapter for example: `tokenizer.json`, `tokenizer_config.json`, and what
    /// else of it lies in its own folder. `model` is the folder of the model, whose type tells the class of a tokenizer that
    /// names none.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn save(&self, folder: impl AsRef<Path>, model: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let text = self.inner().to_string(true).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(folder.join(TOKENIZER_FILE), text.as_bytes())?;
        let own = self.path().and_then(Path::parent);
        let mut config =
            own.map(|it| json_object(&it.join(TOKENIZER_CONFIG))).transpose()?.flatten().unwrap_or_default();
        if !config.contains_key("tokenizer_class") {
            let model = json_object(&model.as_ref().join("config.json"))?.unwrap_or_default();
            let class = tokenizer_class::of(&Map::new(), &model).map_or("PreTrainedTokenizerFast", |it| it.name);
            config.insert("tokenizer_class".into(), class.into());
        }
        for (role, token) in &self.special().roles {
            config.entry(role).or_insert_with(|| token.as_str().into());
        }
        if let Some(Value::Object(known)) = config.get_mut("added_tokens_decoder") {
            for (id, token) in self.inner().get_added_tokens_decoder() {
                known.entry(id.to_string()).or_insert_with(|| {
                    json!({"content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                        "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special})
                });
            }
        }
        let text = serde_json::to_string_pretty(&config).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(folder.join(TOKENIZER_CONFIG), text.as_bytes())?;
        for name in COMPANIONS {
            let (from, to) = (own.map(|it| it.join(name)).filter(|it| it.is_file()), folder.join(name));
            if let Some(from) = from.filter(|it| *it != to) {
                write_atomically(&to, &fs::read(&from).map_err(PeftError::io("read", &from))?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing;

    #[test]
    fn new_tokens_are_saved_with_the_tokenizer() {
        let (tokenizer, ids) = testing::bytes().with_new_tokens(&["<a>", "</s>", "<b>"]).unwrap();
        assert_eq!((ids, tokenizer.vocab_size()), (vec![260, 257, 261], 262));
        assert_eq!(tokenizer.ids("x<b>", false).unwrap()[1..], [261]);
        assert!(testing::bytes().with_new_tokens(&[" "]).is_err());
        assert_eq!(testing::bytes().with_new_tokens::<&str>(&[]).unwrap().0.vocab_size(), 260);

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
        tokenizer.save(folder.path(), folder.path()).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(again.ids("naïve <b></s>", true).unwrap(), tokenizer.ids("naïve <b></s>", true).unwrap());
        assert_eq!((again.eos_id(), again.vocab_size()), (Some(257), 262));
        let config = json_object(&folder.path().join(TOKENIZER_CONFIG)).unwrap().unwrap();
        assert_eq!(config["tokenizer_class"], "GPT2Tokenizer");
    }
}
