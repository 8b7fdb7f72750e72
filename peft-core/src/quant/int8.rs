//! Eight bits a number: the nearest of 255 steps of the largest number of a row.
//!
//! Source: `int8_vectorwise_quant` and `int8_vectorwise_dequant` of bitsandbytes.

use half::f16;

/// Steps from 0 to the largest number of a row.
pub const STEPS: f32 = 127.0;
/// What the reference multiplies by in place of dividing by 127.
pub(super) const ONE_STEP: f32 = 7.874_016e-3;

/// `1 / 127²` as the reference writes it: it forgets a zero, and gets 2e-5 of it more. The same here, since what a code is rounded to
/// in the next layer hangs on such a difference.
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) const ONE_STEP_OF_BOTH: f32 = 6.200_124e-5;
/// What a step of an activation is multiplied by, where that of the weight is [`ONE_STEP`] already.
#[cfg(feature = "cube")]
pub(crate) const ACTIVATION_STEP: f32 = ONE_STEP_OF_BOTH / ONE_STEP;

/// The codes of a matrix, and the largest number of each row. Numbers are rounded to half precision first, as
/// bitsandbytes does.
pub fn quantize(numbers: &[f32], width: usize) -> (Vec<i8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(numbers.len());
    let mut largest = Vec::with_capacity(numbers.len() / width.max(1));
    for row in numbers.chunks(width.max(1)) {
        let half = |x: &f32| f16::from_f32(*x).to_f32();
        let most = row.iter().map(half).fold(0.0_f32, |most, x| most.max(x.abs()));
        let scale = steps_per(most);
        codes.extend(row.iter().map(|x| if most > 0.0 { (half(x) * scale).round_ties_even() as i8 } else { 0 }));
        largest.push(most);
    }
    (codes, largest)
}

/// Steps for each unit, where `largest` is the largest number. A reciprocal first, which is how torch divides by a tensor: half
/// of the largest number lies between two codes, and the last bit decides.
#[inline(always)]
pub fn steps_per(largest: f32) -> f32 {
    1.0 / largest * STEPS
}

/// The number that a code means.
#[inline(always)]
pub(super) fn number(code: i8, largest: f32) -> f32 {
    f32::from(code) * largest * ONE_STEP
}
