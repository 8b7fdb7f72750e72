//! Activation functions.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(any(feature = "flex", feature = "cube"))]
mod fused;

use burn::tensor::Tensor;

#[cfg(any(feature = "flex", feature = "cube"))]
use super::fits::fits;
use super::plain;

/// `x · Φ(x)`, exact: transformers' `gelu`.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if fits(&input) {
        return fused::activation(input, fused::Curve::Gelu);
    }
    plain::gelu(input)
}

/// The approximation of GELU by a hyperbolic tangent: transformers' `gelu_new` and `gelu_pytorch_tanh`.
pub fn gelu_tanh<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if fits(&input) {
        return fused::activation(input, fused::Curve::GeluTanh);
    }
    plain::gelu_tanh(input)
}

/// `x · σ(1.702 x)`: transformers' `quick_gelu`.
pub fn quick_gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if fits(&input) {
        return fused::activation(input, fused::Curve::QuickGelu);
    }
    plain::quick_gelu(input)
}

/// `x · σ(x)`: transformers' `silu` and `swish`.
pub fn silu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if fits(&input) {
        return fused::activation(input, fused::Curve::Silu);
    }
    plain::silu(input)
}

/// `silu(gate) · up`, the middle of a gated MLP.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if fits(&gate) && fits(&up) && gate.dtype() == up.dtype() && gate.dims() == up.dims() {
        return fused::gate(gate, up, fused::Curve::Silu);
    }
    plain::silu_mul(gate, up)
}
