//! Matrices that bitsandbytes has stored in a checkpoint.
//!
//! A matrix in four bits lies under its own key, its scales beside it under `<key>.absmax` and so on, and how all that is to be read
//! under `<key>.quant_state.bitsandbytes__nf4`, as JSON. One in eight bits has its scales under `<module>.SCB`.

use serde::Deserialize;

use super::checkpoint::{Checkpoint, Dtype, TensorFile};
use crate::error::{PeftError, Result};
use crate::quant::scales::NESTED_BLOCK;
use crate::quant::{FourBit, Packed, QuantFormat, Rounding, Scales};

/// Ends of keys beside a matrix in four bits.
const FOUR_BIT: [&str; 6] = [
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
];
/// Names beside a matrix in eight bits.
const EIGHT_BIT: [&str; 2] = ["SCB", "weight_format"];

/// How a matrix in four bits is to be read.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    #[serde(default)]
    nested_blocksize: Option<usize>,
    #[serde(default)]
    nested_offset: Option<f64>,
}

/// A stored matrix: what cannot be borrowed from the file.
struct Stored {
    shape: [usize; 2],
    format: QuantFormat,
    block: usize,
    rounding: Rounding,
    largest: Vec<f32>,
    nested: Option<(Vec<f32>, f32)>,
}

impl Checkpoint {
    /// Whether a key holds codes.
    pub(super) fn is_quantised(&self, key: &str) -> bool {
        if self.is_grouped(key) {
            return true;
        }
        let Some(module) = key.strip_suffix(".weight") else { return false };
        self.four_bit_state(key).is_some() || self.contains(&format!("{module}.SCB"))
    }

    /// Whether a key belongs to a matrix of codes.
    pub(super) fn is_beside_quantised(&self, key: &str) -> bool {
        if self.is_beside_grouped(key) {
            return true;
        }
        let four = FOUR_BIT.iter().find_map(|it| key.strip_suffix(it)).is_some_and(|it| self.is_quantised(it));
        let eight = EIGHT_BIT.iter().find_map(|it| key.strip_suffix(it)?.strip_suffix('.'));
        four || eight.is_some_and(|it| self.is_quantised(&format!("{it}.weight")))
    }

    /// Whether some matrix is stored in int8.
    pub(super) fn has_int8(&self) -> bool {
        self.keys().any(|it| it.ends_with(".SCB"))
    }

    fn four_bit_state(&self, key: &str) -> Option<String> {
        ["nf4", "fp4"].iter().map(|it| format!("{key}.quant_state.bitsandbytes__{it}")).find(|it| self.contains(it))
    }

    /// Rows and columns of a stored matrix, output first: of codes those that they mean.
    ///
    /// # Errors
    /// If what lies beside the codes cannot be understood.
    pub(super) fn quantised_shape(&self, key: &str) -> Result<[usize; 2]> {
        if self.is_grouped(key) { self.grouped_shape(key) } else { Ok(self.stored(key)?.1.shape) }
    }

