//! A packed matrix as bytes: a header and its parts, one behind the other. They lie so on every device that computes with them.

use super::four_bit::FourBit;
use super::grouped::{GroupBits, Groups};
use super::packed::{Packed, QuantFormat};
use super::rounding::Rounding;
use super::scales::{NESTED_BLOCK, Scales};

/// The header, and what every part begins at a multiple of.
const ALIGNED: usize = 64;
/// Numbers of the header.
pub(super) const WORDS: usize = 7;

/// What lies beside the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Beside {
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

/// What is known of a packed matrix before its bytes are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Header {
    pub(super) format: QuantFormat,
    pub(super) rounding: Rounding,
    pub(super) beside: Beside,
    /// [`Packed::threshold`]
    pub(crate) threshold: Option<f32>,
    pub(super) lines: usize,
    pub(super) width: usize,
    pub(super) block: usize,
    /// How many bytes of codes there are.
    pub(super) codes: usize,
    pub(super) scales: usize,
}

const FORMATS: [QuantFormat; 5] = [
    QuantFormat::FourBit(FourBit::Nf4),
    QuantFormat::FourBit(FourBit::Fp4),
    QuantFormat::Int8,
    QuantFormat::Grouped(GroupBits::Four),
    QuantFormat::Grouped(GroupBits::Eight),
];
const ROUNDINGS: [Rounding; 3] = [Rounding::Single, Rounding::Bf16, Rounding::F16];

/// The place of a value among all that there are.
fn place<T: PartialEq>(all: &[T], value: T) -> usize {
    all.iter().position(|it| *it == value).unwrap_or_default()
}

impl Header {
    pub(super) fn of(matrix: &Packed<'_>) -> Self {
        let Packed { format, rounding, threshold, lines, width, block, .. } = *matrix;
        let (codes, scales) = (matrix.codes.len(), matrix.scales.len());
        Self { format, rounding, beside: Beside::of(matrix), threshold, lines, width, block, codes, scales }
    }

    /// The header as numbers.
    pub(super) fn to_numbers(self) -> [usize; WORDS] {
        let kinds = [place(&FORMATS, self.format), place(&ROUNDINGS, self.rounding), place(&Beside::ALL, self.beside)];
        // 0 is none; its bits are those of a finite number, so that one more is no 0.
        let threshold = self.threshold.map_or(0, |it| it.to_bits() + 1);
        let kinds = kinds[0] | kinds[1] << 8 | kinds[2] << 16;
        [kinds, threshold as usize, self.lines, self.width, self.block, self.codes, self.scales]
    }

    pub(super) fn from_numbers([kinds, threshold, lines, width, block, codes, scales]: [usize; WORDS]) -> Self {
        let kind = |at: usize| kinds >> (8 * at) & 0xff;
        Self {
            format: FORMATS[kind(0) % FORMATS.len()],
            rounding: ROUNDINGS[kind(1) % ROUNDINGS.len()],
            beside: Beside::ALL[kind(2) % Beside::ALL.len()],
            threshold: threshold.checked_sub(1).map(|bits| f32::from_bits(bits as u32)),
            lines,
            width,
            block,
            codes,
            scales,
        }
    }

    /// Where the parts lie.
    pub(super) fn places(self) -> Places {
        let up = |it: usize| it.next_multiple_of(ALIGNED);
        let Self { beside, scales, .. } = self;
        let scales_at = ALIGNED + up(self.codes);
        let nested = scales_at + up(if beside == Beside::Double { scales } else { 4 * scales });
        let values = nested
            + match beside {
                Beside::Single => 0,
                // The offset comes before the scales of scales.
                Beside::Double => up(4 * (1 + scales.div_ceil(NESTED_BLOCK))),
                Beside::Groups | Beside::SortedGroups => up(scales),
            };
        let table = values
            + match beside {
                Beside::Single | Beside::Groups => 0,
                Beside::Double => 4 * 256,
                Beside::SortedGroups => up(4 * self.width),
            };
        let end = table + if matches!(self.format, QuantFormat::FourBit(_)) { 4 * 16 } else { 0 };
        Places { codes: ALIGNED, scales: scales_at, nested, values, table, end }
    }
}

/// At which bytes the parts of a packed matrix begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) codes: usize,
    pub(super) scales: usize,
    /// Scales of scales, or zeros.
    pub(super) nested: usize,
    /// What codes of scales mean, or the groups of columns.
    pub(super) values: usize,
    /// What codes of four bits mean, for devices that have no table of them in the program.
    pub(super) table: usize,
    end: usize,
}

/// A packed matrix as the bytes of its tensor.
pub(crate) fn packed_words(matrix: &Packed<'_>) -> Vec<u64> {
    let header = Header::of(matrix);
    let places = header.places();
    // Words, so that numbers of four bytes are where they may be read.
    let mut words = vec![0_u64; places.end.div_ceil(8)];
    for (word, number) in words.iter_mut().zip(header.to_numbers()) {
        *word = number as u64;
    }
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
    if let QuantFormat::FourBit(kind) = matrix.format {
        put(places.table, bytemuck::cast_slice(kind.values()));
    }
    words
}
