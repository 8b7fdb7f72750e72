//! Packed matrices in the memory of a card, and how a kernel reads their numbers.
//!
//! The header of a matrix must be known where kernels are launched, and asking the card for it would be to wait for the card. It
//! lies in what Burn keeps of a quantised tensor beside its memory: nothing but an exchange of axes touches that, and an exchange of
//! axes touches the first two of its numbers.

use burn::tensor::quantization::{QParamTensor, QParams};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::zspace::Strides;
use cubecl::zspace::metadata::Metadata;

use super::grouped::GroupBits;
use super::int8::ONE_STEP;
use super::layout::{Beside, Header, WORDS};
use super::packed::QuantFormat;
use super::rounding::Rounding;
use super::scales::NESTED_BLOCK;
use super::tensor::{QuantOps, is_packed};

/// Numbers before the header, which Burn exchanges.
const LEFT_OUT: usize = 2;

impl QuantOps for CubeBackend {
    fn pack(carrier: CubeTensor, header: Header) -> CubeTensor {
        let mut numbers = vec![1; LEFT_OUT];
        numbers.extend(header.to_numbers());
        let strides = Strides::new(&vec![1; numbers.len()]);
        let metadata = Metadata::new(Shape::from(numbers), strides);
        let scales = QParamTensor { offset_start: 0, offset_end: 0, metadata, dtype: carrier.dtype };
        CubeTensor::new_quantized(
            carrier.client,
            carrier.handle,
            Shape::new([header.lines, header.width]),
            carrier.device,
            Strides::new(&[header.width, 1]),
            DType::Flex32,
            QParams { scales, global: None },
        )
    }
}

/// The header of a packed matrix; nothing for a tensor of numbers.
pub(crate) fn header(tensor: &CubeTensor) -> Option<Header> {
    let metadata = &tensor.qparams.as_ref().filter(|_| is_packed(tensor.dtype))?.scales.metadata;
    let numbers: [usize; WORDS] = std::array::from_fn(|at| metadata.shape()[LEFT_OUT + at]);
    Some(Header::from_numbers(numbers))
}

/// The bytes of a packed matrix, by fours.
pub(crate) fn bytes(packed: CubeTensor) -> CubeTensor {
    let count = (packed.handle.size_in_used() / 4) as usize;
    CubeTensor::new_contiguous(packed.client, packed.device, Shape::new([count]), packed.handle, DType::U32)
}

/// What a kernel that reads codes is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Coding {
    format: QuantFormat,
    rounding: Rounding,
    beside: Beside,
    block: usize,
}

/// Where the parts of a matrix begin, in words of four bytes.
#[derive(CubeType, CubeLaunch, Clone)]
#[expand(derive(Clone))]
pub(crate) struct Parts {
    width: usize,
    codes: usize,
    scales: usize,
    nested: usize,
    values: usize,
    table: usize,
}

impl Header {
    pub(crate) fn coding(self) -> Coding {
        let Self { format, rounding, beside, block, .. } = self;
        // Rows have one scale each, whatever their length is.
        Coding { format, rounding, beside, block: if format == QuantFormat::Int8 { 0 } else { block } }
    }

    pub(crate) fn parts(self) -> PartsLaunch {
        let places = self.places();
        let [codes, scales, nested, values, table] =
            [places.codes, places.scales, places.nested, places.values, places.table].map(|it| it / 4);
        PartsLaunch::new(self.width, codes, scales, nested, values, table)
    }

    /// For products of int8 with int8, which are exact.
    pub(crate) fn without_rounding(self) -> Self {
        Self { rounding: Rounding::Single, ..self }
    }

    /// Rows and columns of the matrix as it is stored.
    pub(crate) fn shape(self) -> [usize; 2] {
        [self.lines, self.width]
    }

    /// Whether a tensor shows the matrix with its axes exchanged.
    pub(crate) fn is_turned(self, tensor: &CubeTensor) -> bool {
        tensor.meta.shape()[..] != self.shape() || tensor.meta.strides()[1] != 1
    }
}

/// So many numbers of a line, from a column on that their count divides.
#[cube]
pub(crate) fn numbers<N: Size>(
    bytes: &Tensor<u32>,
    parts: &Parts,
    line: usize,
    column: usize,
    #[comptime] coding: Coding,
) -> Vector<f32, N> {
    let mut numbers = Vector::<f32, N>::new(0.0f32);
    let count = numbers.vector_size();
    let shares = comptime!(coding.block.is_multiple_of(count) && coding.beside != Beside::SortedGroups);
    if shares {
        let block = block_of(bytes, parts, line, column, coding);
        let (scale, zero) = (scale(bytes, parts, block, coding), zero(bytes, parts, block, coding));
        #[unroll]
        for at in 0..count {
            let code = code(bytes, parts, line, column + at, coding);
            numbers.insert(at, number(bytes, parts, code, scale, zero, coding));
        }
    } else {
        #[unroll]
        for at in 0..count {
            let block = block_of(bytes, parts, line, column + at, coding);
            let (scale, zero) = (scale(bytes, parts, block, coding), zero(bytes, parts, block, coding));
            let code = code(bytes, parts, line, column + at, coding);
            numbers.insert(at, number(bytes, parts, code, scale, zero, coding));
        }
    }
    numbers
}

