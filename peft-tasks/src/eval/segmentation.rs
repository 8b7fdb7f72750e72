//! How well the classes of pixels are found.

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

/// Counts of pixels by class and by what was predicted. Source: `mean_iou` of Hugging Face's `evaluate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelCounts {
    /// Pixels of a class that were predicted to be of it.
    hits: Vec<u64>,
    /// Pixels of a class.
    labelled: Vec<u64>,
    /// Pixels that were predicted to be of a class.
    predicted: Vec<u64>,
}

impl PixelCounts {
    /// No pixel yet.
    pub fn new(classes: usize) -> Self {
        Self { hits: vec![0; classes], labelled: vec![0; classes], predicted: vec![0; classes] }
    }

    /// Counts a pixel. Those that have no label are not to be counted.
    ///
    /// # Errors
    /// If there is no such class.
    pub fn add(&mut self, label: usize, predicted: usize) -> Result<()> {
        let classes = self.hits.len();
        if label >= classes || predicted >= classes {
            let reason = format!("class {} of a pixel is none of the {classes} that there are", label.max(predicted));
            return Err(PeftError::Invalid(reason));
        }
        self.hits[label] += u64::from(label == predicted);
        self.labelled[label] += 1;
        self.predicted[predicted] += 1;
        Ok(())
    }

    /// Counts what another counted, of the same classes.
    pub fn join(&mut self, other: &Self) {
        let join = |own: &mut [u64], other: &[u64]| own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
        join(&mut self.hits, &other.hits);
        join(&mut self.labelled, &other.labelled);
        join(&mut self.predicted, &other.predicted);
    }

    /// Intersection over union of each class; `None` for one that is neither labelled nor predicted.
    pub fn iou(&self) -> Vec<Option<f64>> {
        self.ratios(|at| self.labelled[at] + self.predicted[at] - self.hits[at])
    }

    /// The share of the pixels of each class that was found; `None` for one without pixels.
    pub fn accuracy(&self) -> Vec<Option<f64>> {
        self.ratios(|at| self.labelled[at])
    }

    fn ratios(&self, whole: impl Fn(usize) -> u64) -> Vec<Option<f64>> {
        let ratio = |at: usize| (whole(at) > 0).then(|| self.hits[at] as f64 / whole(at) as f64);
        (0..self.hits.len()).map(ratio).collect()
    }

    /// The mean of [`iou`](Self::iou) over the classes that have one; 0 if none has.
    pub fn mean_iou(&self) -> f64 {
        mean(&self.iou())
    }

    /// The mean of [`accuracy`](Self::accuracy) over the classes that have one; 0 if none has.
    pub fn mean_accuracy(&self) -> f64 {
        mean(&self.accuracy())
    }

    /// The share of all pixels that was found; 0 if there is none.
    pub fn overall_accuracy(&self) -> f64 {
        let labelled: u64 = self.labelled.iter().sum();
        let hits: u64 = self.hits.iter().sum();
        if labelled == 0 { 0.0 } else { hits as f64 / labelled as f64 }
    }
}

fn mean(ratios: &[Option<f64>]) -> f64 {
    let known: Vec<f64> = ratios.iter().flatten().copied().collect();
    if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: a class that appears only in predictions counts in the mean IoU with 0, one that appears nowhere not.
    #[test]
    fn ratios_of_a_small_picture() {
        let mut counts = PixelCounts::new(4);
        for (label, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2)] {
            counts.add(label, predicted).unwrap();
        }
        assert_eq!(counts.iou(), [Some(2.0 / 3.0), Some(1.0 / 3.0), Some(0.0), None]);
        assert_eq!(counts.accuracy(), [Some(2.0 / 3.0), Some(0.5), None, None]);
        assert!((counts.mean_iou() - 1.0 / 3.0).abs() < 1e-12);
        assert!((counts.mean_accuracy() - 7.0 / 12.0).abs() < 1e-12);
        assert!((counts.overall_accuracy() - 0.6).abs() < 1e-12);
        assert!(counts.add(4, 0).is_err());
        assert_eq!(PixelCounts::new(2).mean_iou(), 0.0);
    }
}
