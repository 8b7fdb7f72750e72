//! The scales of blocks: as they are, or in 8 bits themselves; and the maps of 8 bits, which moments of an optimizer take too.
//!
//! Double quantisation takes the mean off the scales, and quantises the rest in blocks of 256 by 256 values, of which small ones
//! lie closer together.
//!
//! Source: `quantize_blockwise` and `create_dynamic_map` of bitsandbytes; arXiv 1511.04561 and 2305.14314.

use std::sync::LazyLock;

/// Scales that share one of their own.
pub const NESTED_BLOCK: usize = 256;

/// The scales of the blocks of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scales<'a> {
    /// One number a block.
    Single(&'a [f32]),
    /// One code a block.
    Double {
        /// Places in `values`.
        codes: &'a [u8],
        /// The largest number of every [`NESTED_BLOCK`] of them, without the offset.
        largest: &'a [f32],
        /// What the codes mean.
        values: &'a [f32],
        /// The mean, which was taken off.
        offset: f32,
    },
}

impl Scales<'_> {
    /// The scale of a block.
    #[inline(always)]
    pub fn of(&self, block: usize) -> f32 {
        match self {
            Self::Single(scales) => scales[block],
            Self::Double { codes, largest, values, offset } => {
                values[usize::from(codes[block])] * largest[block / NESTED_BLOCK] + offset
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Single(scales) => scales.len(),
            Self::Double { codes, .. } => codes.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Scales in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleQuantized {
    /// Places in [`dynamic_map`].
    pub codes: Vec<u8>,
    /// The largest number of every [`NESTED_BLOCK`].
    pub largest: Vec<f32>,
    /// The mean.
    pub offset: f32,
}

impl DoubleQuantized {
    /// Quantises scales.
    pub fn new(scales: &[f32]) -> Self {
        // torch adds up in parts; the sum in double precision is nearer to the truth than either order of its parts.
        let offset = (scales.iter().map(|it| f64::from(*it)).sum::<f64>() / scales.len().max(1) as f64) as f32;
        let map = dynamic_map();
        let mut codes = Vec::with_capacity(scales.len());
        let mut largest = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
        for block in scales.chunks(NESTED_BLOCK) {
            let most = block.iter().fold(0.0_f32, |most, it| most.max((it - offset).abs()));
            let scale = if most > 0.0 { 1.0 / most } else { 0.0 };
            codes.extend(block.iter().map(|it| nearest(map, (it - offset) * scale)));
            largest.push(most);
        }
        Self { codes, largest, offset }
    }
}

/// The place of the nearest of ascending values, the lower one between two.
pub fn nearest(values: &[f32; 256], x: f32) -> u8 {
    let above = values.partition_point(|it| *it < x).clamp(1, 255);
    let (low, high) = (values[above - 1], values[above]);
    (if x - low <= high - x { above - 1 } else { above }) as u8
}

/// The 256 values of the reference's dynamic map, ascending.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| map_of(true));
    &MAP
}

/// The same for numbers that are not negative: twice as many of them.
pub fn dynamic_map_unsigned() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| map_of(false));
    &MAP
}

fn map_of(is_signed: bool) -> [f32; 256] {
    let mut values = vec![0.0_f32, 1.0];
    for exponent in 0..7_i32 {
        let items: usize = if is_signed { 1 << exponent } else { 2 << exponent };
        // `torch.linspace` counts from both ends, and rounds once.
        let step = (1.0_f32 - 0.1) / items as f32;
        let bound = |at: usize| match at < items.div_ceil(2) {
            true => step.mul_add(at as f32, 0.1),
            false => (-step).mul_add((items - at) as f32, 1.0),
        };
        let power = 10.0_f64.powi(exponent - 6);
        for at in 0..items {
            let mean = (bound(at) + bound(at + 1)) / 2.0;
            let value = (power as f32) * mean;
            values.push(value);
            values.extend(is_signed.then_some(-value));
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}
