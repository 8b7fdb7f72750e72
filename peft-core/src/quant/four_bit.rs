//! Four bits a number: the place of the nearest of sixteen values.
//!
//! Numbers are divided by the largest of their block. Two codes make a byte, the first in the upper half.
//!
//! Source: `backends/default/ops.py` and `functional.py` of bitsandbytes; NF4 is from arXiv 2305.14314.

use std::cmp::Ordering;
use std::sync::LazyLock;

use super::rounding::Rounding;

/// Numbers that share a scale, unless a file says another number.
pub const BLOCK: usize = 64;

/// Which sixteen values there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FourBit {
    /// Values that a normal distribution takes equally often.
    Nf4,
    /// Floating point: a sign, two bits of exponent, one of fraction.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// The two values of every byte, so that widening takes one look for two numbers.
type Pairs = [[f32; 2]; 256];

static NF4_PAIRS: LazyLock<Pairs> = LazyLock::new(|| pairs(&NF4));
static FP4_PAIRS: LazyLock<Pairs> = LazyLock::new(|| pairs(&FP4));

fn pairs(values: &[f32; 16]) -> Pairs {
    std::array::from_fn(|byte| [values[byte >> 4], values[byte & 15]])
}

impl FourBit {
    /// The value of each code.
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    pub(super) fn pairs(self) -> &'static Pairs {
        match self {
            Self::Nf4 => &NF4_PAIRS,
            Self::Fp4 => &FP4_PAIRS,
        }
    }

    /// Codes in the order of their values, and the middles between neighbours: a number on a middle takes the lower one.
    fn bounds(self) -> ([u8; 16], [f32; 15]) {
        let values = self.values();
        let mut order: [u8; 16] = std::array::from_fn(|it| it as u8);
        // Of the two zeros the first comes first, as in `torch.argsort`.
        let value = |code: &u8| values[usize::from(*code)];
        order.sort_by(|a, b| value(a).partial_cmp(&value(b)).unwrap_or(Ordering::Equal));
        let value = |at: usize| values[usize::from(order[at])];
        let bounds = std::array::from_fn(|at| (value(at) + value(at + 1)) / 2.0);
        (order, bounds)
    }

    /// The codes of numbers, two a byte, and the largest number of each block. What is not finite has no code.
    pub fn quantize(self, numbers: &[f32], block: usize) -> (Vec<u8>, Vec<f32>) {
        let (order, bounds) = self.bounds();
        let code = |x: f32| order[bounds.iter().filter(|it| x > **it).count()];
        let mut codes = vec![0; numbers.len().div_ceil(2)];
        let mut largest = Vec::with_capacity(numbers.len().div_ceil(block));
        for (at, numbers) in numbers.chunks(block).enumerate() {
            let most = numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let scale = 1.0 / most.max(1e-38);
            for (place, x) in (at * block..).zip(numbers) {
                // The reference multiplies whole blocks and divides the rest of the last one.
                let x = if numbers.len() == block { x * scale } else { x / most.max(1e-38) };
                codes[place / 2] |= code(x.clamp(-1.0, 1.0)) << (4 * (1 - place % 2));
            }
            largest.push(most);
        }
        // The reference fills half a byte up with the code of 0.
        if numbers.len() % 2 == 1
            && let Some(last) = codes.last_mut()
        {
            *last |= code(0.0);
        }
        (codes, largest)
    }
}

/// The values of the codes from `place` on, without their scale.
#[inline(always)]
pub(super) fn widen_codes(pairs: &[[f32; 2]; 256], codes: &[u8], place: usize, out: &mut [f32]) {
    let odd = (place % 2).min(out.len());
    let (first, rest) = out.split_at_mut(odd);
    if let [first] = first {
        *first = pairs[usize::from(codes[place / 2])][1];
    }
    let codes = &codes[(place + odd) / 2..];
    let (whole, last) = rest.as_chunks_mut::<2>();
    for (to, code) in whole.iter_mut().zip(codes) {
        *to = pairs[usize::from(*code)];
    }
    if let [last] = last {
        *last = pairs[usize::from(codes[whole.len()])][0];
    }
}

/// Whether [`permute`] is there for so many codes from `place` on.
#[inline(always)]
pub(super) fn has_permutations(place: usize, count: usize) -> bool {
    #[cfg(all(target_arch = "x86_64", feature = "flex"))]
    return place.is_multiple_of(2) && count >= RUN && std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(all(target_arch = "x86_64", feature = "flex")))]
    {
        let _ = (place, count);
        false
    }
}

/// Codes that are widened at once: two in each lane of a vector.
#[cfg(all(target_arch = "x86_64", feature = "flex"))]
const RUN: usize = 32;

