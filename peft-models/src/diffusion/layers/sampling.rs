//! Halving and doubling of pictures. Source: `diffusers/models/downsampling.py`, `upsampling.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::Conv2d;
use peft_core::ops::upsample_nearest;

/// A convolution that halves both axes.
#[derive(Module, Debug)]
pub struct Downsample2d {
    /// `[channels, channels, 3, 3]`
    pub conv: Conv2d,
    /// Whether zeros stand at the end of each axis only.
    pad_end: bool,
}

impl Downsample2d {
    /// A lazy layer. Without padding, a row and a column of zeros come behind the last ones.
    pub fn new(channels: usize, padding: usize, device: &Device) -> Self {
        let conv = Conv2d::new([channels; 2], [3; 2], 1, device).with_stride([2; 2]).with_padding([padding; 2]);
        Self { conv, pad_end: padding == 0 }
    }

    /// # Shapes
    /// - input: `[batch, channels, rows, columns]`
    /// - output: `[batch, channels, rows / 2, columns / 2]`, rounded up where there is padding on both sides
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.conv.forward(if self.pad_end { padded_at_the_end(input) } else { input })
    }
}

/// With one more row and column of zeros.
fn padded_at_the_end(input: Tensor<4>) -> Tensor<4> {
    let [batch, channels, rows, columns] = input.dims();
    let device = input.device().without_autodiff();
    let wider = Tensor::cat(vec![input, Tensor::zeros([batch, channels, rows, 1], &device)], 3);
    Tensor::cat(vec![wider, Tensor::zeros([batch, channels, 1, columns + 1], &device)], 2)
}

/// Doubling, and a convolution behind it.
#[derive(Module, Debug)]
pub struct Upsample2d {
    /// `[channels, channels, 3, 3]`
    pub conv: Conv2d,
}

impl Upsample2d {
    /// A lazy layer.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { conv: Conv2d::new([channels; 2], [3; 2], 1, device).with_padding([1; 2]) }
    }

    /// `size` is that of the output; by default twice that of the input.
    ///
    /// # Shapes
    /// - input: `[batch, channels, rows, columns]`
    /// - output: `[batch, channels, size[0], size[1]]`
    pub fn forward(&self, input: Tensor<4>, size: Option<[usize; 2]>) -> Tensor<4> {
        let [_, _, rows, columns] = input.dims();
        self.conv.forward(upsample_nearest(input, size.unwrap_or([2 * rows, 2 * columns])))
    }
}
