//! Tensors that are no parameters.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::lazy::constant;

/// A tensor of the checkpoint that is never trained and counts as no parameter: torch's buffer.
///
/// Its path is that of the field that holds it.
#[derive(Module, Debug)]
pub struct Buffer<const D: usize = 2> {
    /// The tensor.
    pub value: Param<Tensor<D>>,
}

impl<const D: usize> Buffer<D> {
    /// A lazy buffer of zeros.
    pub fn zeros(shape: [usize; D], device: &Device) -> Self {
        Self { value: constant(shape, 0.0, device) }
    }

    /// A lazy buffer of ones.
    pub fn ones(shape: [usize; D], device: &Device) -> Self {
        Self { value: constant(shape, 1.0, device) }
    }
}

/// A count that the checkpoint holds beside its parameters: a buffer that is one integer without axes, such as torch's
/// `num_batches_tracked`.
///
/// It is carried along, and exact to 2²⁴: nothing is computed with it.
#[derive(Module, Debug)]
pub struct Counter {
    /// `[1]`; in files `[]`.
    pub value: Param<Tensor<1>>,
}

impl Counter {
    /// A lazy count of 0.
    pub fn new(device: &Device) -> Self {
        Self { value: constant([1], 0.0, device) }
    }
}
