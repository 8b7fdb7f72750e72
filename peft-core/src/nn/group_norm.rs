//! Normalisation over groups of channels.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::lazy::constant;
use crate::forward;
use crate::ops;

/// Normalisation by mean and variance of a group of channels: torch's `nn.GroupNorm`.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`
    pub weight: Param<Tensor<1>>,
    /// `[channels]`
    pub bias: Param<Tensor<1>>,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// A lazy layer that starts as plain normalisation. `groups` must divide `channels`.
    pub fn new(groups: usize, channels: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([channels], 1.0, device), bias: constant([channels], 0.0, device), groups, epsilon }
    }

    /// # Shapes
    /// - input, output: `[batch, channels, ..]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| {
            ops::group_norm(input, it.weight.val(), it.bias.val(), it.groups, it.epsilon)
        })
    }
}
