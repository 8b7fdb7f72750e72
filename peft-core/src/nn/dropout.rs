//! Dropout.

use burn::module::{Flag, Module, Param};
use burn::tensor::Tensor;

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
