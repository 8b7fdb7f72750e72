//! Scores of whole entities in tagged text, as seqeval gives them by default: an entity counts where its type and both
//! of its ends agree with a label.
//!
//! Source of the rules: the `conlleval` script of CoNLL-2000 by Erik Tjong Kim Sang, which seqeval follows.

use peft_core::{PeftError, Result};

use crate::eval::metrics::Scores;

/// An entity: its type, its first word and its last.
type Entity<'a> = (&'a str, usize, usize);

/// Counts over many sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityScores {
    labelled: usize,
    predicted: usize,
    true_positives: usize,
    words: usize,
    correct_words: usize,
}

impl EntityScores {
    /// Counts one sequence: a tag for every word, such as `O`, `B-PER`, `I-PER`.
    ///
    /// # Errors
    /// Not as many tags of one as of the other.
    pub fn add<T: AsRef<str>>(&mut self, labels: &[T], predicted: &[T]) -> Result<()> {
        if labels.len() != predicted.len() {
            let counts = format!("{} tags cannot be compared with {}", labels.len(), predicted.len());
            return Err(PeftError::Invalid(counts));
        }
        let (truth, found) = (entities(labels), entities(predicted));
        self.labelled += truth.len();
        self.predicted += found.len();
        self.true_positives += found.iter().filter(|it| truth.contains(it)).count();
        self.words += labels.len();
        self.correct_words += labels.iter().zip(predicted).filter(|(a, b)| a.as_ref() == b.as_ref()).count();
        Ok(())
    }

    /// Precision, recall and F1 of entities; 0 where there are none.
    pub fn scores(&self) -> Scores {
        let share = |part: usize, of: usize| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let (precision, recall) =
            (share(self.true_positives, self.predicted), share(self.true_positives, self.labelled));
        let sum = precision + recall;
        Scores { precision, recall, f1: if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum } }
    }

    /// Share of words whose predicted tag is the label.
    pub fn accuracy(&self) -> f64 {
        if self.words == 0 { 0.0 } else { self.correct_words as f64 / self.words as f64 }
    }
}

/// The entities of a sequence. Schemes mix: `B` starts, `I` goes on, `E` ends and `S` stands alone; an `I` without a `B`
/// before it starts an entity all the same.
fn entities<T: AsRef<str>>(tags: &[T]) -> Vec<Entity<'_>> {
    let mut found = Vec::new();
    let (mut before, mut kind, mut first) = ('O', "", 0);
    for (at, tag) in tags.iter().map(|it| split(it.as_ref())).chain([('O', "_")]).enumerate() {
        let (place, next) = tag;
        if ends(before, kind, place, next) {
            found.push((kind, first, at - 1));
        }
        if starts(before, kind, place, next) {
            first = at;
        }
        (before, kind) = tag;
    }
    found
}

/// `B-PER` to `('B', "PER")`, `O` to `('O', "_")`.
fn split(tag: &str) -> (char, &str) {
    let mut rest = tag.chars();
    let place = rest.next().unwrap_or('O');
    let rest = rest.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (place, if kind.is_empty() { "_" } else { kind })
}

fn outside(place: char) -> bool {
    matches!(place, 'O' | '.')
}

fn ends(before: char, kind: &str, place: char, next: &str) -> bool {
    matches!(before, 'E' | 'S')
        || (matches!(before, 'B' | 'I') && matches!(place, 'B' | 'S' | 'O'))
        || (!outside(before) && kind != next)
}

fn starts(before: char, kind: &str, place: char, next: &str) -> bool {
    matches!(place, 'B' | 'S')
        || (matches!(before, 'E' | 'S' | 'O') && matches!(place, 'E' | 'I'))
        || (!outside(place) && kind != next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_of_mixed_schemes() {
        let of = |text: &str| {
            let tags: Vec<String> = text.split(' ').map(str::to_owned).collect();
            entities(&tags).into_iter().map(|(kind, first, last)| format!("{kind}{first}{last}")).collect::<Vec<_>>()
        };
        assert_eq!(of("B-PER I-PER O B-LOC"), ["PER01", "LOC33"]);
        assert_eq!(of("I-PER I-LOC B-LOC O"), ["PER00", "LOC11", "LOC22"]);
        assert_eq!(of("B-A I-A E-A S-B E-B I-B"), ["A02", "B33", "B44", "B55"]);
        assert_eq!(of("NOUN VERB VERB"), ["OUN00", "ERB12"]);
        assert!(of("O O .").is_empty());
    }

    /// The example in seqeval's README: precision, recall and F1 are 0.50, accuracy 0.80.
    #[test]
    fn the_readme_of_seqeval() {
        let mut scores = EntityScores::default();
        let labels = ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"];
        let predicted = ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"];
        scores.add(&labels, &predicted).unwrap();
        scores.add(&["B-PER", "I-PER", "O"], &["B-PER", "I-PER", "O"]).unwrap();
        assert_eq!(scores.scores(), Scores { precision: 0.5, recall: 0.5, f1: 0.5 });
        assert_eq!(scores.accuracy(), 0.8);
        assert!(scores.add(&["O"], &[]).is_err());
    }
}
