//! Linear layers.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::lazy::{INITIALIZER_RANGE, constant, normal};
use crate::forward;
use crate::ops::Layout;

/// A linear layer in the checkpoint's layout: torch's `nn.Linear`.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Projection {
    /// A lazy layer; weights of no checkpoint come from N(0, 0.02).
    pub fn new(d_input: usize, d_output: usize, bias: bool, device: &Device) -> Self {
        Self {
            weight: normal([d_output, d_input], INITIALIZER_RANGE, device),
            bias: bias.then(|| constant([d_output], 0.0, device)),
        }
    }

    /// The weight as it is stored, `[out, in]`, if the forward is a product with it: without a bias and without an active adapter.
    pub fn bare_weight(&self) -> Option<Tensor<2>> {
        if self.bias.is_some() { None } else { forward::bare_weight(&self.weight) }
    }

    /// # Shapes
    /// - input: `[.., in]`
    /// - output: `[.., out]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::linear(input, &self.weight, self.bias.as_ref(), Layout::OutIn)
    }
}

/// The linear layer of GPT-2, stored input first: transformers' `Conv1D`.
#[derive(Module, Debug)]
pub struct Gpt2Linear {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
}

impl Gpt2Linear {
    /// A lazy layer.
    pub fn new(d_input: usize, d_output: usize, device: &Device) -> Self {
        Self { weight: normal([d_input, d_output], INITIALIZER_RANGE, device), bias: constant([d_output], 0.0, device) }
    }

    /// # Shapes
    /// - input: `[.., in]`
    /// - output: `[.., out]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::linear(input, &self.weight, Some(&self.bias), Layout::InOut)
    }
}
