//! How much of a reference a prediction has: ROUGE (Lin 2004) and BLEU (Papineni et al. 2002), as Python's
//! `rouge_score` 0.1.2 without a stemmer and `sacrebleu` 2.6 with its defaults.
//!
//! Written here, for want of a crate (looked for in November 2026). `rougers` 0.2.1 gives the same ROUGE, but pins the ICU
//! crates to single releases and so holds back a dozen crates of the whole tree; without a stemmer there is too little to
//! it for that. `bleuscore` 0.1.6 splits words as sacrebleu does, but smooths otherwise: 0 or 35.9 instead of 21.4 for
//! the first pair of the fixture. `sacrebleu` itself has no port.

use std::collections::HashMap;

/// How close written texts are to those that were to be written.
#[derive(Debug, Clone, Default)]
pub struct TextScores {
    texts: usize,
    exact: usize,
    rouge: [f64; 3],
    bleu: Bleu,
}

impl TextScores {
    /// Counts one text more.
    pub fn add(&mut self, reference: &str, text: &str) {
        self.texts += 1;
        self.exact += usize::from(reference.trim() == text.trim());
        let scores = [rouge_n(reference, text, 1), rouge_n(reference, text, 2), rouge_l(reference, text)];
        self.rouge.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        self.bleu.add(reference, text);
    }

    /// `exact_match` and ROUGE as means over the texts, BLEU over all of them together.
    pub fn metrics(&self) -> [(&'static str, f64); 5] {
        let count = self.texts as f64;
        let [rouge1, rouge2, rouge_l] = self.rouge.map(|it| it / count);
        [
            ("exact_match", self.exact as f64 / count),
            ("rouge1", rouge1),
            ("rouge2", rouge2),
            ("rougeL", rouge_l),
            ("bleu", self.bleu.score()),
        ]
    }
}

/// Words as `rouge_score` splits them without a stemmer: lower case, runs of ASCII letters and digits.
fn rouge_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|it: char| !it.is_ascii_alphanumeric()).filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

/// Runs of `size` words, counted.
fn ngrams(words: &[String], size: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for run in words.windows(size) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}

/// How many runs two texts share, none counted more often than either has it.
fn shared(a: &HashMap<&[String], usize>, b: &HashMap<&[String], usize>) -> usize {
    a.iter().map(|(run, count)| (*count).min(b.get(run).copied().unwrap_or(0))).sum()
}

fn f1(matches: usize, reference: usize, prediction: usize) -> f64 {
    if matches == 0 {
        return 0.0;
    }
    let (precision, recall) = (matches as f64 / prediction as f64, matches as f64 / reference as f64);
    2.0 * precision * recall / (precision + recall)
}

/// ROUGE-N: F1 of runs of `size` words.
pub fn rouge_n(reference: &str, prediction: &str, size: usize) -> f64 {
    let (reference, prediction) = (rouge_words(reference), rouge_words(prediction));
    let (reference, prediction) = (ngrams(&reference, size), ngrams(&prediction, size));
    f1(shared(&reference, &prediction), reference.values().sum(), prediction.values().sum())
}

/// ROUGE-L: F1 of the longest common subsequence of words.
pub fn rouge_l(reference: &str, prediction: &str) -> f64 {
    let (reference, prediction) = (rouge_words(reference), rouge_words(prediction));
    let mut best = vec![0; prediction.len() + 1];
    for word in &reference {
        let mut diagonal = 0;
        for (at, other) in prediction.iter().enumerate() {
            let above = best[at + 1];
            best[at + 1] = if word == other { diagonal + 1 } else { above.max(best[at]) };
            diagonal = above;
        }
    }
    f1(best[prediction.len()], reference.len(), prediction.len())
}

/// BLEU of a corpus with runs of up to four words, split as `mteval-v13a` does; 0 to 100.
///
/// Orders without a match are smoothed as sacrebleu's `exp` does: the first counts half a match, the next a quarter.
#[derive(Debug, Clone, Default)]
pub struct Bleu {
    matches: [usize; 4],
    runs: [usize; 4],
    reference_length: usize,
    prediction_length: usize,
}

impl Bleu {
    /// Counts one prediction.
    pub fn add(&mut self, reference: &str, prediction: &str) {
        let (reference, prediction) = (bleu_words(reference), bleu_words(prediction));
        self.reference_length += reference.len();
        self.prediction_length += prediction.len();
        for size in 1..=4 {
            let runs = ngrams(&prediction, size);
            self.matches[size - 1] += shared(&runs, &ngrams(&reference, size));
            self.runs[size - 1] += runs.values().sum::<usize>();
        }
    }

    /// The score of all predictions together.
    pub fn score(&self) -> f64 {
        if self.matches[0] == 0 {
            return 0.0;
        }
        let mut half = 1.0;
        let mut logs = Vec::new();
        for (matches, runs) in self.matches.iter().zip(self.runs).filter(|(_, runs)| *runs > 0) {
            let matches = if *matches == 0 {
                half /= 2.0;
                half
            } else {
                *matches as f64
            };
            logs.push((matches / runs as f64).ln());
        }
        let brevity = (1.0 - self.reference_length as f64 / self.prediction_length as f64).min(0.0);
        // Texts too short for four words have fewer orders; sacrebleu gives those 0.
        if logs.len() < 4 { 0.0 } else { 100.0 * (brevity + logs.iter().sum::<f64>() / 4.0).exp() }
    }
}

