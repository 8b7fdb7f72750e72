//! Operations on pictures, by hand-worked numbers.

use burn::tensor::{Tensor, TensorData};
use peft_core::nn::GroupNorm;
use peft_core::ops;
use peft_models::diffusion::layers::time::Timesteps;

use crate::support::{assert_close, device};

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &device())
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn groups_of_channels_are_normalised_together() {
    let values = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 60.0];
    let (weight, bias) = ([1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 2.0, -3.0]);
    let input = tensor(&values, [1, 4, 1, 2]);
    let output = ops::group_norm(input.clone(), tensor(&weight, [4]), tensor(&bias, [4]), 2, 0.5);
    let wanted: Vec<f32> = (0..8)
        .map(|at| {
            let group = &values[at / 4 * 4..][..4];
            let mean = group.iter().sum::<f32>() / 4.0;
            let variance = group.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / 4.0;
            (values[at] - mean) / (variance + 0.5).sqrt() * weight[at / 2] + bias[at / 2]
        })
        .collect();
    assert_close("group_norm", output.into_data(), TensorData::new(wanted, [1, 4, 1, 2]));
    // One group for each channel and row of the batch.
    let alone = GroupNorm::new(4, 4, 1e-5, &device()).forward(input.repeat_dim(0, 2));
    let first = numbers(alone.clone().narrow(0, 0, 1));
    assert!(first.iter().zip([-1.0, 1.0].iter().cycle()).all(|(a, b)| (a - b).abs() < 1e-4), "{first:?}");
    assert_eq!(first, numbers(alone.narrow(0, 1, 1)));
}

#[test]
fn every_pixel_of_a_larger_picture_is_the_nearest() {
    let picture = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 1, 2, 3]);
    let twice = ops::upsample_nearest(picture.clone(), [4, 6]);
    let row = |a: f32, b: f32, c: f32| [a, a, b, b, c, c];
    let wanted = [row(1.0, 2.0, 3.0), row(1.0, 2.0, 3.0), row(4.0, 5.0, 6.0), row(4.0, 5.0, 6.0)].concat();
    assert_eq!(numbers(twice), wanted);
    // floor(i · 3 / 5) is 0, 0, 1, 1, 2, and floor(i · 2 / 3) is 0, 0, 1.
    let odd = ops::upsample_nearest(picture.clone(), [3, 5]);
    let wanted = [[1.0, 1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0, 3.0], [4.0, 4.0, 5.0, 5.0, 6.0]].concat();
    assert_eq!(numbers(odd), wanted);
    assert_eq!(numbers(ops::upsample_nearest(picture.clone(), [2, 3])), numbers(picture));
}

#[test]
fn a_pixel_gets_the_gradients_of_its_copies() {
    for (size, wanted) in [([4, 6], vec![4.0; 6]), ([3, 5], vec![4.0, 4.0, 2.0, 2.0, 2.0, 1.0])] {
        let picture = Tensor::<4>::ones([1, 1, 2, 3], &device().autodiff()).require_grad();
        let gradients = ops::upsample_nearest(picture.clone(), size).sum().backward();
        assert_eq!(numbers(picture.grad(&gradients).unwrap()), wanted);
    }
}

/// From `get_timestep_embedding` of diffusers.
#[test]
fn timesteps_become_sines_and_cosines() {
    let of = |channels, flip_sin_to_cos, freq_shift| {
        let timesteps = Timesteps { channels, flip_sin_to_cos, freq_shift };
        numbers(timesteps.forward(tensor(&[2.0], [1])))
    };
    let close = |ours: Vec<f32>, wanted: &[f64]| {
        assert_eq!(ours.len(), wanted.len());
        assert!(ours.iter().zip(wanted).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{ours:?} {wanted:?}");
    };
    let (fast, slow) = (2.0f64, 2.0f64 / 100.0);
    close(of(4, true, 0.0), &[fast.cos(), slow.cos(), fast.sin(), slow.sin()]);
    close(of(4, false, 0.0), &[fast.sin(), slow.sin(), fast.cos(), slow.cos()]);
    // With a shift of 1 the slowest wavelength is the longest; an odd width ends with a zero.
    let slow = 2.0 / 10000.0f64;
    close(of(5, false, 1.0), &[fast.sin(), slow.sin(), fast.cos(), slow.cos(), 0.0]);
}
