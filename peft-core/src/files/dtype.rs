//! The numbers that a base is stored in, where it goes, and what is written.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};
pub use safetensors::Dtype;

use crate::error::{PeftError, Result};

/// In which numbers the frozen matrices of a base are stored: `dtype` of transformers.
///
/// The matrices are the weights of [`Projection`](crate::nn::Projection), [`Gpt2Linear`](crate::nn::Gpt2Linear) and
/// [`Embedding`](crate::nn::Embedding). Norms, biases and convolutions are stored in single precision, and so are adapters
/// and all that is computed: halves are widened where they meet activations, which changes no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseDtype {
    /// Single precision, whatever the file has.
    #[default]
    Float32,
    /// What the file has: bf16 and f16 stay as they are, which takes half the memory and gives the same results, bit for
    /// bit. Nothing is copied on the CPU: the matrices are the mapped file, which must stay as it is.
    Auto,
    /// Rounded to bf16, if the file has something else. That is another base, with other results.
    BFloat16,
    /// Rounded to f16, if the file has something else. That is another base, with other results.
    Float16,
}

impl BaseDtype {
    /// In what a tensor of this type is kept.
    pub(super) fn of(self, stored: Dtype) -> DType {
        match (self, stored) {
            (Self::Auto, Dtype::BF16) | (Self::BFloat16, _) => DType::BF16,
            (Self::Auto, Dtype::F16) | (Self::Float16, _) => DType::F16,
            (Self::Float32 | Self::Auto, _) => DType::F32,
        }
    }

    /// Whether numbers of a file that is stored in `float` are rounded.
    pub fn rounds(self, float: FloatType) -> bool {
        match self {
            Self::Float32 | Self::Auto => false,
            Self::BFloat16 => float != FloatType::BF16,
            Self::Float16 => float != FloatType::F16,
        }
    }
}

const DTYPES: [(&str, BaseDtype); 4] = [
    ("float32", BaseDtype::Float32),
    ("auto", BaseDtype::Auto),
    ("bfloat16", BaseDtype::BFloat16),
    ("float16", BaseDtype::Float16),
];

impl FromStr for BaseDtype {
    type Err = PeftError;

    fn from_str(text: &str) -> Result<Self> {
        let known = DTYPES.iter().find(|it| it.0 == text).map(|it| it.1);
        known.ok_or_else(|| {
            PeftError::Invalid(format!("there is no dtype `{text}`; choose {}", DTYPES.map(|it| it.0).join(", ")))
        })
    }
}

impl fmt::Display for BaseDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DTYPES.iter().find(|it| it.1 == *self).map_or("", |it| it.0))
    }
}

/// Where a base goes, and in which numbers its matrices are kept.
///
/// A device alone means single precision: `load_causal_lm(folder, &device)`.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Where all tensors go.
    pub device: Device,
    /// What the matrices are stored in.
    pub dtype: BaseDtype,
}

impl Placement {
    /// On a device, in single precision.
    pub fn on(device: &Device) -> Self {
        Self { device: device.clone(), dtype: BaseDtype::default() }
    }

    /// With matrices in other numbers.
    pub fn with_dtype(self, dtype: BaseDtype) -> Self {
        Self { dtype, ..self }
    }
}

impl From<&Device> for Placement {
    fn from(device: &Device) -> Self {
        Self::on(device)
    }
}

impl From<&Placement> for Placement {
    fn from(placement: &Placement) -> Self {
        placement.clone()
    }
}

/// Element type of written floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum FloatType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, half precision.
    F16,
    /// 16 bits, brain float.
    BF16,
}