/// Words and punctuation marks: sacrebleu's `13a`.
fn bleu_words(text: &str) -> Vec<String> {
    let mut text = text.replace("<skipped>", "").replace("-\n", "");
    for (entity, letter) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, letter);
    }
    let stands_alone = |it: char| it.is_ascii_punctuation() && !"',-.".contains(it);
    let mut apart = String::from(" ");
    for letter in text.chars() {
        match stands_alone(letter) {
            true => apart.extend([' ', letter, ' ']),
            false => apart.push(letter),
        }
    }
    apart.push(' ');
    // Stops and commas within numbers are parts of them, and so are dashes unless a digit stands before.
    let (stop, digit) = (|it: char| ".,".contains(it), |it: char| it.is_ascii_digit());
    let apart = spaced(&apart, |a, b| (!digit(a) && stop(b)).then(|| format!("{a} {b} ")));
    let apart = spaced(&apart, |a, b| (stop(a) && !digit(b)).then(|| format!(" {a} {b}")));
    let apart = spaced(&apart, |a, b| (digit(a) && b == '-').then(|| format!("{a} {b} ")));
    apart.split_whitespace().map(str::to_owned).collect()
}

/// Replaces pairs of neighbouring letters from left to right; a letter is part of one pair at most.
fn spaced(text: &str, replacement: impl Fn(char, char) -> Option<String>) -> String {
    let mut out = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letters.peek().and_then(|next| replacement(letter, *next)) {
            Some(instead) => {
                out.push_str(&instead);
                letters.next();
            }
            None => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(ours: f64, wanted: f64) {
        assert!((ours - wanted).abs() < 1e-9, "{ours} and not {wanted}");
    }

    #[test]
    fn the_scores_are_those_of_rouge_score_and_sacrebleu() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/overlap/pairs.json");
        let recorded: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut corpus = Bleu::default();
        for pair in recorded["pairs"].as_array().unwrap() {
            let (reference, prediction) = (pair["right"].as_str().unwrap(), pair["written"].as_str().unwrap());
            let mut alone = Bleu::default();
            alone.add(reference, prediction);
            corpus.add(reference, prediction);
            let ours = [
                rouge_n(reference, prediction, 1),
                rouge_n(reference, prediction, 2),
                rouge_l(reference, prediction),
                alone.score(),
            ];
            for (name, ours) in ["rouge1", "rouge2", "rougeL", "bleu"].iter().zip(ours) {
                let theirs = pair[name].as_f64().unwrap();
                assert!(
                    (ours - theirs).abs() < 1e-9,
                    "{name} of {reference:?} and {prediction:?}: {ours} and not {theirs}"
                );
            }
        }
        close(corpus.score(), recorded["corpus_bleu"].as_f64().unwrap());
    }

    /// The example of Lin's paper, section 3: S1 "police killed the gunman" and two others.
    #[test]
    fn the_papers_sentences() {
        let reference = "police killed the gunman";
        close(rouge_l(reference, "Police kill the gunman."), 0.75);
        close(rouge_l(reference, "the gunman kill police"), 0.5);
        close(rouge_n(reference, "police kill the gunman", 2), 1.0 / 3.0);
        close(rouge_n(reference, "the gunman kill police", 1), 0.75);
        assert_eq!((rouge_l(reference, ""), rouge_n("", "", 1)), (0.0, 0.0));
    }

    #[test]
    fn bleu_counts_over_the_corpus() {
        let mut bleu = Bleu::default();
        bleu.add("the cat is on the mat", "the cat is on the mat");
        close(bleu.score(), 100.0);
        // Matches 6+4 of 6+5, 5+2 of 5+4, 4+1 of 4+3, 3+0 of 3+2 runs; 12 words in the references, 11 in the predictions.
        bleu.add("a dog sat there , quietly", "a dog sat , loudly");
        let wanted = (10.0f64 / 11.0 * 7.0 / 9.0 * 5.0 / 7.0 * 3.0 / 5.0).powf(0.25) * (1.0f64 - 12.0 / 11.0).exp();
        close(bleu.score(), 100.0 * wanted);
    }

    #[test]
    fn orders_without_a_match_are_smoothed() {
        let mut bleu = Bleu::default();
        bleu.add("a b c d e", "a x b y c");
        // 3 of 5, then 0 of 4, 3 and 2 as a half, a quarter, an eighth.
        let wanted = (0.6f64 * 0.5 / 4.0 * 0.25 / 3.0 * 0.125 / 2.0).powf(0.25);
        close(bleu.score(), 100.0 * wanted);
        assert_eq!(Bleu::default().score(), 0.0);
    }
}
