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
mod layout;
pub mod packed;
pub mod rounding;
pub mod scales;
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
pub(crate) use tensor::is_packed;
pub use tensor::{packed_tensor, quantized};
