//! Packed matrices as tensors: codes and scales travel where a frozen weight does.
//!
//! Such a tensor has the shape of its matrix, and bytes that only this module understands. Its element type is
//! [`DType::Flex32`], which the CPU backend does not compute with: axes may be exchanged, and whatever looks at numbers
//! panics. (`DType::QFloat` would be the name for it, but sends every operation to Burn's own quantised tensors.)
//! [`to_f32`](crate::ops::to_f32) gives the numbers. Matrices [in pieces](crate::sharding) travel in the same way.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Device, Int, Shape, Tensor, TensorData};
use pulp::bytemuck;
use rayon::prelude::*;

use super::four_bit::FourBit;
use super::grouped::{GroupBits, Groups};
use super::packed::{Packed, QuantFormat, Quantized};
use super::rounding::Rounding;
use super::scales::{NESTED_BLOCK, Scales};
use crate::error::{PeftError, Result};

/// The header, and what every part begins at a multiple of.
const ALIGNED: usize = 64;
/// Numbers of the header.
const WORDS: usize = 8;

/// What lies beside the codes, as the header says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Single,
    Double,
    /// Scales and zeros.
    Groups,
    /// Scales, zeros, and the group of each column.
    SortedGroups,
}

impl Beside {
    const ALL: [Self; 4] = [Self::Single, Self::Double, Self::Groups, Self::SortedGroups];

    fn of(matrix: &Packed<'_>) -> Self {
        match (matrix.scales, matrix.groups) {
            (Scales::Double { .. }, _) => Self::Double,
            (_, None) => Self::Single,
            (_, Some(Groups { of_column: None, .. })) => Self::Groups,
            (_, Some(_)) => Self::SortedGroups,
        }
    }
}

/// Whether a tensor of floats is packed.
pub(crate) fn is_packed(dtype: DType) -> bool {
    dtype == DType::Flex32
}

/// Where the parts of a packed matrix lie in its bytes.
struct Places {
    codes: usize,
    scales: usize,
    /// Scales of scales, or zeros.
    nested: usize,
    /// What codes of scales mean, or the groups of columns.
    values: usize,
    end: usize,
}

impl Places {
    fn new(codes: usize, scales: usize, width: usize, beside: Beside) -> Self {
        let up = |it: usize| it.next_multiple_of(ALIGNED);
        let scales_at = ALIGNED + up(codes);
        let nested = scales_at + up(if beside == Beside::Double { scales } else { 4 * scales });
        let values = nested
            + match beside {
                Beside::Single => 0,
                // The offset comes before the scales of scales.
                Beside::Double => up(4 * (1 + scales.div_ceil(NESTED_BLOCK))),
                Beside::Groups | Beside::SortedGroups => up(scales),
            };
        let end = values
            + match beside {
                Beside::Single | Beside::Groups => 0,
                Beside::Double => 4 * 256,
                Beside::SortedGroups => 4 * width,
            };
        Self { codes: ALIGNED, scales: scales_at, nested, values, end }
    }
}

/// A tensor `[lines, width]` that holds a packed matrix.
///
/// # Errors
/// If the device is not the CPU backend `flex`: no other computes with packed matrices.
pub fn packed_tensor(matrix: &Packed<'_>, device: &Device) -> Result<Tensor<2>> {
    let plain = cpu(device, || format!("a base in {}", matrix.format.name()))?;
    let words = packed_words(matrix);
    let count = words.len() * 8;
    let data = TensorData::from_bytes(Bytes::from_elems(words), [count], DType::U8);
    Ok(carried(data, [matrix.lines, matrix.width], &plain))
}

/// The device without gradients, if it computes with what is no plain tensor.
///
/// # Errors
/// If it is not the CPU backend `flex`: `what` cannot be there.
pub(crate) fn cpu(device: &Device, what: impl FnOnce() -> String) -> Result<Device> {
    let plain = device.clone().without_autodiff();
    if matches!(plain.as_dispatch(), DispatchDevice::Flex(_)) {
        return Ok(plain);
    }
    let what = format!("{} on {device:?}", what());
    Err(PeftError::unsupported(what, "only the CPU backend `flex` computes with it: take --device flex"))
}

/// Bytes as a tensor with the shape of the matrix that they stand for.
pub(crate) fn carried(bytes: TensorData, [lines, width]: [usize; 2], device: &Device) -> Tensor<2> {
    let carrier = Tensor::<1, Int>::from_data(bytes, (device, DType::U8));
    let packed = Dispatch::pack(carrier.into_dispatch(), lines, width);
    Tensor::from_dispatch(packed)
}

