//! Matrices in 4 or 8 bits a number, as bitsandbytes keeps them.
//!
//! A base may be stored so, under adapters in full precision. [`QuantFormat`] says how numbers become codes, and
//! [`Packed`] is a matrix of codes with its scales, which nobody widens as a whole: products widen the lines that they
//! are about to read. A further format is a file beside `four_bit` and `int8`, and an arm in `packed`.
//!
//! Source: bitsandbytes 0.50.2, whose files and numbers these are.

pub mod config;
pub mod four_bit;
pub mod int8;
pub mod packed;
pub mod scales;
#[cfg(feature = "flex")]
mod tensor;
#[cfg(test)]
mod tests;

pub use config::QuantConfig;
pub use four_bit::FourBit;
pub use packed::{Packed, QuantFormat, Quantized, Rounding};
pub use scales::Scales;
#[cfg(feature = "flex")]
pub(crate) use tensor::{is_packed, view, widen};
#[cfg(feature = "flex")]
pub use tensor::{packed_tensor, quantized, widened};

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
