//! Packed matrices as tensors: codes and scales travel where a frozen weight does.
//!
//! Such a tensor has the shape of its matrix, and bytes that only this module understands. Its element type is
//! [`DType::Flex32`], which no backend of Burn is asked to compute with: axes may be exchanged, and whatever looks at
//! numbers is wrong. (`DType::QFloat` would be the name for it, but sends every operation to Burn's own quantised tensors.)
//! [`to_f32`](crate::ops::to_f32) gives the numbers. Matrices [in pieces](crate::sharding) travel in the same way.

use burn::backend::DispatchDevice;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::{Bytes, DType, Device, Int, Tensor, TensorData};

use super::layout::{Header, packed_words};
use super::packed::{Packed, QuantFormat, Quantized};
use super::rounding::Rounding;
use crate::error::{PeftError, Result};

/// Whether a tensor of floats is packed.
pub(crate) fn is_packed(dtype: DType) -> bool {
    dtype == DType::Flex32
}

/// A tensor `[lines, width]` that holds a packed matrix.
///
/// # Errors
/// If the device does not compute with packed matrices: libtorch.
pub fn packed_tensor(matrix: &Packed<'_>, device: &Device) -> Result<Tensor<2>> {
    let plain = device.clone().without_autodiff();
    let dtype = match plain.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => DType::U8,
        // Not every card reads single bytes.
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => DType::U32,
        #[allow(unreachable_patterns)]
        _ => {
            let what = format!("a base in {} on {device:?}", matrix.format.name());
            return Err(PeftError::unsupported(
                what,
                "it does not compute with codes: take `flex`, or a card by `cuda`, `vulkan` or `wgpu`",
            ));
        }
    };
    let words = packed_words(matrix);
    let count = words.len() * 8 / dtype.size();
    let data = TensorData::from_bytes(Bytes::from_elems(words), [count], dtype);
    let carrier = Tensor::<1, Int>::from_data(data, (&plain, dtype));
    Ok(Tensor::from_dispatch(Dispatch::pack(carrier.into_dispatch(), Header::of(matrix))))
}

/// A matrix in fewer bits. `double` quantises the scales of blocks, too; rows have one scale each, which stays as it is.
///
/// # Errors
/// As [`packed_tensor`], or if a number is not finite.
pub fn quantized(matrix: &Tensor<2>, format: QuantFormat, double: bool, rounding: Rounding) -> Result<Tensor<2>> {
    let device = matrix.device();
    let [lines, width] = matrix.dims();
    let data = matrix.clone().into_data().convert::<f32>();
    let numbers = data.as_slice::<f32>().unwrap_or(&[]);
    let own = Quantized::new(numbers, [lines, width], format, double, rounding)?;
    packed_tensor(&own.view(), &device)
}

/// What gives bytes the shape of their matrix.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(crate) trait QuantOps: Backend {
    /// The bytes as a matrix.
    #[fusion(dtype = DType::Flex32, shape = { let _ = carrier; burn::tensor::Shape::new(header.shape()) })]
    fn pack(carrier: IntTensor<Self>, header: Header) -> FloatTensor<Self>;
}

/// Packed matrices are frozen: no gradient leads to them.
impl<B: QuantOps, C: CheckpointStrategy> QuantOps for Autodiff<B, C> {
    fn pack(carrier: IntTensor<Self>, header: Header) -> FloatTensor<Self> {
        Self::from_inner(B::pack(carrier, header))
    }
}
