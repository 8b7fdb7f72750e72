//! Normalisations over the last axis.

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::kernel;
use super::plain;

/// `(x − mean) / √(variance + ε) · weight + bias`.
///
/// # Shapes
/// - input, output: `[.., d_model]`
/// - weight, bias: `[d_model]`
pub fn layer_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) && kernel::fits(&weight) && kernel::fits(&bias) {
        return fused::layer_norm(input, weight, bias, epsilon);
    }
    plain::layer_norm(input, weight, bias, epsilon)
}

/// `x / √(mean(x²) + ε) · weight`.
///
/// # Shapes
/// - input, output: `[.., d_model]`
/// - weight: `[d_model]`
pub fn rms_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) && kernel::fits(&weight) {
        return fused::rms_norm(input, weight, epsilon);
    }
    plain::rms_norm(input, weight, epsilon)
}

#[cfg(feature = "flex")]
mod fused {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::flex::FlexTensor;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;
    use rayon::prelude::*;

    use crate::ops::kernel::{self, Kernel, contiguous, math, numbers};

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait NormOps: Backend {
        fn normalise_centred(
            input: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            epsilon: f32,
        ) -> FloatTensor<Self>;
        fn normalise(input: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    }

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
    }

    /// Input, weight and ε: the moments are computed again, which costs less than to keep them.
    type State = (FlexTensor, FlexTensor, f32);

    #[derive(Debug)]
    struct NormBackward {
        centred: bool,
    }

    impl NormBackward {
        fn register<const N: usize>(&self, ops: Ops<State, N>, grads: &mut Gradients) {
            let (input, weight, epsilon) = ops.state;
            let grad = grads.consume::<Flex>(&ops.node);
            let [to_x, to_weight, to_bias] = [0, 1, 2].map(|at| ops.parents.get(at).and_then(Clone::clone));
            if to_weight.is_some() || to_bias.is_some() {
                let (weight_grad, bias_grad) = to_scale(&grad, &input, &weight, self.centred, epsilon);
                for (parent, grad) in [(to_weight, weight_grad), (to_bias, bias_grad)] {
                    if let Some(parent) = parent {
                        grads.register::<Flex>(parent.id, grad);
                    }
                }
            }
            if let Some(parent) = to_x {
                grads.register::<Flex>(parent.id, to_input(grad, &input, &weight, self.centred, epsilon));
            }
        }
    }

    impl Backward<Flex, 3> for NormBackward {
        type State = State;
        fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            self.register(ops, grads);
        }
    }

    impl Backward<Flex, 2> for NormBackward {
        type State = State;
        fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            self.register(ops, grads);
        }
    }

    impl<C: CheckpointStrategy> NormOps for Autodiff<Flex, C> {
        fn normalise_centred(
            input: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            epsilon: f32,
        ) -> FloatTensor<Self> {
            let ((x, x_node), (w, w_node), (b, b_node)) = (input.into_parts(), weight.into_parts(), bias.into_parts());
            let output = forward(&x, &w, Some(&b), epsilon);
            let backward = NormBackward { centred: true };
            match Backward::<Flex, 3>::prepare::<C>(backward, [x_node, w_node, b_node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((x, w, epsilon), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }

        fn normalise(input: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
            let ((x, x_node), (w, w_node)) = (input.into_parts(), weight.into_parts());
            let output = forward(&x, &w, None, epsilon);
            let backward = NormBackward { centred: false };
            match Backward::<Flex, 2>::prepare::<C>(backward, [x_node, w_node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((x, w, epsilon), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>, w: Tensor<1>, b: Tensor<1>, epsilon: f64) -> Tensor<D> {
        let (x, w, b) = (x.into_dispatch(), w.into_dispatch(), b.into_dispatch());
        Tensor::from_dispatch(Dispatch::normalise_centred(x, w, b, epsilon as f32))
    }

    pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, w: Tensor<1>, epsilon: f64) -> Tensor<D> {
        Tensor::from_dispatch(Dispatch::normalise(x.into_dispatch(), w.into_dispatch(), epsilon as f32))
    }
}
