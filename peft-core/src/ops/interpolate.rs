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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    fn picture(device: &Device) -> Tensor<4> {
        let numbers: Vec<f32> = (0..12).map(|it| (it as f32).powf(1.5) / 4.0).collect();
        Tensor::from_data(TensorData::new(numbers, [1, 1, 3, 4]), device)
    }

    fn assert_close(tensor: Tensor<4>, wanted: &[f32]) {
        let numbers = tensor.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(numbers.len(), wanted.len());
        assert!(numbers.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 2e-5), "{numbers:?}");
    }

    /// Numbers of torch 2.15.
    #[test]
    fn larger_and_smaller_grids_are_those_of_torch() {
        let of = |size, mode| interpolate(picture(&Device::flex()), size, mode);
        let bilinear = [
            0.0, 0.08929, 0.23214, 0.47855, 0.74939, 1.08763, 1.29904, 0.8, 0.96716, 1.2346, 1.581, 1.94664, 2.36806,
            2.63145, 2.0, 2.28396, 2.73829, 3.23466, 3.74251, 4.2887, 4.63006, 4.19411, 4.54194, 5.09847, 5.69057,
            6.29249, 6.92755, 7.32446, 5.65685, 6.04726, 6.67192, 7.32785, 7.99248, 8.68678, 9.12072,
        ];
        assert_close(of([5, 7], Interpolation::Bilinear), &bilinear);
        let smaller = [0.56438, 1.16758, 2.01798, 4.91241, 6.30455, 7.80635];
        assert_close(of([2, 3], Interpolation::Bilinear), &smaller);
        let bicubic = [
            0.28512, 0.36724, 0.49205, 0.72345, 0.93075, 1.18282, 1.53966, 1.8098, 1.96814, 4.78513, 5.02937, 5.43026,
            6.02835, 6.48572, 6.96152, 7.6112, 8.07186, 8.34746,
        ];
        assert_close(of([2, 9], Interpolation::Bicubic), &bicubic);
    }

    #[test]
    fn the_gradient_is_that_of_torch() {
        let input = picture(&Device::flex().autodiff()).require_grad();
        let weights: Vec<f32> = (0..35).map(|it| it as f32 / 10.0).collect();
        let weights = Tensor::from_data(TensorData::new(weights, [1, 1, 5, 7]), &Device::flex().autodiff());
        let loss = (interpolate(input.clone(), [5, 7], Interpolation::Bicubic) * weights).sum();
        let wanted =
            [0.55789, 1.09316, 1.63795, 2.08702, 4.25081, 4.93552, 5.51094, 5.86593, 7.4911, 8.25235, 8.79713, 9.02023];
        assert_close(input.grad(&loss.backward()).unwrap(), &wanted);
    }

    #[test]
    fn the_same_size_is_the_same_tensor() {
        let input = picture(&Device::flex());
        let output = interpolate(input.clone(), [3, 4], Interpolation::Bicubic);
        assert_eq!(output.into_data(), input.into_data());
    }
}
