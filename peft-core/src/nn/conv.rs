//! Convolutions.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::lazy::{INITIALIZER_RANGE, constant, normal};
use crate::forward;
use crate::ops::{self, Convolution, Layout};

/// A convolution along one axis: torch's `nn.Conv1d`.
#[derive(Module, Debug)]
pub struct Conv1d {
    /// `[out, in / groups, width]`
    pub weight: Param<Tensor<3>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    padding: usize,
    stride: usize,
    groups: usize,
}

impl Conv1d {
    /// A lazy layer from `in` to `out` channels, with a stride of 1.
    pub fn new([d_input, d_output]: [usize; 2], width: usize, groups: usize, device: &Device) -> Self {
        Self {
            weight: normal([d_output, d_input / groups, width], INITIALIZER_RANGE, device),
            bias: constant([d_output], 0.0, device),
            padding: 0,
            stride: 1,
            groups,
        }
    }

    /// With so many zeros at either end.
    pub fn with_padding(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// With so many places from one output to the next.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// # Shapes
    /// - input: `[batch, in, length]`
    /// - output: `[batch, out, (length + 2 · padding − width) / stride + 1]`
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        forward::by_rows(self, input, |it, input| {
            // A picture of one row.
            let how = Convolution { stride: [1, it.stride], padding: [0, it.padding], groups: it.groups };
            let (input, weight) = (input.unsqueeze_dim(2), it.weight.val().unsqueeze_dim(2));
            ops::conv2d(input, weight, Some(it.bias.val()), how).squeeze_dim(2)
        })
    }
}

/// A convolution over height and width: torch's `nn.Conv2d` without a dilation.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in / groups, height, width]`
    pub weight: Param<Tensor<4>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    stride: [usize; 2],
    padding: [usize; 2],
    groups: usize,
}

impl Conv2d {
    /// A lazy layer from `in` to `out` channels with a bias, a stride of 1 and no padding. `groups` divides both numbers.
    pub fn new([d_input, d_output]: [usize; 2], kernel: [usize; 2], groups: usize, device: &Device) -> Self {
        Self {
            weight: normal([d_output, d_input / groups, kernel[0], kernel[1]], INITIALIZER_RANGE, device),
            bias: Some(constant([d_output], 0.0, device)),
            stride: [1, 1],
            padding: [0, 0],
            groups,
        }
    }

    /// Whose kernel moves by so many rows and columns.
    pub fn with_stride(mut self, stride: [usize; 2]) -> Self {
        self.stride = stride;
        self
    }

    /// With so many zeros above and below, and at either side.
    pub fn with_padding(mut self, padding: [usize; 2]) -> Self {
        self.padding = padding;
        self
    }

    /// Without a bias.
    pub fn without_bias(mut self) -> Self {
        self.bias = None;
        self
    }

    /// Rows and columns of the output for an input of so many: none where the kernel does not fit in.
    pub fn output_size(&self, input: [usize; 2]) -> [usize; 2] {
        self.how().output_size(input, self.kernel())
    }

    fn how(&self) -> Convolution {
        Convolution { stride: self.stride, padding: self.padding, groups: self.groups }
    }

    /// # Shapes
    /// - input: `[batch, in, height, width]`
    /// - output: `[batch, out, rows, columns]`, as many as [`output_size`](Self::output_size) says
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        forward::by_rows(self, input, |it, input| {
            if !it.is_tiling() || it.kernel() == [1, 1] {
                return it.convolve(input);
            }
            let [batch, _, height, width] = input.dims();
            let [rows, columns] = it.output_size([height, width]);
            let tokens = it.tile(input);
            let d_output = tokens.dims()[2];
            tokens.swap_dims(1, 2).reshape([batch, d_output, rows, columns])
        })
    }

    /// The same, one position after another: row by row.
    ///
    /// # Shapes
    /// - input: `[batch, in, height, width]`
    /// - output: `[batch, rows · columns, out]`
    pub fn tokens(&self, input: Tensor<4>) -> Tensor<3> {
        forward::by_rows(self, input, |it, input| match it.is_tiling() {
            true => it.tile(input),
            false => it.convolve(input).flatten::<3>(2, 3).swap_dims(1, 2),
        })
    }

    fn kernel(&self) -> [usize; 2] {
        let shape = self.weight.lazy_shape();
        let shape = shape.as_slice();
        [shape[2], shape[3]]
    }

    /// Whether every number of the input is read once, so that a matrix product is all.
    fn is_tiling(&self) -> bool {
        self.stride == self.kernel() && self.padding == [0, 0] && self.groups == 1
    }

    fn convolve(&self, input: Tensor<4>) -> Tensor<4> {
        ops::conv2d(input, self.weight.val(), self.bias.as_ref().map(|it| it.val()), self.how())
    }

    /// The convolution as a product of patches and the kernel, `[batch, rows · columns, out]`.
    fn tile(&self, input: Tensor<4>) -> Tensor<3> {
        let [batch, channels, height, width] = input.dims();
        let ([rows, columns], kernel) = (self.output_size([height, width]), self.kernel());
        let whole = [rows * kernel[0], columns * kernel[1]];
        let input = if whole == [height, width] { input } else { input.narrow(2, 0, whole[0]).narrow(3, 0, whole[1]) };
        let d_input = channels * kernel[0] * kernel[1];
        let patches = input
            .reshape([batch, channels, rows, kernel[0], columns, kernel[1]])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * rows * columns, d_input]);
        let weight = self.weight.val();
        let d_output = weight.dims()[0];
        let weight = weight.reshape([d_output, d_input]);
        let output = ops::linear(patches, weight, self.bias.as_ref().map(|it| it.val()), Layout::OutIn);
        output.reshape([batch, rows * columns, d_output])
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    /// A kernel that reads every number once is a product, and the product is the convolution.
    #[test]
    fn a_kernel_that_does_not_overlap_is_a_matrix_product() {
        let device = Device::flex();
        for (kernel, size) in [([2, 3], [7, 11]), ([1, 1], [3, 4]), ([3, 2], [3, 2])] {
            let mut layer = Conv2d::new([3, 5], kernel, 1, &device).with_stride(kernel);
            layer.bias = Some(super::super::lazy([5], &device, |device| {
                Tensor::random([5], Distribution::Uniform(-1.0, 1.0), device)
            }));
            let input = Tensor::<4>::random([2, 3, size[0], size[1]], Distribution::Uniform(-1.0, 1.0), &device);
            assert!(layer.is_tiling());
            let (product, whole) = (layer.forward(input.clone()), layer.convolve(input.clone()));
            let [batch, channels, rows, columns] = whole.dims();
            assert_eq!([rows, columns], layer.output_size(size));
            product.into_data().assert_approx_eq::<f32>(&whole.to_data(), Default::default());
            let tokens = layer.tokens(input).swap_dims(1, 2).reshape([batch, channels, rows, columns]);
            tokens.into_data().assert_approx_eq::<f32>(&whole.into_data(), Default::default());
        }
    }

    #[test]
    fn overlapping_kernels_have_the_size_that_they_say() {
        let device = Device::flex();
        let layer = Conv2d::new([2, 4], [3, 3], 2, &device).with_stride([2, 1]).with_padding([1, 0]);
        assert_eq!(layer.forward(Tensor::zeros([1, 2, 6, 5], &device)).dims(), [1, 4, 3, 3]);
        assert_eq!(layer.tokens(Tensor::zeros([1, 2, 6, 5], &device)).dims(), [1, 9, 4]);
        assert_eq!(layer.output_size([6, 2]), [3, 0]);
    }
}
