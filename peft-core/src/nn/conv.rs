//! Convolutions.

use burn::module::{Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};

use super::lazy::{INITIALIZER_RANGE, constant, normal};
use crate::forward;

/// A convolution along one axis: torch's `nn.Conv1d`.
#[derive(Module, Debug)]
pub struct Conv1d {
    /// `[out, in / groups, width]`
    pub weight: Param<Tensor<3>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    padding: usize,
    stride: usize,
    groups: usize,
}

impl Conv1d {
    /// A lazy layer from `in` to `out` channels, with a stride of 1.
    pub fn new([d_input, d_output]: [usize; 2], width: usize, groups: usize, device: &Device) -> Self {
        Self {
            weight: normal([d_output, d_input / groups, width], INITIALIZER_RANGE, device),
            bias: constant([d_output], 0.0, device),
            padding: 0,
            stride: 1,
            groups,
        }
    }

    /// With so many zeros at either end.
    pub fn with_padding(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// With so many places from one output to the next.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// # Shapes
    /// - input: `[batch, in, length]`
    /// - output: `[batch, out, (length + 2 · padding − width) / stride + 1]`
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        forward::by_rows(self, input, |it, input| {
            let options = ConvOptions::new([it.stride], [it.padding], [1], it.groups);
            burn::tensor::module::conv1d(input, it.weight.val(), Some(it.bias.val()), options)
        })
    }
}
