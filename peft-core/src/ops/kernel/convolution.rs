//! Convolutions as products of their kernels with the [`Patches`] of a picture.
//!
//! The gradient of a picture is such a product again where that is cheaper than to add up what each place gave; that of the
//! kernels is one with the patches turned.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::output::{Block, Memory, pieces};
use super::part::Part;
use super::patches::Patches;
use super::product::{Pair, Start, multiply, multiply_alone};
use super::right::Right;
use super::{Matrix, contiguous, math, numbers, tensor};
use crate::ops::convolution::Convolution;

/// Sizes of a convolution. A group of channels goes through kernels of its own.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    groups: usize,
    /// Channels of a group: of the input, of the output.
    d_input: usize,
    d_output: usize,
    /// Rows and columns: of the input, of the kernel, of the output.
    input: [usize; 2],
    kernel: [usize; 2],
    output: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
}

impl Sizes {
    fn new(input: [usize; 4], weight: [usize; 4], how: Convolution) -> Self {
        let ([batch, _, height, width], [d_output, d_input, rows, columns]) = (input, weight);
        let (input, kernel) = ([height, width], [rows, columns]);
        let Convolution { stride, padding, groups } = how;
        let output = how.output_size(input, kernel);
        Self { batch, groups, d_input, d_output: d_output / groups, input, kernel, output, stride, padding }
    }

    /// Numbers of a kernel, over all its channels.
    fn taps(&self) -> usize {
        self.d_input * self.kernel[0] * self.kernel[1]
    }

    fn places(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn pixels(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Whether a kernel is one number for each channel and meets every place of the input once: no patches then.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }

    /// What the kernels of a group are multiplied with; a row for each place if `turned`.
    fn patches<'a>(&self, picture: &'a [f32], turned: bool) -> Right<'a> {
        if self.is_pointwise() {
            let matrix = Matrix::new(picture, [self.d_input, self.pixels()], [self.pixels(), 1]);
            return if turned { matrix.transposed() } else { matrix }.into();
        }
        let patches = Patches::new(picture, self.input, self.kernel, self.output, [self.stride, self.padding]);
        Part::whole(patches, !turned).into()
    }
}

/// Calls `work` for every group of every picture with its number and its part of the output. One after the other, so that
/// each may use all threads, unless there are many.
fn each_group(output: Block<'_>, height: usize, groups: usize, work: impl Fn(usize, Block<'_>) + Sync) {
    let parts = output.bands(height).enumerate();
    if groups == 1 {
        parts.for_each(|(at, part)| work(at, part));
    } else {
        let parts: Vec<_> = parts.collect();
        parts.into_par_iter().for_each(|(at, part)| work(at, part));
    }
}

/// A product by all threads, or by this one where groups have them.
fn product(mut output: Block<'_>, pairs: &[Pair<'_>], start: Start<'_>, alone: bool) {
    if alone { multiply_alone(&mut output, pairs, start) } else { multiply(output, pairs, start) }
}

/// # Shapes
/// - input: `[batch, in, height, width]`
/// - weight: `[out, in / groups, rows, columns]`
/// - bias: `[out]`
pub(crate) fn convolution(
    input: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    how: Convolution,
) -> FlexTensor {
    let sizes = Sizes::new(input.shape().dims::<4>(), weight.shape().dims::<4>(), how);
    let Sizes { batch, groups, d_input, d_output, .. } = sizes;
    let (input, weight, bias) = (contiguous(input), contiguous(weight), bias.map(contiguous));
    let (input, weight, bias) = (numbers(&input), numbers(&weight), bias.as_ref().map(numbers));
    let ones = vec![1.0; if bias.is_some() { sizes.places() } else { 0 }];
    let mut memory = Memory::new([batch * groups * d_output, sizes.places()]);
    each_group(memory.block(), d_output, groups, |at, mut output| {
        let group = at % groups;
        let picture = &input[at * d_input * sizes.pixels()..][..d_input * sizes.pixels()];
        let kernels = &weight[group * d_output * sizes.taps()..][..d_output * sizes.taps()];
        let kernels = Matrix::new(kernels, [d_output, sizes.taps()], [sizes.taps(), 1]);
        let pair = (kernels, sizes.patches(picture, false));
        let bias = bias.map(|it| &it[group * d_output..][..d_output]);
        match bias {
            None => product(output, &[pair], Start::Zero, groups > 1),
            Some([bias]) => {
                output.fill(*bias);
                product(output, &[pair], Start::Output, groups > 1);
            }
            // The biases are one more term of the sum.
            Some(bias) => {
                let bias = Matrix::new(bias, [d_output, 1], [1, 1]);
                let ones = Matrix::new(&ones, [1, sizes.places()], [sizes.places(), 1]);
                product(output, &[pair, (bias, ones.into())], Start::Zero, groups > 1);
            }
        }
    });
    let [rows, columns] = sizes.output;
    #[allow(unsafe_code)]
    // SAFETY: a product writes all of its output, and the groups are all of it.
    tensor(unsafe { memory.written() }, Shape::new([batch, groups * d_output, rows, columns]))
}

