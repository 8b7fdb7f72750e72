//! How well predicted answers agree with reference answers: the metrics of SQuAD (Rajpurkar et al. 2016, 2018).
//!
//! The definitions are those of SQuAD's script `evaluate-v2.0.py`. Where every reference answer has a word, the script of
//! version 1.1 gives the same.

use std::collections::HashMap;

/// 1 if the prediction is one of the references, but for case, punctuation and articles, else 0. Without a reference, the
/// empty prediction is correct.
pub fn exact_match(references: &[String], prediction: &str) -> f64 {
    best(references, |it| f64::from(u8::from(words(it) == words(prediction))))
}

/// F1 of the words that a prediction shares with a reference; the best over the references.
pub fn f1(references: &[String], prediction: &str) -> f64 {
    best(references, |it| overlap(&words(it), &words(prediction)))
}

fn best(references: &[String], score: impl Fn(&str) -> f64) -> f64 {
    // An answer without a word in it is none.
    let mut scores: Vec<f64> = references.iter().filter(|it| !words(it).is_empty()).map(|it| score(it)).collect();
    if scores.is_empty() {
        scores.push(score(""));
    }
    scores.into_iter().fold(0.0, f64::max)
}

fn overlap(reference: &[String], prediction: &[String]) -> f64 {
    if reference.is_empty() || prediction.is_empty() {
        return f64::from(u8::from(reference == prediction));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in reference {
        *left.entry(word).or_default() += 1;
    }
    let mut shared = 0;
    for word in prediction {
        if let Some(count) = left.get_mut(word.as_str()).filter(|it| **it > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    2.0 * f64::from(shared) / (reference.len() + prediction.len()) as f64
}

/// Words in lower case, without ASCII punctuation and articles.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let mut kept = String::new();
    let mut run = String::new();
    let flush = |run: &mut String, kept: &mut String| {
        kept.push_str(if ["a", "an", "the"].contains(&run.as_str()) { " " } else { run });
        run.clear();
    };
    // Articles are looked for after punctuation is gone, between what is no letter: `the-best` is `thebest`.
    for letter in lower.chars().filter(|it| !it.is_ascii_punctuation()) {
        if letter.is_alphanumeric() {
            run.push(letter);
        } else {
            flush(&mut run, &mut kept);
            kept.push(letter);
        }
    }
    flush(&mut run, &mut kept);
    kept.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(answers: &[&str]) -> Vec<String> {
        answers.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn case_punctuation_and_articles_do_not_count() {
        assert_eq!(words("The  Cat's an-other, A\u{2013}b!"), ["cats", "another", "\u{2013}b"]);
        assert_eq!(exact_match(&references(&["the Eiffel Tower"]), "Eiffel tower."), 1.0);
        assert_eq!(exact_match(&references(&["Paris", "in Paris"]), "In paris"), 1.0);
        assert_eq!(exact_match(&references(&["Paris"]), "in Paris"), 0.0);
    }

    /// By hand: 2 of 3 predicted words among 4 of the reference; the better of two references; words count as often as they are.
    #[test]
    fn shared_words() {
        assert_eq!(f1(&references(&["big red fire engine"]), "red engine house"), 4.0 / 7.0);
        assert_eq!(f1(&references(&["one two", "two"]), "two"), 1.0);
        assert_eq!(f1(&references(&["very very good"]), "very good good"), 4.0 / 6.0);
        assert_eq!(f1(&references(&["x"]), ""), 0.0);
    }

    #[test]
    fn no_answer_is_an_answer() {
        assert_eq!((exact_match(&[], ""), f1(&[], "")), (1.0, 1.0));
        assert_eq!((exact_match(&[], "yes"), f1(&references(&["the"]), "yes")), (0.0, 0.0));
        assert_eq!(exact_match(&references(&["yes"]), ""), 0.0);
    }
}