#[cube]
fn byte(bytes: &Tensor<u32>, part: usize, at: usize) -> u32 {
    (bytes[part + at / 4] >> (u32::cast_from(at % 4) * 8u32)) & 255u32
}

#[cube]
fn float(bytes: &Tensor<u32>, at: usize) -> f32 {
    f32::reinterpret(bytes[at])
}

#[cube]
fn code(bytes: &Tensor<u32>, parts: &Parts, line: usize, column: usize, #[comptime] coding: Coding) -> u32 {
    let place = line * parts.width + column;
    match comptime!(coding.format) {
        // The first of two codes is in the upper half of their byte.
        QuantFormat::FourBit(_) | QuantFormat::Grouped(GroupBits::Four) => {
            let both = byte(bytes, parts.codes, place / 2);
            (both >> ((1u32 - u32::cast_from(place % 2)) * 4u32)) & 15u32
        }
        QuantFormat::Int8 | QuantFormat::Grouped(GroupBits::Eight) => byte(bytes, parts.codes, place),
    }
}

/// Which scale is that of a number.
#[cube]
fn block_of(bytes: &Tensor<u32>, parts: &Parts, line: usize, column: usize, #[comptime] coding: Coding) -> usize {
    let block = comptime!(coding.block);
    match comptime!(coding.format) {
        QuantFormat::Int8 => line,
        QuantFormat::FourBit(_) => (line * parts.width + column) / block,
        QuantFormat::Grouped(_) => {
            let first = line * parts.width.div_ceil(block);
            if comptime!(coding.beside == Beside::SortedGroups) {
                first + bytes[parts.values + column] as usize
            } else {
                first + column / block
            }
        }
    }
}

#[cube]
fn scale(bytes: &Tensor<u32>, parts: &Parts, block: usize, #[comptime] coding: Coding) -> f32 {
    if comptime!(coding.beside == Beside::Double) {
        let value = float(bytes, parts.values + byte(bytes, parts.scales, block) as usize);
        value * float(bytes, parts.nested + 1 + block / comptime!(NESTED_BLOCK)) + float(bytes, parts.nested)
    } else {
        float(bytes, parts.scales + block)
    }
}

/// The code that means 0, as a number.
#[cube]
fn zero(bytes: &Tensor<u32>, parts: &Parts, block: usize, #[comptime] coding: Coding) -> f32 {
    let mut zero = 0.0f32;
    if comptime!(matches!(coding.format, QuantFormat::Grouped(_))) {
        zero = f32::cast_from(byte(bytes, parts.nested, block));
    }
    zero
}

/// What a code means.
#[cube]
fn number(bytes: &Tensor<u32>, parts: &Parts, code: u32, scale: f32, zero: f32, #[comptime] coding: Coding) -> f32 {
    let exact = match comptime!(coding.format) {
        QuantFormat::FourBit(_) => float(bytes, parts.table + code as usize) * scale,
        QuantFormat::Int8 => {
            // Codes have a sign.
            let mut code = f32::cast_from(code);
            if code > 127.0f32 {
                code -= 256.0f32;
            }
            code * scale * comptime!(ONE_STEP)
        }
        QuantFormat::Grouped(_) => (f32::cast_from(code) - zero) * scale,
    };
    match comptime!(coding.rounding) {
        Rounding::Single => exact,
        Rounding::Bf16 => {
            let bits = u32::reinterpret(exact);
            f32::reinterpret((bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) & 0xffff_0000u32)
        }
        Rounding::F16 => rounded_to_f16(exact),
    }
}

/// A number as f16 has it, on cards that have no f16, too.
#[cube]
pub(crate) fn rounded_to_f16(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    let magnitude = bits & 0x7fff_ffffu32;
    let mut rounded = (magnitude + 0xfffu32 + ((magnitude >> 13u32) & 1u32)) & 0xffff_e000u32;
    // From 2¹⁶ on there is infinity, and NaN stays what it is.
    if rounded >= 0x4780_0000u32 {
        rounded = max(magnitude, 0x7f80_0000u32);
    }
    // Below 2⁻¹⁴ numbers are multiples of 2⁻²⁴.
    if magnitude < 0x3880_0000u32 {
        rounded = u32::reinterpret(to_even(f32::reinterpret(magnitude) * 16_777_216.0f32) / 16_777_216.0f32);
    }
    f32::reinterpret(rounded | (bits & 0x8000_0000u32))
}

/// The nearest whole number, the even one between two, of a number that is not negative and below 2²⁴.
#[cube]
pub(crate) fn to_even(x: f32) -> f32 {
    let whole = u32::cast_from(x);
    let rest = x - f32::cast_from(whole);
    let mut up = 0u32;
    if rest > 0.5f32 || (rest == 0.5f32 && whole % 2u32 == 1u32) {
        up = 1u32;
    }
    f32::cast_from(whole + up)
}
