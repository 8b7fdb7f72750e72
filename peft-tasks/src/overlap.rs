//! How much of a right text a written one has: ROUGE (Lin 2004) and BLEU (Papineni et al. 2002).

use std::collections::HashMap;

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

fn f1(hits: usize, right: usize, written: usize) -> f64 {
    if hits == 0 {
        return 0.0;
    }
    let (precision, recall) = (hits as f64 / written as f64, hits as f64 / right as f64);
    2.0 * precision * recall / (precision + recall)
}

/// ROUGE-N: F1 of runs of `size` words.
pub fn rouge_n(right: &str, written: &str, size: usize) -> f64 {
    let (right, written) = (rouge_words(right), rouge_words(written));
    let (right, written) = (ngrams(&right, size), ngrams(&written, size));
    f1(shared(&right, &written), right.values().sum(), written.values().sum())
}

/// ROUGE-L: F1 of the longest common subsequence of words.
pub fn rouge_l(right: &str, written: &str) -> f64 {
    let (right, written) = (rouge_words(right), rouge_words(written));
    let mut best = vec![0; written.len() + 1];
    for word in &right {
        let mut diagonal = 0;
        for (at, other) in written.iter().enumerate() {
            let above = best[at + 1];
            best[at + 1] = if word == other { diagonal + 1 } else { above.max(best[at]) };
            diagonal = above;
        }
    }
    f1(best[written.len()], right.len(), written.len())
}

/// BLEU of a corpus with runs of up to four words, each word or punctuation mark by itself; 0 to 100.
///
/// Orders without a match are smoothed as sacrebleu's `exp` does: the first counts half a match, the next a quarter.
#[derive(Debug, Clone, Default)]
pub struct Bleu {
    hits: [usize; 4],
    runs: [usize; 4],
    right_length: usize,
    written_length: usize,
}

impl Bleu {
    /// Counts one text.
    pub fn add(&mut self, right: &str, written: &str) {
        let (right, written) = (bleu_words(right), bleu_words(written));
        self.right_length += right.len();
        self.written_length += written.len();
        for size in 1..=4 {
            let runs = ngrams(&written, size);
            self.hits[size - 1] += shared(&runs, &ngrams(&right, size));
            self.runs[size - 1] += runs.values().sum::<usize>();
        }
    }

    /// The score of all texts together.
    pub fn score(&self) -> f64 {
        if self.hits[0] == 0 {
            return 0.0;
        }
        let mut half = 1.0;
        let mut logs = Vec::new();
        for (hits, runs) in self.hits.iter().zip(self.runs).filter(|(_, runs)| *runs > 0) {
            let hits = if *hits == 0 {
                half /= 2.0;
                half
            } else {
                *hits as f64
            };
            logs.push((hits / runs as f64).ln());
        }
        let brevity = (1.0 - self.right_length as f64 / self.written_length as f64).min(0.0);
        // Texts too short for four words have fewer orders; sacrebleu gives those 0.
        if logs.len() < 4 { 0.0 } else { 100.0 * (brevity + logs.iter().sum::<f64>() / 4.0).exp() }
    }
}

/// Words and punctuation marks.
fn bleu_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for chunk in text.split_whitespace() {
        let mut word = String::new();
        for letter in chunk.chars() {
            if letter.is_alphanumeric() {
                word.push(letter);
            } else {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                words.push(letter.to_string());
            }
        }
        words.extend((!word.is_empty()).then_some(word));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(ours: f64, wanted: f64) {
        assert!((ours - wanted).abs() < 1e-9, "{ours} and not {wanted}");
    }

    /// The example of Lin's paper, section 3: S1 "police killed the gunman" and two others.
    #[test]
    fn the_papers_sentences() {
        let right = "police killed the gunman";
        close(rouge_l(right, "Police kill the gunman."), 0.75);
        close(rouge_l(right, "the gunman kill police"), 0.5);
        close(rouge_n(right, "police kill the gunman", 2), 1.0 / 3.0);
        close(rouge_n(right, "the gunman kill police", 1), 0.75);
        assert_eq!((rouge_l(right, ""), rouge_n("", "", 1)), (0.0, 0.0));
    }

    #[test]
    fn bleu_counts_over_the_corpus() {
        let mut bleu = Bleu::default();
        bleu.add("the cat is on the mat", "the cat is on the mat");
        close(bleu.score(), 100.0);
        // Hits 6+4 of 6+5, 5+2 of 5+4, 4+1 of 4+3, 3+0 of 3+2 runs; 12 right words, 11 written.
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
