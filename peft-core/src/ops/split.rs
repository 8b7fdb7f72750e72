//! Parts of a tensor along its last axis, such as the query, key and value of a joint projection.

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::kernel;
use super::plain;

/// Cuts the last axis into parts of these sizes, which cover it.
///
/// The parts are views. Their gradients are written into one tensor, where those of as many slices would each be padded to
/// the whole and added up.
pub fn split<const D: usize, const N: usize>(input: Tensor<D>, sizes: [usize; N]) -> [Tensor<D>; N] {
    let width = input.dims()[D - 1];
    assert_eq!(sizes.iter().sum::<usize>(), width, "parts of {sizes:?} do not cover an axis of {width}");
    #[cfg(feature = "flex")]
    if kernel::fits(&input) {
        return fused::split(input, sizes);
    }
    plain::split(input, sizes)
}

#[cfg(feature = "flex")]
mod fused {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::flex::FlexTensor;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::{Shape, Tensor};
    use rayon::prelude::*;

    use crate::ops::kernel::{self, contiguous, math, numbers};

    /// Which part of the last axis, and whether another part has given the whole a gradient already.
    #[derive(Debug, Clone)]
    pub(crate) struct Part {
        start: usize,
        length: usize,
        is_begun: Arc<AtomicBool>,
    }

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait SplitOps: Backend {
        fn part_of(input: FloatTensor<Self>, part: Part) -> FloatTensor<Self>;
    }

    impl SplitOps for Flex {
        fn part_of(input: FlexTensor, part: Part) -> FlexTensor {
            let axis = input.shape().num_dims() - 1;
            let layout = input.layout().narrow(axis, part.start, part.length);
            input.with_layout(layout)
        }
    }

    /// Adds the gradient of a part to its columns of the gradient of the whole: they hold what has come by other ways.
    fn put(whole: FlexTensor, grad: FlexTensor, Part { start, length, .. }: &Part) -> FlexTensor {
        let grad = contiguous(grad);
        if grad.shape().num_elements() == 0 {
            return whole;
        }
        let width = whole.shape()[whole.shape().num_dims() - 1];
        let rows = kernel::rows_per_piece(width);
        kernel::overwrite(whole, |whole| {
            let pieces = whole.par_chunks_mut(rows * width).zip(numbers(&grad).par_chunks(rows * length));
            pieces.for_each(|(whole, grad)| {
                for (whole, grad) in whole.chunks_mut(width).zip(grad.chunks(*length)) {
                    math::axpy(1.0, grad, &mut whole[*start..start + length]);
                }
            });
        })
    }

    #[derive(Debug)]
    struct PartBackward;

    impl Backward<Flex, 1> for PartBackward {
        type State = (Part, Shape);
        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let (part, shape) = ops.state;
            let grad = grads.consume::<Flex>(&ops.node);
            let [Some(parent)] = ops.parents else { return };
            // The gradient that another part has begun is taken out, completed and put back. That of a leaf cannot be
            // taken out.
            let is_leaf = parent.parents.is_empty();
            let whole = if part.is_begun.swap(true, Ordering::Relaxed) && !is_leaf {
                grads.consume::<Flex>(&parent)
            } else {
                kernel::tensor(kernel::zeros(shape.num_elements()), shape)
            };
            grads.register::<Flex>(parent.id, put(whole, grad, &part));
        }
    }

    impl<C: CheckpointStrategy> SplitOps for Autodiff<Flex, C> {
        fn part_of(input: FloatTensor<Self>, part: Part) -> FloatTensor<Self> {
            let (input, node) = input.into_parts();
            let shape = input.shape();
            let output = Flex::part_of(input, part.clone());
            match PartBackward.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((part, shape), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    pub(crate) fn split<const D: usize, const N: usize>(input: Tensor<D>, sizes: [usize; N]) -> [Tensor<D>; N] {
        let is_begun = Arc::new(AtomicBool::new(false));
        let mut start = 0;
        sizes.map(|length| {
            let part = Part { start, length, is_begun: is_begun.clone() };
            start += length;
            Tensor::from_dispatch(Dispatch::part_of(input.clone().into_dispatch(), part))
        })
    }
}
