//! Normalisations.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::buffer::{Buffer, Counter};
use super::lazy::constant;
use crate::forward;
use crate::ops;

/// Normalisation by mean and variance.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    /// `[d_model]`
    pub bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// A lazy layer that starts as plain normalisation.
    pub fn new(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 1.0, device), bias: constant([d_model], 0.0, device), epsilon }
    }

    /// # Shapes
    /// - input, output: `[.., d_model]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| ops::layer_norm(input, it.weight.val(), it.bias.val(), it.epsilon))
    }
}

/// Normalisation by the root of the mean square.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
    around_one: bool,
}

impl RmsNorm {
    /// A lazy layer that starts as plain normalisation.
    pub fn new(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 1.0, device), epsilon, around_one: false }
    }

    /// The same whose weight is the difference to 1 of what it multiplies by: Gemma's.
    pub fn around_one(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 0.0, device), epsilon, around_one: true }
    }

    /// # Shapes
    /// - input, output: `[.., d_model]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| {
            let weight = it.weight.val();
            ops::rms_norm(input, if it.around_one { weight.add_scalar(1.0) } else { weight }, it.epsilon)
        })
    }
}

/// Normalisation of channels by running statistics: torch's `nn.BatchNorm2d` in evaluation.
///
/// Statistics are buffers of the checkpoint and stay what they are, in training too. The reference leaves the base in
/// `train()`: it normalises by the statistics of the batch and moves the running ones, which are written with an adapter
/// only if the module is one of `modules_to_save`. A base here is never written, an adapter computes in training what it
/// computes later, and the rows of a batch are independent of each other.
#[derive(Module, Debug)]
pub struct BatchNorm2d {
    /// `[channels]`
    pub weight: Param<Tensor<1>>,
    /// `[channels]`
    pub bias: Param<Tensor<1>>,
    /// `[channels]`
    pub running_mean: Buffer<1>,
    /// `[channels]`
    pub running_var: Buffer<1>,
    /// How many batches the statistics are of.
    pub num_batches_tracked: Counter,
    epsilon: f64,
}

impl BatchNorm2d {
    /// A lazy layer that starts as the identity, but for `epsilon`.
    pub fn new(channels: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            weight: constant([channels], 1.0, device),
            bias: constant([channels], 0.0, device),
            running_mean: Buffer::zeros([channels], device),
            running_var: Buffer::ones([channels], device),
            num_batches_tracked: Counter::new(device),
            epsilon,
        }
    }

    /// # Shapes
    /// - input, output: `[batch, channels, height, width]`
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        forward::by_rows(self, input, |it, input| {
            let [mean, variance] = [&it.running_mean, &it.running_var].map(|it| it.value.val());
            let scale = it.weight.val() * variance.add_scalar(it.epsilon).sqrt().recip();
            let shift = it.bias.val() - mean * scale.clone();
            let channels = scale.dims()[0];
            let [scale, shift] = [scale, shift].map(|it| it.reshape([1, channels, 1, 1]));
            input * scale + shift
        })
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::nn::set_training;

    /// `(x − mean) / √(var + ε) · weight + bias`, worked by hand, whatever the mode.
    #[test]
    fn running_statistics_are_used_in_training_too() {
        let device = Device::flex();
        let mut norm = BatchNorm2d::new(2, 0.25, &device);
        let filled =
            |values: [f32; 2]| super::super::lazy([2], &device, move |device| Tensor::from_data(values, device));
        norm.running_mean = Buffer { value: filled([1.0, -2.0]) };
        norm.running_var = Buffer { value: filled([0.75, 3.75]) };
        (norm.weight, norm.bias) = (filled([2.0, -1.0]), filled([0.5, 1.0]));
        let input = Tensor::<4>::from_data(TensorData::new(vec![1f32, 2.0, 0.0, 2.0], [1, 2, 1, 2]), &device);
        for training in [true, false] {
            let output = set_training(norm.clone(), training).forward(input.clone()).into_data();
            output.assert_approx_eq::<f32>(
                &TensorData::new(vec![0.5f32, 2.5, 0.0, -1.0], [1, 2, 1, 2]),
                Default::default(),
            );
        }
    }
}
