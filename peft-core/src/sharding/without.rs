//! Without the CPU backend nothing is in pieces.

use burn::tensor::{Device, Tensor};

use super::base::ShardedBase;
use crate::error::{PeftError, Result};
use crate::quant::{self, Packed};

/// Whether a tensor is in codes.
pub(crate) fn is_packed<const D: usize>(tensor: Tensor<D>) -> bool {
    quant::is_packed(tensor.dtype())
}

impl ShardedBase {
    /// # Errors
    /// Always, in a build without that backend.
    pub(crate) fn tensor(&self, _matrix: usize, _device: &Device) -> Result<Tensor<2>> {
        let reason = "only the CPU backend computes with it: build with the feature `flex`";
        Err(PeftError::unsupported("a base in pieces", reason))
    }

    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub(crate) fn packed(&self, _key: &str, _matrix: &Packed<'_>, device: &Device) -> Result<Tensor<2>> {
        self.tensor(0, device)
    }
}
