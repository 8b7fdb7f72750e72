//! Dropout.

use burn::module::{Flag, Module, Param};
use burn::tensor::{Distribution, Tensor};

use crate::ops;

/// Sets elements to zero at random while training, and scales the others up.
///
/// Unlike Burn's, it does not ask whether its input is on an autodiff device: below the lowest adapter nothing is
/// tracked, and the reference drops there all the same.
#[derive(Module, Debug)]
pub struct Dropout {
    probability: f64,
    training: Param<Flag>,
}

impl Dropout {
    /// `probability` is the share of elements that are dropped, 0 ≤ p < 1.
    pub fn new(probability: f64) -> Self {
        Self { probability, training: Param::from_bool(true) }
    }

    /// Whether a forward drops anything now.
    pub fn is_active(&self) -> bool {
        self.probability > 0.0 && self.training.is_enabled()
    }

    /// The share of elements that are dropped.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// The share of elements that a forward drops now: 0 unless the layer trains.
    pub fn rate(&self) -> f64 {
        if self.is_active() { self.probability } else { 0.0 }
    }

    /// The input, with elements dropped if the layer trains.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        ops::dropout(input, self.rate())
    }
}

impl From<&Dropout> for f64 {
    fn from(dropout: &Dropout) -> Self {
        dropout.rate()
    }
}

/// Drops what a block adds for whole rows of the batch while training, and scales it up for the others: stochastic depth.
///
/// Source: Huang et al., "Deep Networks with Stochastic Depth"; `SwinDropPath` of transformers.
#[derive(Module, Debug)]
pub struct DropPath {
    probability: f64,
    training: Param<Flag>,
}

impl DropPath {
    /// `probability` is the share of rows that are dropped, 0 ≤ p < 1.
    pub fn new(probability: f64) -> Self {
        Self { probability, training: Param::from_bool(true) }
    }

    /// The rates of so many layers in a row: from 0 to `rate`, in even steps.
    pub fn rates(rate: f64, layers: usize) -> impl Iterator<Item = f64> {
        let last = layers.saturating_sub(1).max(1) as f64;
        (0..layers).map(move |layer| rate * layer as f64 / last)
    }

    /// # Shapes
    /// - input, output: `[batch, ..]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        if self.probability == 0.0 || !self.training.is_enabled() {
            return input;
        }
        let keep = 1.0 - self.probability;
        let mut rows = [1; D];
        rows[0] = input.dims()[0];
        let mask = ops::random(rows, Distribution::Bernoulli(keep), &input.device());
        input * mask.mul_scalar(1.0 / keep)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::set_training;

    #[test]
    fn whole_rows_are_dropped_and_the_mean_stays() {
        let device = Device::flex();
        let input = Tensor::<3>::ones([4000, 2, 3], &device);
        let drop = DropPath::new(0.25);
        let output = drop.forward(input.clone()).into_data().try_into_vec::<f32>().unwrap();
        let rows: Vec<&[f32]> = output.chunks(6).collect();
        assert!(rows.iter().all(|row| row.iter().all(|it| *it == row[0])), "a row in parts");
        let dropped = rows.iter().filter(|it| it[0] == 0.0).count();
        assert!((850..1150).contains(&dropped), "{dropped} of 4000");
        assert!(rows.iter().all(|it| it[0] == 0.0 || (it[0] - 4.0 / 3.0).abs() < 1e-6));
        let still = set_training(drop, false).forward(input.clone());
        assert_eq!(still.into_data(), input.into_data());
    }

    #[test]
    fn rates_rise_to_the_last_layer() {
        assert_eq!(DropPath::rates(0.3, 4).map(|it| (it * 10.0).round()).collect::<Vec<_>>(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(DropPath::rates(0.3, 1).collect::<Vec<_>>(), [0.0]);
    }
}
