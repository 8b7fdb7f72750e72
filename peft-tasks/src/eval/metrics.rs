//! How good predictions are. The definitions are those of scikit-learn and scipy, with 0 for a ratio of nothing.

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

/// `exp` of the mean loss: `loss` summed over `tokens` tokens, in nats.
///
/// # Errors
/// There is no token.
pub fn perplexity(loss: f64, tokens: usize) -> Result<f64> {
    match tokens {
        0 => Err(PeftError::Invalid("no token was predicted, so there is no perplexity".to_owned())),
        tokens => Ok((loss / tokens as f64).exp()),
    }
}

/// How the scores of classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Every class counts the same.
    #[default]
    Macro,
    /// Every decision counts the same.
    Micro,
    /// Every class counts as often as it is a label.
    Weighted,
}

/// Precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Of the positives that were predicted, the share that is true.
    pub precision: f64,
    /// Of the true positives and false negatives, the share that was predicted.
    pub recall: f64,
    /// `2·precision·recall / (precision + recall)`.
    pub f1: f64,
}

/// Decisions about one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    true_positives: usize,
    false_positives: usize,
    false_negatives: usize,
}

impl Counts {
    fn scores(self) -> Scores {
        let ratio = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Scores {
            precision: ratio(self.true_positives, self.true_positives + self.false_positives),
            recall: ratio(self.true_positives, self.true_positives + self.false_negatives),
            f1: ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives),
        }
    }

    fn average(classes: &[Self], average: Average) -> Scores {
        if average == Average::Micro {
            let add = |sum: Self, it: &Self| Self {
                true_positives: sum.true_positives + it.true_positives,
                false_positives: sum.false_positives + it.false_positives,
                false_negatives: sum.false_negatives + it.false_negatives,
            };
            return classes.iter().fold(Self::default(), add).scores();
        }
        let weight =
            |it: &Self| if average == Average::Macro { 1.0 } else { (it.true_positives + it.false_negatives) as f64 };
        let total: f64 = classes.iter().map(weight).sum();
        let mut sum = Scores::default();
        for class in classes.iter().filter(|_| total > 0.0) {
            let (scores, share) = (class.scores(), weight(class) / total);
            sum.precision += scores.precision * share;
            sum.recall += scores.recall * share;
            sum.f1 += scores.f1 * share;
        }
        sum
    }
}

/// Which class was taken for which, with one class a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[label, predicted]`, row by row.
    counts: Vec<usize>,
}

impl Confusion {
    /// Nothing seen yet.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts one prediction.
    ///
    /// # Errors
    /// A class that there is not.
    pub fn add(&mut self, label: usize, predicted: usize) -> Result<()> {
        if label.max(predicted) >= self.classes {
            let class = label.max(predicted);
            return Err(PeftError::Invalid(format!(
                "there is no class {class}, only 0 to {}",
                self.classes as i64 - 1
            )));
        }
        self.counts[label * self.classes + predicted] += 1;
        Ok(())
    }

    /// How often `predicted` was predicted where the label is `label`; 0 for classes that there are not.
    pub fn count(&self, label: usize, predicted: usize) -> usize {
        if label.max(predicted) < self.classes { self.counts[label * self.classes + predicted] } else { 0 }
    }

    /// Number of predictions.
    pub fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Share of correct predictions.
    pub fn accuracy(&self) -> f64 {
        let correct: usize = (0..self.classes).map(|it| self.count(it, it)).sum();
        if self.total() == 0 { 0.0 } else { correct as f64 / self.total() as f64 }
    }

    /// The scores of one class: those of class 1 are scikit-learn's default for two classes.
    pub fn class(&self, class: usize) -> Scores {
        self.about(class).scores()
    }

    /// The scores of all classes that occur, as a label or a prediction.
    pub fn average(&self, average: Average) -> Scores {
        let mut seen: Vec<Counts> = (0..self.classes).map(|it| self.about(it)).collect();
        seen.retain(|it| *it != Counts::default());
        Counts::average(&seen, average)
    }

    /// Matthews' correlation for any number of classes: 1 for all correct, 0 for chance or one class alone. Gorodkin
    /// 2004, "Comparing two K-category assignments by a K-category correlation coefficient".
    pub fn matthews(&self) -> f64 {
        let classes = 0..self.classes;
        let total = self.total() as f64;
        let correct: f64 = classes.clone().map(|it| self.count(it, it) as f64).sum();
        let labels: Vec<f64> = classes.clone().map(|it| self.row(it) as f64).collect();
        let predictions: Vec<f64> = classes.map(|it| self.column(it) as f64).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let spread = |it: &[f64]| total * total - dot(it, it);
        let scale = (spread(&labels) * spread(&predictions)).sqrt();
        if scale == 0.0 { 0.0 } else { (correct * total - dot(&labels, &predictions)) / scale }
    }

