//! Transcendental functions without branches, so that loops over them become vector instructions.
//!
//! Relative errors are below 3e-7 where the result is a normal number (3e-6 in the far tail of Φ). NaN stays NaN.

/// `eˣ`: 2ⁿ times a polynomial on `|r| ≤ ln 2 / 2` (Cephes, `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const HIGHEST: f32 = 88.0;
    const LOWEST: f32 = -87.0;
    /// Adding and subtracting 1.5 · 2²³ rounds to a whole number, and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let bounded = if x > HIGHEST { HIGHEST } else { x };
    let bounded = if bounded < LOWEST { LOWEST } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, so that the product with n is exact in the first.
    let r = bounded - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let fraction = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let power = f32::from_bits((exponent.wrapping_add(127) << 23) as u32);
    let value = fraction * power;
    let value = if x > HIGHEST { f32::INFINITY } else { value };
    if x < LOWEST { 0.0 } else { value }
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent: a polynomial where it is near a line, else by the exponential (Cephes, `tanhf`).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p * square + coefficient;
    }
    let near = p * square * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// The normal distribution's `Φ(x)` and its density at `x`.
///
/// `erfc(z) e^(z²)` is `t Q(t)` with `t = 1 / (1 + z / 2)`, where Q is smooth on all of (0, 1]: a polynomial fitted to it
/// with the least relative error, 1.1e-8 before rounding. So the tail needs no exponential but that of the density.
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut q = 0.042_352_59;
    for coefficient in [
        -0.230_857_64,
        0.486_178_86,
        -0.446_977_46,
        0.127_089_49,
        -0.057_232_494,
        0.093_000_59,
        0.175_376_83,
        0.246_880_59,
        0.282_093_85,
        0.282_094_8,
    ] {
        q = q * t + coefficient;
    }
    let gauss = exp(-z * z);
    let tail = 0.5 * t * gauss * q;
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    let below = if x.is_nan() { x } else { below };
    (below, 0.398_942_3 * gauss)
}

/// Sum of `f` over a row, in sixteen lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let pieces = x.chunks_exact(16);
    let rest = pieces.remainder().iter().fold(0.0, |sum, x| sum + f(*x));
    for piece in pieces {
        for (lane, x) in lanes.iter_mut().zip(piece) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Sum of `f` over pairs of two rows, in sixteen lanes.
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest = xs.remainder().iter().zip(ys.remainder()).fold(0.0, |sum, (x, y)| sum + f(*x, *y));
    for (x, y) in xs.zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(*x, *y);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The largest number of a row; −∞ if there is none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let pieces = x.chunks_exact(16);
    let rest = pieces.remainder().iter().fold(f32::NEG_INFINITY, |a, b| larger(a, *b));
    for piece in pieces {
        for (lane, x) in lanes.iter_mut().zip(piece) {
            *lane = larger(*lane, *x);
        }
    }
    lanes.iter().fold(rest, |a, b| larger(a, *b))
}

/// `y ← y + a · x`
#[inline(always)]
pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let steps = 200_000;
        let error = |i: usize| {
            let x = from + (to - from) * i as f32 / steps as f32;
            let exact = exact(f64::from(x));
            (f64::from(f(x)) - exact).abs() / exact.abs().max(1e-35)
        };
        (0..=steps).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate_where_it_is_normal() {
        assert!(worst(exp, f64::exp, -87.0, 88.0) < 2e-7);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_accurate_in_both_tails() {
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0) < 3e-7);
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_accurate_everywhere() {
        assert!(worst(tanh, f64::tanh, -20.0, 20.0) < 3e-7);
        assert!(worst(tanh, f64::tanh, -0.7, 0.7) < 3e-7);
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn the_normal_distribution_is_that_of_the_tables() {
        // Φ(x) to ten places.
        let table = [
            (0.0, 0.5),
            (1.0, 0.841_344_746_1),
            (-0.1, 0.460_172_162_7),
            (-1.0, 0.158_655_253_9),
            (-3.0, 0.001_349_898_0),
            (-5.0, 2.866_515_719e-7),
            (-8.0, 6.220_960_574e-16),
        ];
        for (x, phi) in table {
            let (below, density) = normal(x);
            // The exponent of the density is rounded, which shows in the far tail.
            let limit = if x < -2.0 { 3e-6 } else { 3e-7 };
            assert!((f64::from(below) - phi).abs() < limit * phi, "{x}: {below}");
            let exact = (-0.5 * f64::from(x).powi(2)).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(density) - exact).abs() < 5e-7);
        }
        assert!(normal(f32::NAN).0.is_nan());
    }

    #[test]
    fn sums_and_maxima_see_every_number() {
        for length in [0, 1, 15, 16, 17, 50] {
            let x: Vec<f32> = (0..length).map(|i| i as f32 - 3.0).collect();
            let plain: f32 = x.iter().sum();
            assert_eq!(sum(&x, |x| x), plain);
            assert_eq!(sum2(&x, &x, |x, y| x * y), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
