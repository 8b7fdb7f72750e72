//! The files of a tokenizer, by name: what is fetched, copied and told apart from other files of a folder.

/// Files of which a tokenizer has at least one: its vocabulary.
pub const VOCABULARIES: [&str; 7] = [
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
];

/// Files that a tokenizer may have beside its vocabulary, a chat template apart.
pub const SETTINGS: [&str; 4] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"];

/// Files of a chat template.
pub const CHAT_TEMPLATES: [&str; 2] = ["chat_template.jinja", "chat_template.json"];

/// Whether a file belongs to a tokenizer, a chat template apart.
pub fn is_tokenizer_file(name: &str) -> bool {
    VOCABULARIES.contains(&name) || SETTINGS.contains(&name)
}
