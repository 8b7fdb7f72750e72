//! A matrix of codes with its scales.

use std::ops::Range;

use super::four_bit::{BLOCK, FourBit, has_permutations, permute, widen_codes};
use super::grouped::{GroupBits, Grouped, Groups};
use super::int8;
use super::rounding::Rounding;
use super::scales::{DoubleQuantized, Scales, dynamic_map};
use crate::error::{PeftError, Result};

/// How numbers become codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// Four bits, in blocks.
    FourBit(FourBit),
    /// Eight bits, by rows.
    Int8,
    /// Whole numbers in groups with a scale and a zero each: read from checkpoints of GPTQ and AWQ, not made here.
    Grouped(GroupBits),
}

impl QuantFormat {
    /// Its name on the command line, where it can be asked for there.
    pub fn name(self) -> &'static str {
        match self {
            Self::FourBit(FourBit::Nf4) => "nf4",
            Self::FourBit(FourBit::Fp4) => "fp4",
            Self::Int8 => "int8",
            Self::Grouped(GroupBits::Four) => "int4 in groups",
            Self::Grouped(GroupBits::Eight) => "int8 in groups",
        }
    }
}

/// A matrix `[lines, width]` as a checkpoint stores it, in codes.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Rows of the stored matrix.
    pub lines: usize,
    /// Numbers in a row.
    pub width: usize,
    /// What the codes are.
    pub format: QuantFormat,
    /// Two numbers a byte for four bits, one for eight.
    pub codes: &'a [u8],
    /// Scales of blocks, of rows, or `[lines, groups]`.
    pub scales: Scales<'a>,
    /// What groups have beside their scales, where the format is [`QuantFormat::Grouped`].
    pub groups: Option<Groups<'a>>,
    /// Numbers of the flat matrix that share a scale; for int8 the width; for groups numbers of a row.
    pub block: usize,
    /// What widened numbers are rounded to.
    pub rounding: Rounding,
    /// If activations are rounded to int8 before a product with a matrix in int8: from which size on they are not.
    pub threshold: Option<f32>,
}

impl Packed<'_> {
    /// Widens a run of a line: `out` becomes the numbers from `from` on.
    #[inline(always)]
    pub fn widen(&self, line: usize, from: usize, out: &mut [f32]) {
        let start = line * self.width + from;
        match self.format {
            QuantFormat::Int8 => {
                let largest = self.scales.of(line);
                for (to, code) in out.iter_mut().zip(&self.codes[start..]) {
                    *to = int8::number(*code as i8, largest);
                }
            }
            QuantFormat::FourBit(kind) => {
                let pairs = kind.pairs();
                let mut at = 0;
                while at < out.len() {
                    let place = start + at;
                    let count = (self.block - place % self.block).min(out.len() - at);
                    let part = &mut out[at..at + count];
                    let scale = self.scales.of(place / self.block);
                    // A block has sixteen numbers: where a vector holds them, codes choose among its lanes.
                    if has_permutations(place, part.len()) {
                        permute(kind.values(), scale, self.rounding, &self.codes[place / 2..], part);
                    } else {
                        widen_codes(pairs, self.codes, place, part);
                        part.iter_mut().for_each(|x| *x = self.rounding.of(*x * scale));
                    }
                    at += count;
                }
                return;
            }
            QuantFormat::Grouped(bits) => {
                if let Some(groups) = &self.groups {
                    let of_line = line * self.width.div_ceil(self.block);
                    bits.widen_codes(self.codes, start, out);
                    groups.scale(self.scales, of_line, self.block, from, out);
                }
            }
        }
        if self.rounding != Rounding::Single {
            out.iter_mut().for_each(|x| *x = self.rounding.of(*x));
        }
    }

    /// Widens a rectangle of the matrix, row by row.
    #[inline(always)]
    pub fn widen_part(&self, lines: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        for (line, out) in lines.zip(out.chunks_exact_mut(columns.len().max(1))) {
            self.widen(line, columns.start, out);
        }
    }

    /// The whole matrix in single precision.
    pub fn widened(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.lines * self.width];
        self.widen_part(0..self.lines, 0..self.width, &mut numbers);
        numbers
    }
}

impl Grouped {
    /// The matrix.
    pub fn view(&self) -> Packed<'_> {
        let [lines, width] = self.shape;
        Packed {
            lines,
            width,
            format: QuantFormat::Grouped(self.bits),
            codes: &self.codes,
            scales: Scales::Single(&self.scales),
            groups: Some(Groups { zeros: &self.zeros, of_column: self.of_column.as_deref() }),
            block: self.block,
            rounding: Rounding::Single,
            threshold: None,
        }
    }
}

/// A matrix that was quantised here.
#[derive(Debug, Clone)]
pub struct Quantized {
    shape: [usize; 2],
    format: QuantFormat,
    rounding: Rounding,
    codes: Vec<u8>,
    largest: Vec<f32>,
    double: Option<DoubleQuantized>,
}

impl Quantized {
    /// Quantises a matrix `[lines, width]`. `double` quantises the scales of blocks, too.
    ///
    /// # Errors
    /// If a number is not finite, for which there is no code, or the format is only read.
    pub fn new(
        numbers: &[f32],
        shape: [usize; 2],
        format: QuantFormat,
        double: bool,
        rounding: Rounding,
    ) -> Result<Self> {
        if numbers.iter().any(|it| !it.is_finite()) {
            return Err(PeftError::NotFinite(format!(
                "a matrix holds NaN or infinity, which {} has not",
                format.name()
            )));
        }
        let (codes, largest) = match format {
            QuantFormat::FourBit(kind) => kind.quantize(numbers, BLOCK),
            QuantFormat::Int8 => {
                let (codes, largest) = int8::quantize(numbers, shape[1]);
                (codes.into_iter().map(|it| it as u8).collect(), largest)
            }
            QuantFormat::Grouped(_) => {
                let reason = "such matrices are read from checkpoints of GPTQ and AWQ: quantise to nf4, fp4 or int8";
                return Err(PeftError::unsupported(format!("quantising to {}", format.name()), reason));
            }
        };
        let is_double = double && format != QuantFormat::Int8;
        let double = is_double.then(|| DoubleQuantized::new(&largest));
        Ok(Self { shape, format, rounding, codes, largest, double })
    }

    /// The matrix.
    pub fn view(&self) -> Packed<'_> {
        let scales = match &self.double {
            None => Scales::Single(&self.largest),
            Some(it) => {
                let values = dynamic_map();
                Scales::Double { codes: &it.codes, largest: &it.largest, values, offset: it.offset }
            }
        };
        let block = if self.format == QuantFormat::Int8 { self.shape[1] } else { BLOCK };
        let [lines, width] = self.shape;
        let (format, rounding) = (self.format, self.rounding);
        Packed { lines, width, format, codes: &self.codes, scales, groups: None, block, rounding, threshold: None }
    }
}
