//! Normalisations on the CPU.

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;

use super::fused::NormOps;
use crate::ops::kernel::{self, Kernel, contiguous, math, numbers};

/// Mean and reciprocal deviation of a row; without a bias the mean is taken to be zero.
#[inline(always)]
fn moments(row: &[f32], centred: bool, epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = if centred { math::sum(row, |x| x) / count } else { 0.0 };
    let variance = math::sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

struct Forward<'a> {
    output: &'a mut [f32],
    input: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let width = self.weight.len();
        for (out, x) in self.output.chunks_mut(width).zip(self.input.chunks(width)) {
            let (mean, scale) = moments(x, self.bias.is_some(), self.epsilon);
            match self.bias {
                Some(bias) => {
                    for (((out, x), w), b) in out.iter_mut().zip(x).zip(self.weight).zip(bias) {
                        *out = (x - mean) * scale * w + b;
                    }
                }
                None => {
                    for ((out, x), w) in out.iter_mut().zip(x).zip(self.weight) {
                        *out = x * scale * w;
                    }
                }
            }
        }
    }
}

fn forward(input: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>, epsilon: f32) -> FlexTensor {
    let input = contiguous(input.clone());
    let (weight, bias) = (contiguous(weight.clone()), bias.map(|it| contiguous(it.clone())));
    let (x, weight, bias) = (numbers(&input), numbers(&weight), bias.as_ref().map(numbers));
    let piece = kernel::rows_per_piece(weight.len()) * weight.len().max(1);
    let output = kernel::pieces(x.len(), piece, |at, output| {
        let input = &x[at * piece..][..output.len()];
        kernel::simd(Forward { output, input, weight, bias, epsilon });
    });
    kernel::tensor(output, input.shape())
}

struct ToInput<'a> {
    grad: &'a mut [f32],
    input: &'a [f32],
    weight: &'a [f32],
    centred: bool,
    epsilon: f32,
}

impl Kernel for ToInput<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let width = self.weight.len();
        for (grad, x) in self.grad.chunks_mut(width).zip(self.input.chunks(width)) {
            let (mean, scale) = moments(x, self.centred, self.epsilon);
            for (g, w) in grad.iter_mut().zip(self.weight) {
                *g *= w;
            }
            let count = width as f32;
            let level = if self.centred { math::sum(grad, |g| g) / count } else { 0.0 };
            let along = math::sum2(grad, x, |g, x| g * (x - mean)) * scale / count;
            for (g, x) in grad.iter_mut().zip(x) {
                *g = scale * (*g - level - (x - mean) * scale * along);
            }
        }
    }
}

/// `∂/∂x`, in the memory of the gradient if it is free.
fn to_input(grad: FlexTensor, input: &FlexTensor, weight: &FlexTensor, centred: bool, epsilon: f32) -> FlexTensor {
    let (input, weight) = (contiguous(input.clone()), contiguous(weight.clone()));
    let (input, weight) = (numbers(&input), numbers(&weight));
    let piece = kernel::rows_per_piece(weight.len()) * weight.len().max(1);
    kernel::overwrite(grad, |grad| {
        grad.par_chunks_mut(piece).zip(input.par_chunks(piece)).for_each(|(grad, input)| {
            kernel::simd(ToInput { grad, input, weight, centred, epsilon });
        });
    })
}

struct ToScale<'a> {
    grad: &'a [f32],
    input: &'a [f32],
    width: usize,
    centred: bool,
    epsilon: f32,
}

impl Kernel for ToScale<'_> {
    type Output = (Vec<f32>, Vec<f32>);
    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut to_weight, mut to_bias) = (vec![0.0; self.width], vec![0.0; self.width]);
        for (grad, x) in self.grad.chunks(self.width).zip(self.input.chunks(self.width)) {
            let (mean, scale) = moments(x, self.centred, self.epsilon);
            for (((w, b), g), x) in to_weight.iter_mut().zip(&mut to_bias).zip(grad).zip(x) {
                *w += g * (x - mean) * scale;
                *b += g;
            }
        }
        (to_weight, to_bias)
    }
}

/// `∂/∂weight` and `∂/∂bias`.
fn to_scale(
    grad: &FlexTensor,
    input: &FlexTensor,
    weight: &FlexTensor,
    centred: bool,
    epsilon: f32,
) -> (FlexTensor, FlexTensor) {
    let (grad, input) = (contiguous(grad.clone()), contiguous(input.clone()));
    let (grad, input, width) = (numbers(&grad), numbers(&input), weight.shape()[0]);
    let piece = kernel::rows_per_piece(width) * width.max(1);
    let parts: Vec<_> = grad
        .par_chunks(piece)
        .zip(input.par_chunks(piece))
        .map(|(grad, input)| kernel::simd(ToScale { grad, input, width, centred, epsilon }))
        .collect();
    let (mut to_weight, mut to_bias) = (vec![0.0; width], vec![0.0; width]);
    for (w, b) in &parts {
        math::axpy(1.0, w, &mut to_weight);
        math::axpy(1.0, b, &mut to_bias);
    }
    (kernel::tensor(to_weight, weight.shape()), kernel::tensor(to_bias, weight.shape()))
}

impl NormOps for Flex {
    fn normalise_centred(input: FlexTensor, weight: FlexTensor, bias: FlexTensor, epsilon: f32) -> FlexTensor {
        forward(&input, &weight, Some(&bias), epsilon)
    }

    fn normalise(input: FlexTensor, weight: FlexTensor, epsilon: f32) -> FlexTensor {
        forward(&input, &weight, None, epsilon)
    }

    fn normalise_to_input(
        grad: FlexTensor,
        input: FlexTensor,
        weight: FlexTensor,
        centred: bool,
        epsilon: f32,
    ) -> FlexTensor {
        to_input(grad, &input, &weight, centred, epsilon)
    }

    fn normalise_to_scale(
        grad: FlexTensor,
        input: FlexTensor,
        weight: FlexTensor,
        centred: bool,
        epsilon: f32,
    ) -> (FlexTensor, FlexTensor) {
        to_scale(&grad, &input, &weight, centred, epsilon)
    }
}
