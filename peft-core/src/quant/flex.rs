//! Packed matrices in the memory of the CPU backend.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{DType, Shape, TensorData};
use rayon::prelude::*;

use super::grouped::Groups;
use super::layout::{Beside, Header, WORDS};
use super::packed::Packed;
use super::scales::{NESTED_BLOCK, Scales};
use super::tensor::{QuantOps, is_packed};

impl QuantOps for Flex {
    fn pack(carrier: FlexTensor, header: Header) -> FlexTensor {
        let shape = Shape::new([header.lines, header.width]);
        FlexTensor::from_arc(carrier.data_arc(), Layout::contiguous(shape), DType::Flex32)
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
    // As the packed one is seen.
    if is_turned(&packed) { whole.transpose(0, 1) } else { whole }
}

/// Whether a packed tensor shows its matrix with its axes exchanged. Strides alone do not say it of a single row or column.
pub(crate) fn is_turned(tensor: &FlexTensor) -> bool {
    let matrix = view(tensor);
    tensor.layout().strides()[1] != 1 || tensor.layout().shape()[..] != [matrix.lines, matrix.width]
}

/// The matrix of a packed tensor, as it is stored, however its axes are seen.
pub(crate) fn view(tensor: &FlexTensor) -> Packed<'_> {
    debug_assert!(is_packed(tensor.dtype()));
    let bytes = tensor.bytes();
    let words: &[u64] = bytemuck::cast_slice(&bytes[..WORDS * 8]);
    let header = Header::from_numbers(std::array::from_fn(|at| words[at] as usize));
    let Header { format, rounding, beside, threshold, lines, width, block, codes, scales } = header;
    let places = header.places();
    let floats = |at: usize, count: usize| -> &[f32] { bytemuck::cast_slice(&bytes[at..at + 4 * count]) };
    Packed {
        lines,
        width,
        format,
        threshold,
        rounding,
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
