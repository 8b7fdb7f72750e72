//! The low-rank update of a linear layer.

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::kernel;
use super::plain;
use crate::nn::Dropout;

/// `output + scale · (drop(input) Aᵀ) Bᵀ`: what LoRA adds to a layer.
///
/// Keeps the input and the thin product for the backward pass, and forms no `[out, in]` matrix.
///
/// # Shapes
/// - output: `[rows, out]`
/// - input: `[rows, in]`
/// - a: `[rank, in]`
/// - b: `[out, rank]`
pub fn low_rank_update(
    output: Tensor<2>,
    input: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f64,
    dropout: &Dropout,
) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if [&output, &input, &a, &b].into_iter().all(kernel::fits) {
        let device = input.device().without_autodiff();
        let seed = dropout.is_active().then(|| super::dropout::Seed::draw(&device, dropout.probability()));
        return fused::update(output, input, a, b, scale, seed);
    }
    plain::low_rank_update(output, dropout.forward(input), a, b, scale)
}

#[cfg(feature = "flex")]
mod fused {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::flex::FlexTensor;
    use burn::backend::ops::FloatTensorOps;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;
    use rayon::prelude::*;

    use crate::ops::dropout::Seed;
    use crate::ops::kernel::{self, Kernel, contiguous, numbers, permuted};

    /// Settings of an update.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Settings {
        scale: f32,
        seed: Option<Seed>,
    }

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait LowRankOps: Backend {
        fn add_low_rank(
            output: FloatTensor<Self>,
            input: FloatTensor<Self>,
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            settings: Settings,
        ) -> FloatTensor<Self>;
    }

    fn transposed(tensor: FlexTensor) -> FlexTensor {
        permuted(tensor, &[1, 0])
    }

    fn dropped(tensor: FlexTensor, seed: Option<Seed>) -> FlexTensor {
        match seed {
            Some(seed) => seed.apply(tensor),
            None => tensor,
        }
    }

    struct AddProduct<'a> {
        output: &'a mut [f32],
        low: &'a [f32],
        b: &'a [f32],
        rank: usize,
        width: usize,
        scale: f32,
    }

    impl Kernel for AddProduct<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            let (width, scale) = (self.width, self.scale);
            for (out, low) in self.output.chunks_mut(width).zip(self.low.chunks(self.rank)) {
                let (low, b) = (low.chunks(4), self.b.chunks(4 * width));
                for (low, b) in low.zip(b) {
                    // Four ranks at a time, so that the row is read and written once for them.
                    if let [w, x, y, z] = *low {
                        let (w, x, y, z) = (scale * w, scale * x, scale * y, scale * z);
                        let (b0, b) = b.split_at(width);
                        let (b1, b) = b.split_at(width);
                        let (b2, b3) = b.split_at(width);
                        for ((((out, b0), b1), b2), b3) in out.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
                            *out += (w * b0 + x * b1) + (y * b2 + z * b3);
                        }
                    } else {
                        for (low, b) in low.iter().zip(b.chunks(width)) {
                            kernel::math::axpy(scale * low, b, out);
                        }
                    }
                }
            }
        }
    }

    /// `output + scale · low bᵀ`, in the memory of the output if it is free.
    fn add_product(output: FlexTensor, low: &FlexTensor, b: &FlexTensor, scale: f32) -> FlexTensor {
        let [width, rank] = [b.shape()[0], b.shape()[1]];
        if rank == 0 || width == 0 {
            return output;
        }
        let (low, b) = (contiguous(low.clone()), contiguous(transposed(b.clone())));
        let (low, b) = (numbers(&low), numbers(&b));
        let rows = kernel::rows_per_piece(width);
        kernel::overwrite(output, |output| {
            output.par_chunks_mut(rows * width).zip(low.par_chunks(rows * rank)).for_each(|(output, low)| {
                kernel::simd(AddProduct { output, low, b, rank, width, scale });
            });
        })
    }

    impl LowRankOps for Flex {
        fn add_low_rank(
            output: FlexTensor,
            input: FlexTensor,
            a: FlexTensor,
            b: FlexTensor,
            settings: Settings,
        ) -> FlexTensor {
            let low = Self::float_matmul(dropped(input, settings.seed), transposed(a));
            add_product(output, &low, &b, settings.scale)
        }
    }

    /// The input, the thin product, and the factors.
    type State = (FlexTensor, FlexTensor, FlexTensor, FlexTensor, Settings);

    #[derive(Debug)]
    struct LowRankBackward;

    impl Backward<Flex, 4> for LowRankBackward {
        type State = State;
        fn backward(self, ops: Ops<State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
            let (input, low, a, b, Settings { scale, seed }) = ops.state;
            let grad = grads.consume::<Flex>(&ops.node);
            let [to_output, to_input, to_a, to_b] = ops.parents;
            if let Some(parent) = to_b {
                // Of the two orders the one that writes along rows.
                let product = Flex::float_matmul(transposed(grad.clone()), low);
                grads.register::<Flex>(parent.id, Flex::float_mul_scalar(product, scale.into()));
            }
            if to_a.is_some() || to_input.is_some() {
                let thin = Flex::float_matmul(grad.clone(), b);
                let thin = Flex::float_mul_scalar(thin, scale.into());
                if let Some(parent) = to_a {
                    let product = Flex::float_matmul(transposed(thin.clone()), dropped(input, seed));
                    grads.register::<Flex>(parent.id, product);
                }
                if let Some(parent) = to_input {
                    grads.register::<Flex>(parent.id, dropped(Flex::float_matmul(thin, a), seed));
                }
            }
            if let Some(parent) = to_output {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }

    impl<C: CheckpointStrategy> LowRankOps for Autodiff<Flex, C> {
        fn add_low_rank(
            output: FloatTensor<Self>,
            input: FloatTensor<Self>,
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            settings: Settings,
        ) -> FloatTensor<Self> {
            let ((output, to_output), (input, to_input)) = (output.into_parts(), input.into_parts());
            let ((a, to_a), (b, to_b)) = (a.into_parts(), b.into_parts());
            let low = Flex::float_matmul(dropped(input.clone(), settings.seed), transposed(a.clone()));
            let output = add_product(output, &low, &b, settings.scale);
            match LowRankBackward.prepare::<C>([to_output, to_input, to_a, to_b]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((input, low, a, b, settings), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    pub(crate) fn update(
        output: Tensor<2>,
        input: Tensor<2>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f64,
        seed: Option<Seed>,
    ) -> Tensor<2> {
        let settings = Settings { scale: scale as f32, seed };
        Tensor::from_dispatch(Dispatch::add_low_rank(
            output.into_dispatch(),
            input.into_dispatch(),
            a.into_dispatch(),
            b.into_dispatch(),
            settings,
        ))
    }
}
