//! Activation functions on the CPU.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;

use super::fused::{ActivationOps, Curve};
use crate::ops::kernel::{self, math};

/// Value and slope of `x · s(x)`, given `s` and its slope.
#[inline(always)]
fn product(x: f32, s: f32, slope: f32) -> (f32, f32) {
    (x * s, s + x * slope)
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let (below, density) = math::normal(x);
    product(x, below, density)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    // ½ (1 + tanh u) is σ(2u), which keeps its relative accuracy in the tail.
    const TWICE: f32 = 2.0 * 0.797_884_6;
    let s = math::sigmoid(TWICE * (x + 0.044_715 * x * x * x));
    product(x, s, s * (1.0 - s) * TWICE * (1.0 + 3.0 * 0.044_715 * x * x))
}

#[inline(always)]
fn quick_gelu(x: f32) -> (f32, f32) {
    let s = math::sigmoid(1.702 * x);
    product(x, s, 1.702 * s * (1.0 - s))
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = math::sigmoid(x);
    product(x, s, s * (1.0 - s))
}

/// Calls `$body` with `$f` bound to the function of a curve, compiled for each curve.
macro_rules! with_curve {
    ($curve:expr, $f:ident => $body:expr) => {
        match $curve {
            Curve::Gelu => {
                let $f = gelu;
                $body
            }
            Curve::GeluTanh => {
                let $f = gelu_tanh;
                $body
            }
            Curve::QuickGelu => {
                let $f = quick_gelu;
                $body
            }
            Curve::Silu => {
                let $f = silu;
                $body
            }
        }
    };
}

impl ActivationOps for Flex {
    fn curve(input: FlexTensor, curve: Curve) -> FlexTensor {
        with_curve!(curve, f => kernel::map(input, #[inline(always)] |x| f(x).0))
    }

    fn curve_grad(grad: FlexTensor, input: FlexTensor, curve: Curve) -> FlexTensor {
        with_curve!(curve, f => kernel::zip(grad, &input, #[inline(always)] |g, x| g * f(x).1))
    }

    fn gated_curve(gate: FlexTensor, up: FlexTensor, curve: Curve) -> FlexTensor {
        with_curve!(curve, f => kernel::zip(up, &gate, #[inline(always)] |up, gate| f(gate).0 * up))
    }

    fn gated_curve_grads(grad: FlexTensor, gate: FlexTensor, up: FlexTensor, curve: Curve) -> (FlexTensor, FlexTensor) {
        let slope = with_curve!(curve, f => kernel::zip(up, &gate, #[inline(always)] |up, x| up * f(x).1));
        let to_gate = kernel::zip(
            slope,
            &grad,
            #[inline(always)]
            |s, g| s * g,
        );
        (to_gate, with_curve!(curve, f => kernel::zip(grad, &gate, #[inline(always)] |g, x| g * f(x).0)))
    }
}
