//! Text to token ids and back, from the files of a Hugging Face folder.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};
use tokenizers::TruncationDirection;

use crate::data::growth::MAX_TEXT;
use crate::data::guard::guarded;
use crate::data::special_tokens::Fallbacks;
use crate::data::tokenizer_file::{parse, roles_of};

pub use crate::data::special_tokens::SpecialTokens;

/// Name of the file that a tokenizer is read from.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A tokenizer and the names of its special tokens.
///
/// Truncation and padding that `tokenizer.json` may ask for are switched off, as in transformers: lengths are the
/// business of [`collate`](crate::data::sample), which knows what is being trained.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    vocab_size: usize,
    /// Rows of the model's embedding matrix, if they are known.
    rows: Option<usize>,
    /// The file, for messages.
    path: Option<PathBuf>,
    /// By how much the normalizer may lengthen a text.
    growth: f64,
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
    /// How many tokens were cut off.
    pub cut: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder. [`SpecialTokens`] says where the special tokens come from.
    ///
    /// # Errors
    /// There is no `tokenizer.json`, or one of the files does not parse.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Self::load_beside(&folder, &folder)
    }

    /// The same for a tokenizer that does not lie beside its model: `config.json` and `generation_config.json` are those in
    /// `model`.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load_beside(folder: impl AsRef<Path>, model: impl AsRef<Path>) -> Result<Self> {
        let (folder, model) = (folder.as_ref(), model.as_ref());
        let path = folder.join(TOKENIZER_FILE);
        if !path.exists() {
            return Err(PeftError::bad_file(
                folder,
                "it has no tokenizer.json; copy it from the base model, or let transformers write one: \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            ));
        }
        let bytes = peft_core::files::plain::read_bytes(&path)?;
        let (inner, growth) = parse(&bytes).map_err(|reason| PeftError::bad_file(&path, reason))?;
        let mut special = SpecialTokens::load(folder)?;
        special.complete(&Fallbacks {
            in_json: roles_of(&inner),
            folder,
            model,
            has: &|token| inner.token_to_id(token).is_some(),
            token: &|id| inner.id_to_token(id),
        })?;
        let tokenizer = Self::new(inner, special, growth).map_err(|error| PeftError::bad_file(&path, error))?;
        Ok(Self { path: Some(path), ..tokenizer })
    }

    /// A tokenizer from the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// The contents do not parse.
    pub fn from_bytes(bytes: &[u8], special: SpecialTokens) -> Result<Self> {
        let (inner, growth) = parse(bytes)
            .map_err(|reason| PeftError::Invalid(format!("not the contents of a tokenizer.json: {reason}")))?;
        Self::new(inner, special, growth)
    }

    fn new(mut inner: tokenizers::Tokenizer, special: SpecialTokens, growth: f64) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| PeftError::Invalid(error.to_string()))?;
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |it| it as usize + 1);
        Ok(Self { inner, special, vocab_size, rows: None, path: None, growth })
    }

    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    pub(crate) fn with_inner(&self, inner: tokenizers::Tokenizer) -> Self {
        let largest = inner.get_vocab(true).into_values().max();
        Self { inner, vocab_size: largest.map_or(0, |it| it as usize + 1), ..self.clone() }
    }

    /// For a model whose embedding matrix has this many rows: a token beyond them is an error from now on.
    pub fn within(self, rows: usize) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// Runs the library on a text of so many bytes.
    fn run<T>(&self, bytes: usize, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        if bytes as f64 * self.growth > MAX_TEXT {
            let reason = format!("it may make a text of {bytes} bytes {:.0} times as long", self.growth);
            return Err(self.failed(reason));
        }
        match guarded(work) {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(self.failed(error)),
            None => Err(self.failed("its file is damaged")),
        }
    }

    fn failed(&self, reason: impl fmt::Display) -> PeftError {
        match &self.path {
            Some(path) => PeftError::bad_file(path, format!("the tokenizer gave up: {reason}")),
            None => PeftError::Invalid(format!("the tokenizer gave up: {reason}")),
        }
    }

    /// Refuses tokens for which the model has no row.
    ///
    /// # Errors
    /// An id is not [within](Tokenizer::within) the model's rows.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        let Some(id) = ids.iter().find(|it| **it as usize >= rows) else { return Ok(()) };
        let token = self.token(*id).unwrap_or_default();
        let file = self.path.as_ref().map_or(String::new(), |it| format!(" of {}", it.display()));
        Err(PeftError::Invalid(format!(
            "the token {token:?}{file} has the id {id}, but the model's embedding matrix has {rows} rows: take the \
             tokenizer that belongs to the model, or train with `--new-tokens`, which adds rows"
        )))
    }

    fn checked(&self, encoding: tokenizers::Encoding) -> Result<Encoded> {
        self.check(encoding.get_ids())?;
        Ok(Encoded::from(&encoding))
    }

    /// Tokenizes one text; `special` puts the tokens around it that the tokenizer's post-processor knows of.
    ///
    /// # Errors
    /// The library gives up, or a token is not [within](Tokenizer::within) the model's rows.
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoded> {
        self.checked(self.run(text.len(), || self.inner.encode(text, special))?)
    }

    /// Like [`Tokenizer::encode`], ids only: quicker on long texts.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.run(text.len(), || self.inner.encode_fast(text, special))?;
        self.check(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokenizes two texts as one sequence, with special tokens between and around them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pair(&self, text: &str, pair: &str) -> Result<Encoded> {
        self.checked(self.run(text.len() + pair.len(), || self.inner.encode((text, pair), true))?)
    }

    fn bare(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.run(text.len(), || self.inner.encode(text, false))
    }

    /// Tokenizes one text, or two as one sequence, with special tokens and at most `max_length` of all of them. What is
    /// too long loses tokens at its end, the longer text first; the special tokens stay.
    ///
    /// # Errors
    /// `max_length` has no room for the special tokens alone, or as [`Tokenizer::encode`].
    pub fn encode_within(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoded> {
        self.encode_cut(text, pair, max_length, TruncationDirection::Right)
    }

    /// Like [`Tokenizer::encode_within`], cutting texts at their start or at their end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub(crate) fn encode_cut(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: usize,
        direction: TruncationDirection,
    ) -> Result<Encoded> {
        use tokenizers::{PostProcessor, TruncationParams};
        let added = self.inner.get_post_processor().map_or(0, |it| it.added_tokens(pair.is_some()));
        if max_length <= added {
            let reason = format!("is {max_length}, and the tokenizer adds {added} tokens to every sequence; raise it");
            return Err(PeftError::config("max_length", reason));
        }
        let first = self.bare(text)?;
        let second = pair.map(|it| self.bare(it)).transpose()?;
        let params = TruncationParams { max_length: max_length - added, direction, ..TruncationParams::default() };
        let whole = first.get_ids().len() + second.as_ref().map_or(0, |it| it.get_ids().len());
        let encoded = self.checked(self.run(0, || {
            let (first, second) = tokenizers::truncate_encodings(first, second, &params)?;
            self.inner.post_process(first, second, true)
        })?)?;
        Ok(Encoded { cut: whole.saturating_sub(max_length - added), ..encoded })
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
        let first = self.bare(question)?;
        let mut second = self.bare(text)?;
        self.check(first.get_ids())?;
        self.check(second.get_ids())?;
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
        let whole = self.run(0, || {
            let (first, second) = tokenizers::truncate_encodings(first, Some(second), &params)?;
            self.inner.post_process(first, second, true)
        })?;
        self.check(whole.get_ids())?;
        let window = |it: &tokenizers::Encoding| {
            let of_text = it.get_sequence_ids().iter().map(|it| *it == Some(1)).collect();
            (Encoded::from(it), of_text)
        };
        Ok(std::iter::once(&whole).chain(whole.get_overflowing()).map(window).collect())
    }

    /// The text of `ids`. Ids outside the vocabulary are left out, as transformers does.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.run(0, || self.inner.decode(ids, skip_special))
    }

    /// Decodes token by token while a text is being generated.
    pub fn stream(&self, skip_special: bool) -> TokenStream<'_> {
        TokenStream { inner: self.inner.decode_stream(skip_special), tokenizer: self }
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

    /// The id to fill up short rows with: the padding token, else the end token, else 0; of those the first that the model
    /// has a row for. Which one it is does not show in any result, since these places are masked.
    pub fn fill_id(&self) -> u32 {
        let inside = |id: &u32| self.rows.is_none_or(|rows| (*id as usize) < rows);
        self.pad_id().filter(inside).or(self.eos_id().filter(inside)).unwrap_or(0)
    }

    /// One more than the largest id, added tokens included: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// How many ids there are that the model has a row for.
    pub fn usable_ids(&self) -> usize {
        self.rows.map_or(self.vocab_size, |rows| rows.min(self.vocab_size))
    }

    /// Where it was read from.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
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

impl From<&tokenizers::Encoding> for Encoded {
    fn from(encoding: &tokenizers::Encoding) -> Self {
        Self {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            offsets: encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect(),
            added: encoding.get_special_tokens_mask().iter().map(|it| *it == 1).collect(),
            cut: 0,
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
    tokenizer: &'a Tokenizer,
}

impl TokenStream<'_> {
    /// Takes the next token and gives the text that is certain now; `None` in the middle of a character.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Self { inner, tokenizer } = self;
        tokenizer.run(0, || inner.step(id))
    }
}

impl fmt::Debug for TokenStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStream").finish_non_exhaustive()
    }
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
