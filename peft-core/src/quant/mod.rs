//! Matrices in 4 or 8 bits a number, as bitsandbytes, GPTQ and AWQ keep them.
//!
//! A base may be stored so, under adapters in full precision. [`QuantFormat`] says how numbers become codes, and
//! [`Packed`] is a matrix of codes with its scales. Products widen what they are about to read: on the processor some lines, on a
//! card the matrix, which is let go at once. A further format is a file beside `four_bit`, `int8` and `grouped`, an arm in `packed`,
//! and one in `cube`, which is how kernels for cards read codes.
//!
//! Source: bitsandbytes 0.50.2, whose files and numbers these are; `grouped` has sources of its own.

pub mod config;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod four_bit;
pub mod grouped;
pub mod int8;
#[cfg(any(feature = "flex", feature = "cube"))]
mod layout;
pub mod packed;
pub mod rounding;
pub mod scales;
#[cfg(any(feature = "flex", feature = "cube"))]
mod tensor;
#[cfg(test)]
pub(crate) mod tests;

pub use config::{QuantConfig, StoredQuant};
#[cfg(feature = "cube")]
pub(crate) use cube::{Coding, Parts, bytes, header, numbers, rounded_to_f16, to_even};
#[cfg(feature = "flex")]
pub(crate) use flex::{is_turned, view, widen};
pub use four_bit::FourBit;
pub use grouped::{GroupBits, Grouped, GroupedConfig, Groups};
#[cfg(feature = "cube")]
pub(crate) use int8::{ACTIVATION_STEP, STEPS};
#[cfg(feature = "flex")]
pub(crate) use int8::{ONE_STEP_OF_BOTH, steps_per};
#[cfg(feature = "cube")]
pub(crate) use layout::Header;
#[cfg(feature = "flex")]
pub(crate) use layout::packed_words;
pub use packed::{Packed, QuantFormat, Quantized};
pub use rounding::Rounding;
pub use scales::Scales;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) use tensor::is_packed;
#[cfg(any(feature = "flex", feature = "cube"))]
pub use tensor::{packed_tensor, quantized};

/// Neither libtorch nor a build without a backend computes with packed matrices.
///
/// # Errors
/// Always, in a build without `flex` and without a backend for cards.
#[cfg(not(any(feature = "flex", feature = "cube")))]
pub fn packed_tensor(
    matrix: &Packed<'_>,
    _device: &burn::tensor::Device,
) -> crate::error::Result<burn::tensor::Tensor<2>> {
    let reason = "this build does not compute with it: build with `flex`, or a backend for cards";
    Err(crate::error::PeftError::unsupported(format!("a base in {}", matrix.format.name()), reason))
}
