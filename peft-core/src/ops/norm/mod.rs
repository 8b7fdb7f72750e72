//! Normalisations over the last axis.

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

/// `(x − mean) / √(variance + ε) · weight + bias`.
///
/// # Shapes
/// - input, output: `[.., d_model]`
/// - weight, bias: `[d_model]`
pub fn layer_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if [&weight, &bias].into_iter().all(|it| fits(it) && it.dtype() == input.dtype()) && fits(&input) {
        return fused::layer_norm(input, weight, bias, epsilon);
    }
    plain::layer_norm(input, weight, bias, epsilon)
}

/// `x / √(mean(x²) + ε) · weight`.
///
/// # Shapes
/// - input, output: `[.., d_model]`
/// - weight: `[d_model]`
pub fn rms_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if fits(&input) && fits(&weight) && weight.dtype() == input.dtype() {
        return fused::rms_norm(input, weight, epsilon);
    }
    plain::rms_norm(input, weight, epsilon)
}
