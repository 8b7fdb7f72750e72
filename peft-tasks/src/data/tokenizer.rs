//! Text to token ids and back, from the files of a Hugging Face folder.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use indexmap::IndexMap;
use peft_core::{PeftError, Result};
use serde_json::{Map, Value};

/// A tokenizer and the names of its special tokens.
///
/// Truncation and padding that `tokenizer.json` may ask for are switched off, as in transformers: lengths are the
/// business of [`collate`](crate::data::sample), which knows what is being trained.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    vocab_size: usize,
}

/// Special tokens by role: `bos_token` → `<s>`. Read from `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Role, with its `_token` ending, to the token's text.
    pub roles: IndexMap<String, String>,
}

/// A tokenized sequence, or a pair of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, `[seq]`.
    pub ids: Vec<u32>,
    /// 0 for the first sequence, 1 for the second, `[seq]`.
    pub type_ids: Vec<u32>,
    /// Bytes of its own text that each token comes from, `[seq]`; empty for tokens that were added around it.
    pub offsets: Vec<Range<usize>>,
    /// Whether a token was added around the text (`[CLS]`, `<s>`), `[seq]`.
    pub added: Vec<bool>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder and, where they exist, `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// There is no `tokenizer.json`, or one of the files does not parse.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(PeftError::bad_file(
                folder,
                "it has no tokenizer.json; copy it from the base model, or let transformers write one: \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            ));
        }
        let bytes = std::fs::read(&path).map_err(PeftError::io("read", &path))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| PeftError::bad_file(&path, error))?;
        Self::new(inner, SpecialTokens::load(folder)?).map_err(|error| PeftError::bad_file(&path, error))
    }

    /// A tokenizer from the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// The contents do not parse.
    pub fn from_bytes(bytes: &[u8], special: SpecialTokens) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| PeftError::Invalid(format!("not the contents of a tokenizer.json: {error}")))?;
        Self::new(inner, special)
    }

    fn new(mut inner: tokenizers::Tokenizer, special: SpecialTokens) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(failed)?;
        let largest = inner.get_vocab(true).into_values().max();
        Ok(Self { inner, special, vocab_size: largest.map_or(0, |it| it as usize + 1) })
    }

    /// Tokenizes one text; `special` puts the tokens around it that the tokenizer's post-processor knows of.
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoded> {
        self.inner.encode(text, special).map(|it| Encoded::from(&it)).map_err(failed)
    }

    /// Like [`Tokenizer::encode`], ids only: quicker on long texts.
    pub fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.inner.encode_fast(text, special).map(|it| it.get_ids().to_vec()).map_err(failed)
    }

    /// Tokenizes two texts as one sequence, with special tokens between and around them.
    pub fn encode_pair(&self, text: &str, pair: &str) -> Result<Encoded> {
        self.inner.encode((text, pair), true).map(|it| Encoded::from(&it)).map_err(failed)
    }

    /// Tokenizes one text, or two as one sequence, with special tokens and at most `max_length` of all of them. What is
    /// too long loses tokens at its end, the longer text first; the special tokens stay.
    ///
    /// # Errors
    /// `max_length` has no room for the special tokens alone.
    pub fn encode_within(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoded> {
        use tokenizers::{PostProcessor, TruncationParams};
        let added = self.inner.get_post_processor().map_or(0, |it| it.added_tokens(pair.is_some()));
        if max_length <= added {
            let reason = format!("is {max_length}, and the tokenizer adds {added} tokens to every sequence; raise it");
            return Err(PeftError::config("max_length", reason));
        }
        let first = self.inner.encode(text, false).map_err(failed)?;
        let second = pair.map(|it| self.inner.encode(it, false)).transpose().map_err(failed)?;
        let params = TruncationParams { max_length: max_length - added, ..TruncationParams::default() };
        let (first, second) = tokenizers::truncate_encodings(first, second, &params).map_err(failed)?;
        self.inner.post_process(first, second, true).map(|it| Encoded::from(&it)).map_err(failed)
    }

    /// Tokenizes a question with its context, in as many sequences of at most `max_length` tokens as the context needs.
    /// Each has the whole question, and repeats the last `stride` context tokens of the one before. Beside each, which of
    /// its tokens are of the context, `[seq]`.
    ///
    /// # Errors
    /// The question leaves room for `stride` tokens of the context or fewer, and the context needs more.
    pub fn encode_windows(
        &self,
        question: &str,
        text: &str,
        max_length: usize,
        stride: usize,
    ) -> Result<Vec<(Encoded, Vec<bool>)>> {
        use tokenizers::{PostProcessor, TruncationParams, TruncationStrategy};
        let added = self.inner.get_post_processor().map_or(0, |it| it.added_tokens(true));
        let first = self.inner.encode(question, false).map_err(failed)?;
        let mut second = self.inner.encode(text, false).map_err(failed)?;
        // A post-processor says this of the first window only.
        second.set_type_ids(vec![1; second.get_ids().len()]);
        let room = max_length.saturating_sub(added + first.get_ids().len());
        if second.get_ids().len() > room && room <= stride {
            let reason = format!(
                "is {max_length}: a question of {} tokens leaves room for {room} of the text, which must be more than \
                 `doc_stride`, {stride}; raise it, or lower `doc_stride`",
                first.get_ids().len()
            );
            return Err(PeftError::config("max_length", reason));
        }
        let strategy = TruncationStrategy::OnlySecond;
        let max_length = max_length.saturating_sub(added);
        let params = TruncationParams { max_length, strategy, stride, ..TruncationParams::default() };
        let (first, second) = tokenizers::truncate_encodings(first, Some(second), &params).map_err(failed)?;
        let whole = self.inner.post_process(first, second, true).map_err(failed)?;
        let window = |it: &tokenizers::Encoding| {
            let of_text = it.get_sequence_ids().iter().map(|it| *it == Some(1)).collect();
            (Encoded::from(it), of_text)
        };
        Ok(std::iter::once(&whole).chain(whole.get_overflowing()).map(window).collect())
    }

    /// The text of `ids`. Ids outside the vocabulary are left out, as transformers does.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(failed)
    }

    /// Decodes token by token while a text is being generated.
    pub fn stream(&self, skip_special: bool) -> TokenStream<'_> {
        TokenStream { inner: self.inner.decode_stream(skip_special) }
    }

    /// The id of a token, `None` when the vocabulary lacks it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, `None` when the vocabulary lacks it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a role such as `sep_token`.
    pub fn role_id(&self, role: &str) -> Option<u32> {
        self.special.get(role).and_then(|it| self.id(it))
    }

    /// The id that starts a sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.role_id("bos_token")
    }

    /// The id that ends a sequence.
    pub fn eos_id(&self) -> Option<u32> {
        self.role_id("eos_token")
    }

    /// The id that fills up short rows.
    pub fn pad_id(&self) -> Option<u32> {
        self.role_id("pad_token")
    }

    /// The mask token of fill-mask models.
    pub fn mask_id(&self) -> Option<u32> {
        self.role_id("mask_token")
    }

    /// The id that stands for text without a token.
    pub fn unk_id(&self) -> Option<u32> {
        self.role_id("unk_token")
    }

    /// The id to fill up short rows with: the padding token, else the end token, else 0. Which one it is does not show
    /// in any result, since these places are masked.
    pub fn fill_id(&self) -> u32 {
        self.pad_id().or(self.eos_id()).unwrap_or(0)
    }

    /// One more than the largest id, added tokens included: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The special tokens by role.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

// The vocabulary of the real thing would fill the terminal.
impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size).field("special", &self.special).finish()
    }
}

impl SpecialTokens {
    /// Special tokens from `(role, token)` pairs.
    pub fn new<'a>(roles: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self { roles: roles.into_iter().map(|(role, token)| (role.to_owned(), token.to_owned())).collect() }
    }

    /// Reads the two files of a folder; both may be absent.
    ///
    /// # Errors
    /// A file is there and is not a JSON object.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let config = json_object(&folder.as_ref().join("tokenizer_config.json"))?.unwrap_or_default();
        let mut special = Self::default();
        special.read(&config);
        // The map is the older file and speaks where the config predates it: transformers,
        // `tokenization_utils_base.py`, `_from_pretrained`.
        if !config.contains_key("added_tokens_decoder")
            && let Some(map) = json_object(&folder.as_ref().join("special_tokens_map.json"))?
        {
            special.read(&map);
        }
        Ok(special)
    }

    /// The token of a role such as `eos_token`.
    pub fn get(&self, role: &str) -> Option<&str> {
        self.roles.get(role).map(String::as_str)
    }

    fn read(&mut self, fields: &Map<String, Value>) {
        for (role, value) in fields.iter().filter(|(role, _)| role.ends_with("_token")) {
            // Older files hold an object: {"content": "<s>", "lstrip": false, …}.
            if let Some(token) = value.as_str().or_else(|| value.get("content").and_then(Value::as_str)) {
                self.roles.insert(role.clone(), token.to_owned());
            }
        }
    }
}

/// A JSON object file; `None` where there is no file.
pub(crate) fn json_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(PeftError::io("read", path))?;
    serde_json::from_str(&text).map(Some).map_err(|error| PeftError::bad_file(path, error))
}

impl From<&tokenizers::Encoding> for Encoded {
    fn from(encoding: &tokenizers::Encoding) -> Self {
        Self {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            offsets: encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect(),
            added: encoding.get_special_tokens_mask().iter().map(|it| *it == 1).collect(),
        }
    }
}

/// Text as it grows: see [`Tokenizer::stream`].
pub struct TokenStream<'a> {
    inner: tokenizers::DecodeStream<
        'a,
        tokenizers::ModelWrapper,
        tokenizers::NormalizerWrapper,
        tokenizers::PreTokenizerWrapper,
        tokenizers::PostProcessorWrapper,
        tokenizers::DecoderWrapper,
    >,
}

impl TokenStream<'_> {
    /// Takes the next token and gives the text that is certain now; `None` in the middle of a character.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.inner.step(id).map_err(failed)
    }
}

impl fmt::Debug for TokenStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStream").finish_non_exhaustive()
    }
}

fn failed(error: tokenizers::Error) -> PeftError {
    PeftError::Invalid(format!("the tokenizer gave up: {error}"))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use tokenizers::models::bpe::BPE;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::processors::template::TemplateProcessing;

    /// One token a byte, then the special ones: `<s>` 256, `</s>` 257, `<|im_start|>` 258, `<|im_end|>` 259. With
    /// special tokens a text starts with `<s>`.
    pub(crate) fn bytes() -> Tokenizer {
        let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        alphabet.sort();
        let vocab: Vec<(String, u32)> = alphabet.into_iter().zip(0..).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), Vec::new())
            .build()
            .unwrap();
        let level = ByteLevel::new(false, false, false);
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
        let added =
            ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].map(|it| tokenizers::AddedToken::from(it.to_owned(), true));
        inner.add_special_tokens(added).unwrap();
        let template = TemplateProcessing::builder()
            .try_single("<s> $A")
            .and_then(|it| it.try_pair("<s> $A </s>:0 $B:1"))
            .unwrap()
            .special_tokens(vec![("<s>", 256), ("</s>", 257)])
            .build()
            .unwrap();
        inner.with_post_processor(Some(template));
        let json = inner.to_string(false).unwrap();
        let special = SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "</s>")]);
        Tokenizer::from_bytes(json.as_bytes(), special).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        let tokenizer = testing::bytes();
        let text = "naïve <|im_end|> 🦀\n";
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!((encoded.ids[0], encoded.added[0], encoded.added[1]), (256, true, false));
        assert!(encoded.ids.contains(&259));
        assert_eq!(tokenizer.ids(text, true).unwrap(), encoded.ids);
        assert_eq!(tokenizer.decode(&encoded.ids, false).unwrap(), format!("<s>{text}"));
        assert_eq!(tokenizer.decode(&encoded.ids, true).unwrap(), "naïve  🦀\n");
        let token = encoded.ids.iter().position(|it| *it == 259).unwrap();
        assert_eq!(&text[encoded.offsets[token].clone()], "<|im_end|>");
    }

    #[test]
    fn a_pair_has_type_ids() {
        let encoded = testing::bytes().encode_pair("ab", "c").unwrap();
        assert_eq!(encoded.type_ids, [0, 0, 0, 0, 1]);
        assert_eq!(encoded.offsets[4], 0..1);
    }

    #[test]
    fn truncation_keeps_special_tokens_and_shortens_the_longer_text() {
        let tokenizer = testing::bytes();
        let text = |pair, max_length| {
            let encoded = tokenizer.encode_within("abcdef", pair, max_length).unwrap();
            (tokenizer.decode(&encoded.ids, false).unwrap(), encoded.type_ids)
        };
        assert_eq!(text(None, 9).0, "<s>abcdef");
        assert_eq!(text(None, 4).0, "<s>abc");
        assert_eq!(text(Some("xy"), 7), ("<s>abc</s>xy".to_owned(), vec![0, 0, 0, 0, 0, 1, 1]));
        assert!(tokenizer.encode_within("a", Some("b"), 2).unwrap_err().to_string().starts_with("`max_length` is 2"));
    }

    #[test]
    fn a_stream_holds_back_half_a_character() {
        let tokenizer = testing::bytes();
        let mut stream = tokenizer.stream(true);
        let pieces: Vec<_> =
            tokenizer.ids("a🦀", false).unwrap().into_iter().map(|id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces, [Some("a".into()), None, None, None, Some("🦀".into())]);
    }

    #[test]
    fn ids_of_roles() {
        let tokenizer = testing::bytes();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(256), Some(257), Some(257)));
        assert_eq!((tokenizer.unk_id(), tokenizer.fill_id(), tokenizer.vocab_size()), (None, 257, 260));
    }

    #[test]
    fn a_folder_gives_the_special_tokens_of_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it has no tokenizer.json; copy it from the base model"), "{error}");

        write("tokenizer.json", &testing::bytes().inner.to_string(false).unwrap());
        write(
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "</s>"}, "pad_token": null, "model_max_length": 9}"#,
        );
        write("special_tokens_map.json", r#"{"bos_token": "<s>", "eos_token": "<|im_end|>"}"#);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(256), Some(259), None));

        write("tokenizer_config.json", r#"{"eos_token": "</s>", "added_tokens_decoder": {}}"#);
        assert_eq!(Tokenizer::load(folder.path()).unwrap().eos_id(), Some(257));

        write("tokenizer_config.json", "[]");
        assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("tokenizer_config.json"));
    }
}