/// The numbers of codes, of which the first is the upper half of a byte: values with a scale, rounded. All sixteen are computed once.
///
/// # Panics
/// If the processor cannot: see [`has_permutations`].
#[inline(always)]
pub(super) fn permute(values: &[f32; 16], scale: f32, rounding: Rounding, codes: &[u8], out: &mut [f32]) {
    #[cfg(all(target_arch = "x86_64", feature = "flex"))]
    #[allow(unsafe_code)]
    {
        assert!(std::arch::is_x86_feature_detected!("avx512f"), "the processor permutes lanes");
        // SAFETY: it has the instructions.
        unsafe { x86::permute(values, scale, rounding, codes, out) };
    }
    #[cfg(not(all(target_arch = "x86_64", feature = "flex")))]
    unreachable!("no permutations here: {values:?} {scale} {rounding:?} {}", codes.len() + out.len());
}

#[cfg(all(target_arch = "x86_64", feature = "flex"))]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m512, __m512i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_add_epi32, _mm512_and_si512,
        _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_cvtps_ph,
        _mm512_mul_ps, _mm512_permutex2var_ps, _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_slli_epi32, _mm512_srli_epi32,
    };

    use pulp::bytemuck;

    use super::{RUN, Rounding};

    /// Lanes of two vectors in turn: those of the second one are counted from 16 on.
    const IN_TURN: [[u32; 16]; 2] = [
        [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23],
        [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31],
    ];

    #[target_feature(enable = "avx512f")]
    pub(super) fn permute(values: &[f32; 16], scale: f32, rounding: Rounding, codes: &[u8], out: &mut [f32]) {
        let [first, second]: [__m512i; 2] = bytemuck::cast(IN_TURN);
        let lanes = rounded(_mm512_mul_ps(bytemuck::cast(*values), _mm512_set1_ps(scale)), rounding);
        let (runs, rest) = out.as_chunks_mut::<RUN>();
        let (whole, last) = codes.as_chunks::<{ RUN / 2 }>();
        let count = runs.len();
        for (out, codes) in runs.iter_mut().zip(whole) {
            let codes: __m512i = _mm512_cvtepu8_epi32(bytemuck::cast::<_, __m128i>(*codes));
            // Of a lane's number only the lowest four bits count.
            let upper = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), lanes);
            let lower = _mm512_permutexvar_ps(codes, lanes);
            let numbers = [_mm512_permutex2var_ps(upper, first, lower), _mm512_permutex2var_ps(upper, second, lower)];
            *out = bytemuck::cast(numbers);
        }
        if rest.is_empty() {
            return;
        }
        let table: [f32; 16] = bytemuck::cast(lanes);
        let codes = whole.get(count..).unwrap_or_default().as_flattened().iter().chain(last);
        for (to, code) in rest.chunks_mut(2).zip(codes) {
            let both = [table[usize::from(code >> 4)], table[usize::from(code & 15)]];
            to.copy_from_slice(&both[..to.len()]);
        }
    }

    /// Numbers that are none do not come here: a scale that is none is refused when it is read.
    #[target_feature(enable = "avx512f")]
    fn rounded(x: __m512, rounding: Rounding) -> __m512 {
        match rounding {
            Rounding::Single => x,
            Rounding::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)),
            Rounding::Bf16 => {
                let bits = _mm512_castps_si512(x);
                let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let bits = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_srli_epi32::<16>(bits)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of codes, from every even place: what one look after the other gives.
    #[test]
    fn permutations_give_the_values_of_the_codes() {
        let codes: Vec<u8> = (0..200_u32).map(|it| (it * 97 % 256) as u8).collect();
        for (rounding, scale) in [(Rounding::Single, 0.013), (Rounding::Bf16, 0.0371), (Rounding::F16, 3.3e-5)] {
            for (place, count) in [(0, 32), (2, 33), (34, 62), (0, 64), (6, 95), (34, 96), (2, 300)] {
                if !has_permutations(place, count) {
                    continue;
                }
                let (mut found, mut wanted) = (vec![0.0; count], vec![0.0; count]);
                permute(&NF4, scale, rounding, &codes[place / 2..], &mut found);
                widen_codes(&pairs(&NF4), &codes, place, &mut wanted);
                wanted.iter_mut().for_each(|x| *x = rounding.of(*x * scale));
                assert_eq!(found, wanted, "{count} from {place}, {rounding:?}");
            }
        }
    }

    /// The code of a number by the definition: the nearest value.
    #[test]
    fn a_number_takes_the_code_of_the_nearest_value() {
        for format in [FourBit::Nf4, FourBit::Fp4] {
            let numbers: Vec<f32> = (0..64).map(|at| (at as f32 - 31.5) / 31.5).collect();
            let (codes, largest) = format.quantize(&numbers, 64);
            assert_eq!(largest, [1.0]);
            for (at, x) in numbers.iter().enumerate() {
                let code = codes[at / 2] >> (4 * (1 - at % 2)) & 15;
                let error = (format.values()[usize::from(code)] - x).abs();
                let least = format.values().iter().map(|it| (it - x).abs()).fold(f32::INFINITY, f32::min);
                assert!(error <= least + 1e-6, "{format:?} {x}: off by {error}, {least} is possible");
            }
        }
    }
}
