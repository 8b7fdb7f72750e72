//! The operations as compositions of Burn's own.
//!
//! This is what each of them means. It is the form that runs on every backend without one of its own, and the one that
//! the others are tested and timed against.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor, activation};

use super::convolution::Convolution;
use super::labels::IGNORE_INDEX;
use crate::context;

/// Runs a forward on a card whose operations are all composed, to compare with.
pub fn only<R>(run: impl FnOnce() -> R) -> R {
    let _composed = context::enter(|it| it.composed = true);
    run()
}

/// See [`crate::ops::gelu`].
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    // Not Burn's own: the derivative of that is, on the backends that go through CubeCL, the one of the approximation.
    let share = input.clone().mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    input * share
}

/// See [`crate::ops::gelu_tanh`].
pub fn gelu_tanh<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    // A product, not `powf`: that one is computed by a library call for each element.
    let cubic = input.clone() * input.clone() * input.clone();
    let inner = (input.clone() + cubic.mul_scalar(0.044715)).mul_scalar((2.0 / PI).sqrt());
    input.mul_scalar(0.5) * inner.tanh().add_scalar(1.0)
}

/// See [`crate::ops::quick_gelu`].
pub fn quick_gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    input.clone() * activation::sigmoid(input.mul_scalar(1.702))
}

/// See [`crate::ops::silu`].
pub fn silu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    activation::silu(input)
}

/// See [`crate::ops::silu_mul`].
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

/// See [`crate::ops::layer_norm`].
pub fn layer_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean = input.clone().mean_dim(D - 1);
    let centred = input - mean;
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    let normal = centred * variance.add_scalar(epsilon).sqrt().recip();
    normal * weight.unsqueeze() + bias.unsqueeze()
}

/// See [`crate::ops::rms_norm`].
pub fn rms_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean_square = (input.clone() * input.clone()).mean_dim(D - 1);
    let normal = input * mean_square.add_scalar(epsilon).sqrt().recip();
    normal * weight.unsqueeze()
}

/// See [`crate::ops::linear`]; the weight is `[in, out]`.
pub fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    burn::tensor::module::linear(input, weight, bias)
}

/// See [`crate::ops::conv2d`].
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, how: Convolution) -> Tensor<4> {
    burn::tensor::module::conv2d(input, weight, bias, ConvOptions::from(how))
}

/// See [`crate::ops::split`].
pub fn split<const D: usize, const N: usize>(input: Tensor<D>, sizes: [usize; N]) -> [Tensor<D>; N] {
    let mut start = 0;
    sizes.map(|length| {
        start += length;
        input.clone().narrow(D - 1, start - length, length)
    })
}

/// See [`crate::ops::low_rank_update`]; the input is dropped already.
pub fn low_rank_update(output: Tensor<2>, input: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f64) -> Tensor<2> {
    output + input.matmul(a.transpose()).matmul(b.transpose()).mul_scalar(scale)
}

/// See [`crate::ops::linear_cross_entropy`], from the logits.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>, smoothing: f64) -> Tensor<1> {
    let ignored = labels.clone().equal_elem(IGNORE_INDEX);
    let kept = ignored.clone().bool_not().float().sum();
    let index = labels.mask_fill(ignored.clone(), 0).unsqueeze_dim::<2>(1);
    let log = activation::log_softmax(logits, 1);
    let mut terms = log.clone().gather(1, index).squeeze_dim::<1>(1);
    if smoothing > 0.0 {
        terms = terms.mul_scalar(1.0 - smoothing) + log.mean_dim(1).squeeze_dim::<1>(1).mul_scalar(smoothing);
    }
    terms.mask_fill(ignored, 0.0).sum().neg() / kept
}
