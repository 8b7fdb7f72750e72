//! Products with a frozen weight on cards.
//!
//! A weight in half precision or in codes is widened for one product at a time, and again in the backward pass: kept is the weight as it
//! is stored. Composed of Burn's operations the product would keep it in single precision, for every layer.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::ops::{bf16, cube};

/// The weight is seen as `[in, out]`.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(super) trait FrozenProductOps: Backend {
    /// `input · weight`
    #[fusion(dtype = input, shape = burn::tensor::Shape::new([input[0], weight[1]]))]
    fn frozen_product(input: FloatTensor<Self>, weight: FloatTensor<Self>, bf16: bool) -> FloatTensor<Self>;
}

/// Whether a product gains by it: the weight is frozen, and is not multiplied as it is stored.
pub(super) fn fits(input: &Tensor<2>, weight: &Tensor<2>) -> bool {
    cube::fits(input)
        && cube::fits_weight(weight)
        && !weight.is_require_grad()
        && (weight.dtype() != input.dtype() || bf16::is_on())
}

pub(super) fn product(input: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::frozen_product(input, weight, bf16::is_on()))
}

#[derive(Debug)]
struct FrozenBackward;

impl<B: FrozenProductOps> Backward<B, 1> for FrozenBackward {
    /// The weight, and whether products are in bf16.
    type State = (FloatTensor<B>, bool);
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weight, bf16) = ops.state;
        let weight = B::float_swap_dims(weight, 0, 1);
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::frozen_product(grad, weight, bf16));
    }
}

impl<B: FrozenProductOps, C: CheckpointStrategy> FrozenProductOps for Autodiff<B, C> {
    fn frozen_product(input: FloatTensor<Self>, weight: FloatTensor<Self>, bf16: bool) -> FloatTensor<Self> {
        let ((input, node), weight) = (input.into_parts(), Self::inner(weight));
        let output = B::frozen_product(input, weight.clone(), bf16);
        match Backward::<B, 1>::prepare::<C>(FrozenBackward, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, bf16), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}
