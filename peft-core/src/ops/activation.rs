//! Activation functions.

use std::f64::consts::PI;

use burn::tensor::{Tensor, activation};

/// `x · Φ(x)`, exact: transformers' `gelu`.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    activation::gelu(input)
}

/// The approximation of GELU by a hyperbolic tangent: transformers' `gelu_new` and `gelu_pytorch_tanh`.
pub fn gelu_tanh<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    // A product, not `powf`: that one is computed by a library call for each element.
    let cubic = input.clone() * input.clone() * input.clone();
    let inner = (input.clone() + cubic.mul_scalar(0.044715)).mul_scalar((2.0 / PI).sqrt());
    input.mul_scalar(0.5) * inner.tanh().add_scalar(1.0)
}

/// `x · σ(1.702 x)`: transformers' `quick_gelu`.
pub fn quick_gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    input.clone() * activation::sigmoid(input.mul_scalar(1.702))
}

/// `x · σ(x)`: transformers' `silu` and `swish`.
pub fn silu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    activation::silu(input)
}

/// `silu(gate) · up`, the middle of a gated MLP.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}