    fn about(&self, class: usize) -> Counts {
        let true_positives = self.count(class, class);
        Counts {
            true_positives,
            false_positives: self.column(class) - true_positives,
            false_negatives: self.row(class) - true_positives,
        }
    }

    fn row(&self, class: usize) -> usize {
        (0..self.classes).map(|it| self.count(class, it)).sum()
    }

    fn column(&self, class: usize) -> usize {
        (0..self.classes).map(|it| self.count(it, class)).sum()
    }
}

/// Decisions about every class, with any number of classes a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiLabel {
    classes: Vec<Counts>,
    rows: usize,
    exact: usize,
}

impl MultiLabel {
    /// Nothing seen yet.
    pub fn new(classes: usize) -> Self {
        Self { classes: vec![Counts::default(); classes], rows: 0, exact: 0 }
    }

    /// Counts one row: a flag for every class, `[classes]`.
    ///
    /// # Errors
    /// Not as many flags as classes.
    pub fn add(&mut self, labels: &[bool], predicted: &[bool]) -> Result<()> {
        same_length(labels.len(), predicted.len())?;
        same_length(labels.len(), self.classes.len())?;
        for (counts, flags) in self.classes.iter_mut().zip(labels.iter().zip(predicted)) {
            match flags {
                (true, true) => counts.true_positives += 1,
                (false, true) => counts.false_positives += 1,
                (true, false) => counts.false_negatives += 1,
                (false, false) => {}
            }
        }
        self.rows += 1;
        self.exact += usize::from(labels == predicted);
        Ok(())
    }

    /// Share of rows that are correct in every class.
    pub fn accuracy(&self) -> f64 {
        if self.rows == 0 { 0.0 } else { self.exact as f64 / self.rows as f64 }
    }

    /// The scores of all classes.
    pub fn average(&self, average: Average) -> Scores {
        Counts::average(&self.classes, average)
    }
}

/// Mean squared error.
///
/// # Errors
/// Lists of unlike lengths, or empty ones; so for all functions of two lists here.
pub fn mean_squared_error(labels: &[f64], predicted: &[f64]) -> Result<f64> {
    same_length(labels.len(), predicted.len())?;
    Ok(labels.iter().zip(predicted).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / labels.len() as f64)
}

/// Mean absolute error.
pub fn mean_absolute_error(labels: &[f64], predicted: &[f64]) -> Result<f64> {
    same_length(labels.len(), predicted.len())?;
    Ok(labels.iter().zip(predicted).map(|(a, b)| (a - b).abs()).sum::<f64>() / labels.len() as f64)
}

/// Pearson's correlation. `None` where one list is all the same number: early models predict one value for all.
pub fn pearson(labels: &[f64], predicted: &[f64]) -> Result<Option<f64>> {
    same_length(labels.len(), predicted.len())?;
    let mean = |it: &[f64]| it.iter().sum::<f64>() / it.len() as f64;
    let (mean_labels, mean_predicted) = (mean(labels), mean(predicted));
    let (mut joint, mut spread_labels, mut spread_predicted) = (0.0, 0.0, 0.0);
    for (a, b) in labels.iter().zip(predicted) {
        let (a, b) = (a - mean_labels, b - mean_predicted);
        joint += a * b;
        spread_labels += a * a;
        spread_predicted += b * b;
    }
    let scale = (spread_labels * spread_predicted).sqrt();
    Ok((scale > 0.0).then(|| (joint / scale).clamp(-1.0, 1.0)))
}

/// Spearman's correlation: Pearson's of the ranks, equal numbers sharing their mean rank.
pub fn spearman(labels: &[f64], predicted: &[f64]) -> Result<Option<f64>> {
    pearson(&ranks(labels), &ranks(predicted))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for equals in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let shared = start as f64 + (equals.len() - 1) as f64 / 2.0;
        equals.iter().for_each(|it| ranks[*it] = shared);
        start += equals.len();
    }
    ranks
}