    /// Calls `read` with a matrix of codes.
    ///
    /// # Errors
    /// If what lies beside the codes is damaged.
    pub(super) fn with_quantised<R>(&self, key: &str, read: impl FnOnce(Packed<'_>) -> Result<R>) -> Result<R> {
        if self.is_grouped(key) {
            return self.with_grouped(key, read);
        }
        let (file, stored) = self.stored(key)?;
        let codes = file.raw(key)?;
        let nested_codes;
        let scales = match &stored.nested {
            None => Scales::Single(&stored.largest),
            Some((values, offset)) => {
                nested_codes = self.beside(&format!("{key}.absmax"))?.1;
                Scales::Double { codes: nested_codes, largest: &stored.largest, values, offset: *offset }
            }
        };
        let Stored { shape: [lines, width], format, block, rounding, .. } = stored;
        read(Packed {
            lines,
            width,
            format,
            codes,
            scales,
            groups: None,
            block,
            rounding,
            threshold: self.threshold_of(format),
        })
    }

    /// The bytes of a tensor that lies beside codes, perhaps in another shard.
    fn beside(&self, key: &str) -> Result<(&TensorFile, &[u8])> {
        match self.file(key) {
            Some(file) => Ok((file, file.raw(key)?)),
            None => {
                Err(PeftError::bad_file(self.folder(), format!("it lacks `{key}`, without which codes mean nothing")))
            }
        }
    }

    /// Positive numbers that lie beside codes.
    fn scales(&self, key: &str, count: usize) -> Result<Vec<f32>> {
        let (file, _) = self.beside(key)?;
        let bad = |reason: String| PeftError::bad_file(file.path(), format!("`{key}` {reason}"));
        let numbers: Vec<f32> = file.floats(key)?.iter::<f32>().collect();
        if numbers.len() != count {
            return Err(bad(format!("has {} scales, where the codes need {count}", numbers.len())));
        }
        match numbers.iter().find(|it| !it.is_finite()) {
            Some(odd) => Err(bad(format!("holds {odd}, so that the file is damaged: fetch it again"))),
            None => Ok(numbers),
        }
    }

    fn stored(&self, key: &str) -> Result<(&TensorFile, Stored)> {
        let (file, codes) = self.beside(key)?;
        let bad = |key: &str, reason: String| PeftError::bad_file(file.path(), format!("`{key}` {reason}"));
        let Some(state_key) = self.four_bit_state(key) else {
            let shape = file.shape(key).and_then(|it| <[usize; 2]>::try_from(it).ok());
            let (Some(shape), Some(Dtype::I8)) = (shape, file.dtype(key)) else {
                return Err(bad(key, "has scales of int8 beside it, but is no matrix of int8".to_owned()));
            };
            let scales = format!("{}.SCB", key.strip_suffix(".weight").unwrap_or(key));
            let largest = self.scales(&scales, shape[0])?;
            let (format, block) = (QuantFormat::Int8, shape[1]);
            return Ok((file, Stored { shape, format, block, rounding: Rounding::Single, largest, nested: None }));
        };
        let (state_file, text) = self.beside(&state_key)?;
        let state: State = serde_json::from_slice(text)
            .map_err(|error| PeftError::bad_file(state_file.path(), format!("`{state_key}`: {error}")))?;
        let kind = match state.quant_type.as_str() {
            "nf4" => FourBit::Nf4,
            "fp4" => FourBit::Fp4,
            other => return Err(bad(&state_key, format!("says `quant_type` {other}, expected nf4 or fp4"))),
        };
        let rounding = match state.dtype.as_str() {
            "float32" => Rounding::Single,
            "bfloat16" => Rounding::Bf16,
            "float16" => Rounding::F16,
            other => {
                return Err(bad(&state_key, format!("says `dtype` {other}, expected float32, bfloat16 or float16")));
            }
        };
        let Ok(shape) = <[usize; 2]>::try_from(state.shape.as_slice()) else {
            return Err(bad(&state_key, format!("says the shape {:?}, expected rows and columns", state.shape)));
        };
        let count = shape[0].checked_mul(shape[1]).filter(|it| *it > 0 && state.blocksize.is_power_of_two());
        let Some(count) = count else {
            return Err(bad(&state_key, format!("says {shape:?} in blocks of {}", state.blocksize)));
        };
        if codes.len() != count.div_ceil(2) {
            return Err(bad(key, format!("has {} bytes, where {shape:?} need {}", codes.len(), count.div_ceil(2))));
        }
        let map = self.scales(&format!("{key}.quant_map"), 16)?;
        if map.iter().zip(kind.values()).any(|(a, b)| (a - b).abs() > 1e-6) {
            return Err(bad(&format!("{key}.quant_map"), format!("holds other values than {}", state.quant_type)));
        }
        let blocks = count.div_ceil(state.blocksize);
        let scales = format!("{key}.absmax");
        let (format, block) = (QuantFormat::FourBit(kind), state.blocksize);
        if !self.contains(&format!("{key}.nested_absmax")) {
            let largest = self.scales(&scales, blocks)?;
            return Ok((file, Stored { shape, format, block, rounding, largest, nested: None }));
        }
        let nested_block = state.nested_blocksize.unwrap_or(NESTED_BLOCK);
        let offset = state.nested_offset.filter(|it| it.is_finite()).map(|it| it as f32);
        let (Some(offset), true) = (offset, nested_block == NESTED_BLOCK) else {
            return Err(bad(
                &state_key,
                format!("has no offset, or blocks of {nested_block} instead of {NESTED_BLOCK}"),
            ));
        };
        let (codes_file, codes) = self.beside(&scales)?;
        if codes_file.dtype(&scales) != Some(Dtype::U8) || codes.len() != blocks {
            return Err(bad(&scales, format!("has {} scales, where the codes need {blocks} of 8 bits", codes.len())));
        }
        let largest = self.scales(&format!("{key}.nested_absmax"), blocks.div_ceil(NESTED_BLOCK))?;
        let values = self.scales(&format!("{key}.nested_quant_map"), 256)?;
        Ok((file, Stored { shape, format, block, rounding, largest, nested: Some((values, offset)) }))
    }
}
