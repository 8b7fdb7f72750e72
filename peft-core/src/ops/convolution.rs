//! How a convolution goes over a picture.

use burn::tensor::ops::ConvOptions;

/// How the kernels of a convolution move over a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// By so many rows and columns.
    pub stride: [usize; 2],
    /// So many zeros above and below, and at either side.
    pub padding: [usize; 2],
    /// So many groups of channels, each with kernels of its own.
    pub groups: usize,
}

impl Convolution {
    /// Rows and columns of the output: none where the kernel does not fit in.
    pub fn output_size(&self, input: [usize; 2], kernel: [usize; 2]) -> [usize; 2] {
        std::array::from_fn(|axis| {
            let room = (input[axis] + 2 * self.padding[axis]).checked_sub(kernel[axis]);
            room.map_or(0, |it| it / self.stride[axis] + 1)
        })
    }
}

impl From<Convolution> for ConvOptions<2> {
    fn from(how: Convolution) -> Self {
        Self::new(how.stride, how.padding, [1, 1], how.groups)
    }
}
