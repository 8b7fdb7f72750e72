//! Pictures and grids of features in another size.

use burn::tensor::{Device, Tensor, TensorData};

/// How a number between four or sixteen others is made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// From the two nearest of each axis.
    Bilinear,
    /// From the four nearest of each axis, by the cubic of Keys with `a` = −0.75.
    Bicubic,
}

/// The input in another height and width: `torch.nn.functional.interpolate` with `align_corners=False` and without
/// antialiasing.
///
/// Either axis is a product with a matrix of few numbers, so that the gradient is one too.
///
/// Source: `aten/src/ATen/native/UpSample.h` of torch.
///
/// # Shapes
/// - input: `[batch, channels, height, width]`, none of them 0
/// - output: `[batch, channels, size[0], size[1]]`
pub fn interpolate(input: Tensor<4>, size: [usize; 2], mode: Interpolation) -> Tensor<4> {
    let [batch, channels, height, width] = input.dims();
    let [rows, columns] = size;
    let device = input.device().without_autodiff();
    let wide = match columns == width {
        true => input,
        false => {
            let along = mode.matrix(width, columns, &device).transpose();
            input.reshape([batch * channels * height, width]).matmul(along).reshape([batch, channels, height, columns])
        }
    };
    if rows == height {
        return wide;
    }
    let down = mode.matrix(height, rows, &device).unsqueeze::<3>();
    down.matmul(wide.reshape([batch * channels, height, columns])).reshape([batch, channels, rows, columns])
}

impl Interpolation {
    /// What each number of the output is made of, `[to, from]`.
    fn matrix(self, from: usize, to: usize, device: &Device) -> Tensor<2> {
        let mut weights = vec![0f32; from * to];
        // In single precision as torch: near the middle between two numbers a bit decides.
        let scale = from as f32 / to as f32;
        let last = from as isize - 1;
        for (at, row) in weights.chunks_mut(from.max(1)).enumerate() {
            let place = scale * (at as f32 + 0.5) - 0.5;
            let place = if self == Self::Bilinear { place.max(0.0) } else { place };
            let first = place.floor();
            let mut add = |offset: isize, weight: f32| {
                row[(first as isize + offset).clamp(0, last) as usize] += weight;
            };
            let rest = place - first;
            match self {
                Self::Bilinear => {
                    add(0, 1.0 - rest);
                    add(1, rest);
                }
                Self::Bicubic => {
                    add(-1, far(rest + 1.0));
                    add(0, near(rest));
                    add(1, near(1.0 - rest));
                    add(2, far(2.0 - rest));
                }
            }
        }
        Tensor::from_data(TensorData::new(weights, [to, from]), device)
    }
}

const A: f32 = -0.75;

/// The cubic within a distance of 1.
fn near(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The cubic between distances of 1 and 2.
fn far(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