fn same_length(labels: usize, predicted: usize) -> Result<()> {
    match (labels, predicted) {
        (0, 0) => Err(PeftError::Invalid("there is nothing to compare".to_owned())),
        (a, b) if a != b => Err(PeftError::Invalid(format!("{a} labels cannot be compared with {b} predictions"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: scikit-learn 1.x and scipy 1.x on the same lists (`f1_score(labels, predicted, average=…)`,
    // `matthews_corrcoef`, `pearsonr`, `spearmanr`).

    #[track_caller]
    fn close(ours: f64, theirs: f64) {
        assert!((ours - theirs).abs() < 1e-12, "{ours} and not {theirs}");
    }

    fn confusion(labels: &[usize], predicted: &[usize]) -> Confusion {
        // One class more than occurs: it must not count.
        let mut confusion = Confusion::new(labels.iter().max().unwrap() + 2);
        labels.iter().zip(predicted).for_each(|(a, b)| confusion.add(*a, *b).unwrap());
        confusion
    }

    #[test]
    fn one_of_several_classes() {
        let confusion = confusion(&[0, 1, 2, 2, 1, 0, 2, 3], &[0, 2, 2, 2, 1, 1, 0, 2]);
        close(confusion.accuracy(), 0.5);
        close(confusion.matthews(), 0.27975144247209416);
        let scores = confusion.average(Average::Macro);
        close(scores.precision, 0.375);
        close(scores.recall, 0.4166666666666667);
        close(scores.f1, 0.39285714285714285);
        close(confusion.average(Average::Micro).f1, 0.5);
        let scores = confusion.average(Average::Weighted);
        close(scores.precision, 0.4375);
        close(scores.f1, 0.4642857142857143);
        assert_eq!((confusion.count(2, 0), confusion.count(9, 0), confusion.total()), (1, 0, 8));
    }

    #[test]
    fn two_classes() {
        let confusion = confusion(&[1, 1, 0, 0, 1, 0], &[1, 0, 0, 1, 1, 0]);
        close(confusion.class(1).f1, 2.0 / 3.0);
        close(confusion.matthews(), 1.0 / 3.0);
    }

    #[test]
    fn nothing_seen_and_classes_that_are_not() {
        let mut confusion = Confusion::new(2);
        assert_eq!((confusion.accuracy(), confusion.matthews()), (0.0, 0.0));
        assert_eq!(confusion.average(Average::Macro), Scores::default());
        assert_eq!(confusion.average(Average::Weighted), Scores::default());
        assert_eq!(confusion.add(0, 2).unwrap_err().to_string(), "there is no class 2, only 0 to 1");
        confusion.add(1, 1).unwrap();
        assert_eq!((confusion.accuracy(), confusion.matthews()), (1.0, 0.0));
    }

    #[test]
    fn several_classes_a_row() {
        let mut seen = MultiLabel::new(3);
        let rows = [([1, 0, 1], [1, 0, 0]), ([0, 0, 0], [0, 1, 0]), ([1, 1, 0], [1, 1, 0]), ([0, 1, 0], [0, 0, 0])];
        for (labels, predicted) in rows {
            seen.add(&labels.map(|it| it == 1), &predicted.map(|it| it == 1)).unwrap();
        }
        close(seen.accuracy(), 0.25);
        close(seen.average(Average::Macro).f1, 0.5);
        close(seen.average(Average::Micro).f1, 2.0 / 3.0);
        close(seen.average(Average::Weighted).f1, 0.6);
        assert!(seen.add(&[true], &[true]).is_err());
    }

    #[test]
    fn numbers() {
        let (labels, predicted) = ([1.0, 2.5, 2.5, 4.0, -1.0, 7.0], [1.5, 2.0, 3.0, 3.5, -2.0, 5.0]);
        close(pearson(&labels, &predicted).unwrap().unwrap(), 0.9389679971404665);
        close(spearman(&labels, &predicted).unwrap().unwrap(), 0.9856107606091624);
        close(mean_squared_error(&labels, &predicted).unwrap(), 1.0);
        close(mean_absolute_error(&labels, &predicted).unwrap(), 0.8333333333333334);
        assert_eq!(pearson(&labels, &[2.0; 6]).unwrap(), None);
        assert_eq!(spearman(&[1.0], &[1.0]).unwrap(), None);
        assert!(mean_squared_error(&labels, &[]).is_err() && pearson(&[], &[]).is_err());
    }

    #[test]
    fn perplexities() {
        close(perplexity(10.0 * 8f64.ln(), 10).unwrap(), 8.0);
        assert!(perplexity(0.0, 0).is_err());
    }
}
