//! Without the CPU backend nothing is in pieces.

use burn::tensor::{Device, Tensor};

use super::base::ShardedBase;
use crate::error::{PeftError, Result};
use crate::quant::Packed;

/// Whether a tensor is in codes, which only a card has beside that backend.
pub(crate) fn is_packed<const D: usize>(tensor: Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    return crate::quant::is_packed(tensor.dtype());
    #[cfg(not(feature = "cube"))]
    {
        let _ = tensor;
        false
    }
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
