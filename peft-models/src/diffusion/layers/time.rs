//! Timesteps as vectors. Source: `diffusers/models/embeddings.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::nn::Projection;

use crate::common::config::Activation;

/// Sines and cosines of a number, in geometrically growing wavelengths: `Timesteps`.
#[derive(Debug, Clone)]
pub struct Timesteps {
    /// Width of the vectors.
    pub channels: usize,
    /// Whether cosines stand first.
    pub flip_sin_to_cos: bool,
    /// What is taken off the number of wavelengths.
    pub freq_shift: f64,
}

impl Timesteps {
    /// # Shapes
    /// - timesteps: `[count]`
    /// - output: `[count, channels]`
    pub fn forward(&self, timesteps: Tensor<1>) -> Tensor<2> {
        let half = self.channels / 2;
        let device = timesteps.device().without_autodiff();
        // In single precision step by step, as the reference computes them.
        let step = -(10000f64.ln()) as f32;
        let width = (half as f64 - self.freq_shift) as f32;
        let frequencies: Vec<f32> = (0..half).map(|at| (step * at as f32 / width).exp()).collect();
        let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &device);
        let angles = timesteps.unsqueeze_dim::<2>(1) * frequencies;
        let (sin, cos) = (angles.clone().sin(), angles.cos());
        let mut halves = if self.flip_sin_to_cos { vec![cos, sin] } else { vec![sin, cos] };
        if self.channels % 2 == 1 {
            let count = halves[0].dims()[0];
            halves.push(Tensor::zeros([count, 1], &device));
        }
        Tensor::cat(halves, 1)
    }
}

/// Two layers that make a condition of a vector.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct TimestepEmbedding {
    pub linear_1: Projection,
    pub linear_2: Projection,
    #[module(skip)]
    act: Activation,
}

impl TimestepEmbedding {
    /// A lazy layer.
    pub fn new(channels: usize, width: usize, act: Activation, device: &Device) -> Self {
        Self {
            linear_1: Projection::new(channels, width, true, device),
            linear_2: Projection::new(width, width, true, device),
            act,
        }
    }

    /// # Shapes
    /// - input: `[batch, channels]`
    /// - output: `[batch, width]`
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(self.act.apply(self.linear_1.forward(input)))
    }
}
