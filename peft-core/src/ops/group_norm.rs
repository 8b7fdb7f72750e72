//! Normalisation over groups of channels.

use burn::tensor::Tensor;

use super::norm::layer_norm;

/// `(x − mean) / √(variance + ε) · weight + bias`, with mean and variance of each group of channels.
///
/// # Shapes
/// - input, output: `[batch, channels, ..]`, `channels` a multiple of `groups`
/// - weight, bias: `[channels]`
pub fn group_norm<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    epsilon: f64,
) -> Tensor<D> {
    let dims = input.dims();
    let group = dims[1..].iter().product::<usize>() / groups;
    let device = input.device().without_autodiff();
    // A group is a row whose numbers lie side by side, so that it is normalised as a hidden state is.
    let rows = input.reshape([dims[0] * groups, group]);
    let plain = layer_norm(rows, Tensor::ones([group], &device), Tensor::zeros([group], &device), epsilon);
    let mut channels = [1; D];
    channels[1] = dims[1];
    plain.reshape(dims) * weight.reshape(channels) + bias.reshape(channels)
}