/// The gradient of the input.
///
/// # Shapes
/// - grad: `[batch, out, ..]`, as the convolution gave
/// - input: rows and columns of the input
pub(crate) fn input_gradient(grad: FlexTensor, weight: FlexTensor, input: [usize; 4], how: Convolution) -> FlexTensor {
    let sizes = Sizes::new(input, weight.shape().dims::<4>(), how);
    let Sizes { batch, groups, d_input, d_output, .. } = sizes;
    let (grad, weight) = (contiguous(grad), contiguous(weight));
    let (grad, weight) = (numbers(&grad), numbers(&weight));
    let grad_of = |at: usize| &grad[at * d_output * sizes.places()..][..d_output * sizes.places()];
    let mut memory = Memory::new([batch * groups * d_input, sizes.pixels()]);
    let kernel = sizes.kernel[0] * sizes.kernel[1];
    // A copy of the kernels costs less than what is written for every place, unless there are few places.
    if !sizes.is_pointwise() && (sizes.stride != [1, 1] || sizes.places() < d_output) {
        each_group(memory.block(), d_input, groups, |at, output| {
            let kernels = &weight[at % groups * d_output * sizes.taps()..][..d_output * sizes.taps()];
            let kernels = Matrix::new(kernels, [d_output, sizes.taps()], [sizes.taps(), 1]).transposed();
            let grad = Matrix::new(grad_of(at), [d_output, sizes.places()], [sizes.places(), 1]);
            let mut shares = Memory::new([sizes.taps(), sizes.places()]);
            product(shares.block(), &[(kernels, grad.into())], Start::Zero, groups > 1);
            #[allow(unsafe_code)]
            // SAFETY: a product writes all of its output.
            add_up(output, &unsafe { shares.written() }, &sizes);
        });
    } else {
        // `[groups, in, out, rows, columns]`
        let turned = pieces(weight.len(), d_output * kernel, |at, to| {
            let (group, channel) = (at / d_input, at % d_input);
            let of_group = &weight[group * d_output * sizes.taps()..][..d_output * sizes.taps()];
            for (to, from) in to.chunks_exact_mut(kernel).zip(of_group.chunks_exact(sizes.taps())) {
                to.copy_from_slice(&from[channel * kernel..][..kernel]);
            }
        });
        let terms = d_output * kernel;
        each_group(memory.block(), d_input, groups, |at, output| {
            let kernels = &turned[at % groups * d_input * terms..][..d_input * terms];
            let kernels = Matrix::new(kernels, [d_input, terms], [terms, 1]);
            let grad = grad_of(at);
            let right = match sizes.is_pointwise() {
                true => Matrix::new(grad, [d_output, sizes.places()], [sizes.places(), 1]).into(),
                false => {
                    let patches = Patches::back(grad, sizes.output, sizes.kernel, sizes.input, sizes.padding);
                    Part::whole(patches, true).into()
                }
            };
            product(output, &[(kernels, right)], Start::Zero, groups > 1);
        });
    }
    #[allow(unsafe_code)]
    // SAFETY: both ways write all of it.
    tensor(unsafe { memory.written() }, Shape::new(input))
}

/// Adds up what each place of the output gave to the places of the input that it was made of.
///
/// # Shapes
/// - shares: `[in · kernel, places]`
fn add_up(output: Block<'_>, shares: &[f32], sizes: &Sizes) {
    let ([height, width], [rows, columns]) = (sizes.input, sizes.output);
    let kernel = sizes.kernel[0] * sizes.kernel[1];
    let planes: Vec<_> = output.bands(1).zip(shares.chunks_exact(kernel * sizes.places())).collect();
    planes.into_par_iter().for_each(|(mut plane, shares)| {
        plane.fill(0.0);
        let plane = plane.row(0, 0..height * width);
        for (tap, shares) in shares.chunks_exact(sizes.places()).enumerate() {
            let (down, along) = (tap / sizes.kernel[1], tap % sizes.kernel[1]);
            for (row, shares) in shares.chunks_exact(columns).enumerate().take(rows) {
                let Some(y) = (row * sizes.stride[0] + down).checked_sub(sizes.padding[0]).filter(|it| *it < height)
                else {
                    continue;
                };
                let line = &mut plane[y * width..][..width];
                if sizes.stride[1] == 1 {
                    let before = sizes.padding[1].saturating_sub(along).min(columns);
                    let from = (before + along).saturating_sub(sizes.padding[1]).min(width);
                    let within = (columns - before).min(width - from);
                    math::axpy(1.0, &shares[before..before + within], &mut line[from..from + within]);
                } else {
                    for (column, share) in shares.iter().enumerate() {
                        let x = (column * sizes.stride[1] + along).checked_sub(sizes.padding[1]);
                        if let Some(place) = x.and_then(|it| line.get_mut(it)) {
                            *place += share;
                        }
                    }
                }
            }
        }
    });
}

/// The gradient of the kernels.
pub(crate) fn weight_gradient(grad: FlexTensor, input: FlexTensor, weight: [usize; 4], how: Convolution) -> FlexTensor {
    let sizes = Sizes::new(input.shape().dims::<4>(), weight, how);
    let Sizes { batch, groups, d_input, d_output, .. } = sizes;
    let (grad, input) = (contiguous(grad), contiguous(input));
    let (grad, input) = (numbers(&grad), numbers(&input));
    let mut memory = Memory::new([groups * d_output, sizes.taps()]);
    each_group(memory.block(), d_output, groups, |group, output| {
        let pairs = (0..batch).map(|row| {
            let at = row * groups + group;
            let grad = &grad[at * d_output * sizes.places()..][..d_output * sizes.places()];
            let picture = &input[at * d_input * sizes.pixels()..][..d_input * sizes.pixels()];
            let grad = Matrix::new(grad, [d_output, sizes.places()], [sizes.places(), 1]);
            (grad, sizes.patches(picture, true))
        });
        // Pictures are further terms of one sum.
        product(output, &pairs.collect::<Vec<_>>(), Start::Zero, groups > 1);
    });
    #[allow(unsafe_code)]
    // SAFETY: a product writes all of its output, and the groups are all of it.
    tensor(unsafe { memory.written() }, Shape::new(weight))
}
