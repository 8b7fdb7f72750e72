//! Normalisations over the last axis.

use burn::tensor::Tensor;

/// `(x − mean) / √(variance + ε) · weight + bias`.
///
/// # Shapes
/// - input, output: `[.., d_model]`
/// - weight, bias: `[d_model]`
pub fn layer_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean = input.clone().mean_dim(D - 1);
    let centred = input - mean;
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    let normal = centred * variance.add_scalar(epsilon).sqrt().recip();
    normal * weight.unsqueeze() + bias.unsqueeze()
}

/// `x / √(mean(x²) + ε) · weight`.
///
/// # Shapes
/// - input, output: `[.., d_model]`
/// - weight: `[d_model]`
pub fn rms_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean_square = (input.clone() * input.clone()).mean_dim(D - 1);
    let normal = input * mean_square.add_scalar(epsilon).sqrt().recip();
    normal * weight.unsqueeze()
}