/// A packed matrix as the bytes of its tensor.
pub(crate) fn packed_words(matrix: &Packed<'_>) -> Vec<u64> {
    let beside = Beside::of(matrix);
    let places = Places::new(matrix.codes.len(), matrix.scales.len(), matrix.width, beside);
    // Words, so that numbers of four bytes are where they may be read.
    let mut words = vec![0_u64; places.end.div_ceil(8)];
    let format = match matrix.format {
        QuantFormat::FourBit(FourBit::Nf4) => 0,
        QuantFormat::FourBit(FourBit::Fp4) => 1,
        QuantFormat::Int8 => 2,
        QuantFormat::Grouped(GroupBits::Four) => 3,
        QuantFormat::Grouped(GroupBits::Eight) => 4,
    };
    let rounding = match matrix.rounding {
        Rounding::Single => 0,
        Rounding::Bf16 => 1,
        Rounding::F16 => 2,
    };
    // In the upper half of a word; 0 is none.
    let threshold = matrix.threshold.map_or(0, |it| (u64::from(it.to_bits()) + 1) << 32);
    let header = [
        format,
        rounding | threshold,
        beside as u64,
        matrix.lines as u64,
        matrix.width as u64,
        matrix.block as u64,
        matrix.codes.len() as u64,
        matrix.scales.len() as u64,
    ];
    words[..WORDS].copy_from_slice(&header);
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(places.codes, matrix.codes);
    match matrix.scales {
        Scales::Single(scales) => put(places.scales, bytemuck::cast_slice(scales)),
        Scales::Double { codes, largest, values, offset } => {
            put(places.scales, codes);
            put(places.nested, &offset.to_ne_bytes());
            put(places.nested + 4, bytemuck::cast_slice(largest));
            put(places.values, bytemuck::cast_slice(values));
        }
    }
    if let Some(Groups { zeros, of_column }) = matrix.groups {
        put(places.nested, zeros);
        put(places.values, bytemuck::cast_slice(of_column.unwrap_or_default()));
    }
    words
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

/// What gives bytes the shape of their matrix, and back.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait QuantOps: Backend {
    fn pack(carrier: IntTensor<Self>, lines: usize, width: usize) -> FloatTensor<Self>;
}

impl QuantOps for Flex {
    fn pack(carrier: FlexTensor, lines: usize, width: usize) -> FlexTensor {
        FlexTensor::from_arc(carrier.data_arc(), Layout::contiguous(Shape::new([lines, width])), DType::Flex32)
    }
}

/// The numbers of a packed matrix, by all threads.
pub(crate) fn widen(packed: FlexTensor) -> FlexTensor {
    let matrix = view(&packed);
    let mut numbers = vec![0.0; matrix.lines * matrix.width];
    let per_task = 65_536_usize.div_ceil(matrix.width.max(1));
    numbers.par_chunks_mut(per_task * matrix.width.max(1)).enumerate().for_each(|(at, out)| {
        let lines = at * per_task..at * per_task + out.len() / matrix.width.max(1);
        matrix.widen_part(lines, 0..matrix.width, out);
    });
    let whole = FlexTensor::from_data(TensorData::new(numbers, [matrix.lines, matrix.width]));
    // As the packed one is seen: perhaps with its axes exchanged.
    if packed.layout().strides()[1] == 1 { whole } else { whole.transpose(0, 1) }
}

/// Packed matrices are frozen: no gradient leads to them.
impl<C: CheckpointStrategy> QuantOps for Autodiff<Flex, C> {
    fn pack(carrier: IntTensor<Self>, lines: usize, width: usize) -> FloatTensor<Self> {
        Self::from_inner(Flex::pack(carrier, lines, width))
    }
}

/// The matrix of a packed tensor, as it is stored, however its axes are seen.
pub(crate) fn view(tensor: &FlexTensor) -> Packed<'_> {
    debug_assert!(is_packed(tensor.dtype()));
    let bytes = tensor.bytes();
    let header: &[u64] = bytemuck::cast_slice(&bytes[..WORDS * 8]);
    let [lines, width, block, codes, scales] = [3, 4, 5, 6, 7].map(|at| header[at] as usize);
    let beside = Beside::ALL[header[2] as usize % Beside::ALL.len()];
    let places = Places::new(codes, scales, width, beside);
    let floats = |at: usize, count: usize| -> &[f32] { bytemuck::cast_slice(&bytes[at..at + 4 * count]) };
    Packed {
        lines,
        width,
        format: match header[0] {
            0 => QuantFormat::FourBit(FourBit::Nf4),
            1 => QuantFormat::FourBit(FourBit::Fp4),
            2 => QuantFormat::Int8,
            3 => QuantFormat::Grouped(GroupBits::Four),
            _ => QuantFormat::Grouped(GroupBits::Eight),
        },
        threshold: (header[1] >> 32).checked_sub(1).map(|bits| f32::from_bits(bits as u32)),
        rounding: match header[1] as u32 {
            0 => Rounding::Single,
            1 => Rounding::Bf16,
            _ => Rounding::F16,
        },
        codes: &bytes[places.codes..places.codes + codes],
        scales: match beside {
            Beside::Double => Scales::Double {
                codes: &bytes[places.scales..places.scales + scales],
                offset: floats(places.nested, 1)[0],
                largest: floats(places.nested + 4, scales.div_ceil(NESTED_BLOCK)),
                values: floats(places.values, 256),
            },
            _ => Scales::Single(floats(places.scales, scales)),
        },
        groups: match beside {
            Beside::Single | Beside::Double => None,
            Beside::Groups | Beside::SortedGroups => Some(Groups {
                zeros: &bytes[places.nested..places.nested + scales],
                of_column: (beside == Beside::SortedGroups)
                    .then(|| bytemuck::cast_slice(&bytes[places.values..places.values + 4 * width])),
            }),
        },
        block,
    }
}
