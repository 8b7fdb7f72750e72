//! Activation functions.

use super::{SHAPES, check, numbers};
use crate::ops::{self, plain};

#[test]
fn activations_are_their_compositions() {
    for shape in SHAPES {
        let x = || [numbers(shape, 1).mul_scalar(3.0)];
        check("gelu", x(), |[x]| ops::gelu(x), |[x]| plain::gelu(x));
        check("gelu_tanh", x(), |[x]| ops::gelu_tanh(x), |[x]| plain::gelu_tanh(x));
        check("quick_gelu", x(), |[x]| ops::quick_gelu(x), |[x]| plain::quick_gelu(x));
        check("silu", x(), |[x]| ops::silu(x), |[x]| plain::silu(x));
        let pair = [numbers(shape, 1), numbers(shape, 2)];
        check("silu_mul", pair, |[a, b]| ops::silu_mul(a, b), |[a, b]| plain::silu_mul(a, b));
    }
}
