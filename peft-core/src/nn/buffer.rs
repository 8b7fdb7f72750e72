//! Tensors that are no parameters.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::lazy::constant;

/// A tensor of the checkpoint that is never trained and counts as no parameter: torch's buffer.
///
/// Its path is that of the field that holds it.
#[derive(Module, Debug)]
pub struct Buffer {
    /// `[rows, columns]`
    pub value: Param<Tensor<2>>,
}

impl Buffer {
    /// A lazy buffer of zeros.
    pub fn zeros(shape: [usize; 2], device: &Device) -> Self {
        Self { value: constant(shape, 0.0, device) }
    }
}
