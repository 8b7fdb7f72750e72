//! The numbers that a base is stored in, where it goes, and what is written.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};
use half::{bf16, f16};
pub use safetensors::Dtype;

use crate::error::{PeftError, Result};
use crate::quant::QuantConfig;
use crate::sharding::ShardedBase;

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

    /// What floats are written in; `None` is what the file has.
    pub fn float_type(self) -> Option<FloatType> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(FloatType::F32),
            Self::BFloat16 => Some(FloatType::BF16),
            Self::Float16 => Some(FloatType::F16),
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

/// The names of transformers, and the short ones of safetensors files.
const DTYPES: [(&str, &str, BaseDtype); 4] = [
    ("float32", "f32", BaseDtype::Float32),
    ("auto", "auto", BaseDtype::Auto),
    ("bfloat16", "bf16", BaseDtype::BFloat16),
    ("float16", "f16", BaseDtype::Float16),
];

impl FromStr for BaseDtype {
    type Err = PeftError;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = text.trim().to_ascii_lowercase();
        let wanted = wanted.strip_prefix("torch.").unwrap_or(&wanted);
        let known = DTYPES.iter().find(|it| it.0 == wanted || it.1 == wanted).map(|it| it.2);
        known.ok_or_else(|| {
            PeftError::Invalid(format!("there is no dtype `{text}`; choose {}", DTYPES.map(|it| it.0).join(", ")))
        })
    }
}

impl fmt::Display for BaseDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DTYPES.iter().find(|it| it.2 == *self).map_or("", |it| it.0))
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
    /// In how few bits the linear layers are kept, if they are not stored so already.
    pub quantize: Option<QuantConfig>,
    /// If what enters a layer in int8 is rounded to int8, too: from which size on numbers are not.
    pub llm_int8_threshold: Option<f32>,
    /// Who keeps the matrices together with this process, if it does not keep them whole.
    pub shards: Option<ShardedBase>,
}

impl Placement {
    /// On a device, in single precision.
    pub fn on(device: &Device) -> Self {
        let (device, dtype) = (device.clone(), BaseDtype::default());
        Self { device, dtype, quantize: None, llm_int8_threshold: None, shards: None }
    }

    /// With linear layers in fewer bits.
    pub fn with_quantization(self, quantize: impl Into<Option<QuantConfig>>) -> Self {
        Self { quantize: quantize.into(), ..self }
    }

    /// With activations in int8 before layers in int8, but for columns in which a number is of this size or larger: LLM.int8, whose
    /// authors take 6.
    pub fn with_llm_int8_threshold(self, threshold: impl Into<Option<f32>>) -> Self {
        Self { llm_int8_threshold: threshold.into(), ..self }
    }

    /// With matrices in pieces. Every process loads the same model into the base that it keeps together with the others.
    pub fn with_shards(self, shards: impl Into<Option<ShardedBase>>) -> Self {
        Self { shards: shards.into(), ..self }
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

impl FloatType {
    /// Floats as a file of this type holds them.
    pub(crate) fn bytes_of(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|it| f16::from_f32(*it).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|it| bf16::from_f32(*it).to_le_bytes()).collect(),
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The same in the words of safetensors files.
    pub fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    /// Whether a number is finite, and stays so when it is rounded to this type.
    pub fn holds(self, value: f32) -> bool {
        match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::BF16 => bf16::from_f32(value).is_finite(),
        }
    }
}

impl fmt::Display for FloatType {
    /// As `dtype` of `config.json` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_dtype() {
        for (long, short, dtype) in DTYPES {
            assert_eq!(long.parse::<BaseDtype>().unwrap(), dtype);
            assert_eq!(short.parse::<BaseDtype>().unwrap(), dtype);
            assert_eq!(dtype.to_string(), long);
        }
        assert_eq!("torch.bfloat16".parse::<BaseDtype>().unwrap(), BaseDtype::BFloat16);
        let error = "int8".parse::<BaseDtype>().unwrap_err().to_string();
        assert!(error.contains("`int8`") && error.contains("bfloat16"), "{error}");
    }
}
