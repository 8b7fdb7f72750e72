//! How much of a transcript is wrong: word and character error rate.
//!
//! Numbers are those of `jiwer` 4, which `evaluate` calls; the plainer words are those of `BasicTextNormalizer` in
//! `transformers/models/whisper/english_normalizer.py` (5.23).

use peft_core::{PeftError, Result};
use tokenizers::normalizers::unicode::NFKC;
use tokenizers::normalizers::{Replace, replace::ReplacePattern};
use tokenizers::{NormalizedString, Normalizer};

/// Errors over many texts, divided once at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorRate {
    /// Words or characters that are to be replaced, left out or put in.
    pub errors: usize,
    /// Words or characters that were said.
    pub total: usize,
}

impl ErrorRate {
    /// Adds the words of a text that was said, and of what was written for it.
    pub fn add_words(&mut self, said: &str, written: &str) {
        self.add(&said.split_whitespace().collect::<Vec<_>>(), &written.split_whitespace().collect::<Vec<_>>());
    }

    /// Adds the characters of both, spaces too.
    pub fn add_characters(&mut self, said: &str, written: &str) {
        self.add(&said.trim().chars().collect::<Vec<_>>(), &written.trim().chars().collect::<Vec<_>>());
    }

    fn add<T: PartialEq>(&mut self, said: &[T], written: &[T]) {
        self.errors += distance(said, written);
        self.total += said.len();
    }

    /// Errors for each unit that was said: 0 is right, and 1 may be exceeded. Where nothing was said, the errors.
    pub fn rate(self) -> f64 {
        self.errors as f64 / self.total.max(1) as f64
    }
}

/// The fewest replacements, omissions and insertions that make one of the other: Levenshtein 1966.
fn distance<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let here = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], here);
        }
    }
    row[b.len()]
}

/// Makes texts alike that differ in case, punctuation and remarks only.
#[derive(Debug)]
pub struct TextNormalizer {
    steps: Vec<Replace>,
}

impl TextNormalizer {
    /// What `BasicTextNormalizer()` does.
    ///
    /// # Errors
    /// If a pattern cannot be read.
    pub fn new() -> Result<Self> {
        // Remarks in brackets, then marks, symbols and punctuation.
        let patterns = [(r"[<\[][^>\]]*[>\]]", ""), (r"\(([^)]+?)\)", ""), (r"[\p{M}\p{S}\p{P}]", " ")];
        let step = |(pattern, content): (&str, &str)| {
            Replace::new(ReplacePattern::Regex(pattern.to_owned()), content)
                .map_err(|error| PeftError::Invalid(format!("`{pattern}` is no pattern: {error}")))
        };
        Ok(Self { steps: patterns.into_iter().map(step).collect::<Result<_>>()? })
    }

    /// The plain words of a text, a space between each two; the reference leaves spaces at the ends.
    ///
    /// # Errors
    /// If the text cannot be searched.
    pub fn apply(&self, text: &str) -> Result<String> {
        let failed = |error: tokenizers::Error| PeftError::Invalid(format!("a text cannot be normalized: {error}"));
        let mut text = NormalizedString::from(text.to_lowercase());
        let [brackets, parentheses, symbols] = self.steps.as_slice() else { return Ok(text.get().to_owned()) };
        brackets.normalize(&mut text).map_err(failed)?;
        parentheses.normalize(&mut text).map_err(failed)?;
        NFKC.normalize(&mut text).map_err(failed)?;
        symbols.normalize(&mut text).map_err(failed)?;
        Ok(text.get().to_lowercase().split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `jiwer.wer(said, written)` and `jiwer.cer(said, written)` of jiwer 4.0.
    #[test]
    fn rates_are_those_of_jiwer() {
        let pairs = [
            ("the cat sat on the mat", "the cat sat on mat"),
            ("hello  world ", "Hello, new world"),
            ("one", "one two three"),
            ("naïve café", "naive café"),
        ];
        let (mut words, mut characters) = (ErrorRate::default(), ErrorRate::default());
        for (said, written) in pairs {
            words.add_words(said, written);
            characters.add_characters(said, written);
        }
        assert_eq!((words, characters), (ErrorRate { errors: 6, total: 11 }, ErrorRate { errors: 20, total: 47 }));
        assert_eq!(ErrorRate::default().rate(), 0.0);
        let mut silence = ErrorRate::default();
        silence.add_words("", "thank you");
        assert_eq!(silence.rate(), 2.0);
    }

    /// `BasicTextNormalizer()` of transformers 5.23.
    #[test]
    fn texts_are_normalized_as_the_reference_does() {
        let normalizer = TextNormalizer::new().unwrap();
        for (text, wanted) in [
            ("Hello, World!  It's (so to say) fine.", "hello world it s fine"),
            ("[noise] Ünïcode — ﬁne…", "ünïcode fine"),
            ("a_b $5.00 <br> x", "a b 5 00 x"),
            (" Привет, мир! ", "привет мир"),
            ("ＦＵＬＬ ｗｉｄｔｈ", "full width"),
            ("e\u{301}tude", "étude"),
        ] {
            assert_eq!(normalizer.apply(text).unwrap(), wanted, "{text}");
        }
    }
}
