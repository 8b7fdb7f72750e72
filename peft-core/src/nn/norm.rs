//! Normalisations.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::lazy::constant;
use crate::forward;
use crate::ops;

/// Normalisation by mean and variance.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    /// `[d_model]`
    pub bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// A lazy layer that starts as plain normalisation.
    pub fn new(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 1.0, device), bias: constant([d_model], 0.0, device), epsilon }
    }

    /// # Shapes
    /// - input, output: `[.., d_model]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| ops::layer_norm(input, it.weight.val(), it.bias.val(), it.epsilon))
    }
}

/// Normalisation by the root of the mean square.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
    around_one: bool,
}

impl RmsNorm {
    /// A lazy layer that starts as plain normalisation.
    pub fn new(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 1.0, device), epsilon, around_one: false }
    }

    /// The same whose weight is the difference to 1 of what it multiplies by: Gemma's.
    pub fn around_one(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 0.0, device), epsilon, around_one: true }
    }

    /// # Shapes
    /// - input, output: `[.., d_model]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| {
            let weight = it.weight.val();
            ops::rms_norm(input, if it.around_one { weight.add_scalar(1.0) } else { weight }, it.epsilon)
        })
    }
}
