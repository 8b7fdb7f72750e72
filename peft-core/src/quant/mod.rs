//! Matrices in 4 or 8 bits a number, as bitsandbytes, GPTQ and AWQ keep them.
//!
//! A base may be stored so, under adapters in full precision. [`QuantFormat`] says how numbers become codes, and
//! [`Packed`] is a matrix of codes with its scales, which nobody widens as a whole: products widen the lines that they
//! are about to read. A further format is a file beside `four_bit`, `int8` and `grouped`, and an arm in `packed`.
//!
//! Source: bitsandbytes 0.50.2, whose files and numbers these are; `grouped` has sources of its own.

pub mod config;
pub mod four_bit;
pub mod grouped;
pub mod int8;
pub mod packed;
pub mod rounding;
pub mod scales;
#[cfg(feature = "flex")]
mod tensor;
#[cfg(test)]
pub(crate) mod tests;

pub use config::{QuantConfig, StoredQuant};
pub use four_bit::FourBit;
pub use grouped::{GroupBits, Grouped, GroupedConfig, Groups};
#[cfg(feature = "flex")]
pub(crate) use int8::steps_per;
pub use packed::{Packed, QuantFormat, Quantized};
pub use rounding::Rounding;
pub use scales::Scales;
#[cfg(feature = "flex")]
pub(crate) use tensor::{carried, cpu, is_packed, packed_words, view, widen};
#[cfg(feature = "flex")]
pub use tensor::{packed_tensor, quantized};

/// Only the CPU backend computes with packed matrices.
///
/// # Errors
/// Always, in a build without that backend.
#[cfg(not(feature = "flex"))]
pub fn packed_tensor(
    matrix: &Packed<'_>,
    _device: &burn::tensor::Device,
) -> crate::error::Result<burn::tensor::Tensor<2>> {
    let what = format!("a base in {}", matrix.format.name());
    Err(crate::error::PeftError::unsupported(
        what,
        "only the CPU backend computes with it: build with the feature `flex`",
    ))
}
