//! Dropout on cards: the numbers that decide stay there, too.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{Distribution, Tensor};

use crate::context;

#[backend_extension(
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(super) trait DrawnDropoutOps: Backend {
    /// `drawn` are two numbers from [0, 1).
    #[fusion(dtype = input, shape = input)]
    fn drop_drawn(input: FloatTensor<Self>, drawn: FloatTensor<Self>, probability: f32) -> FloatTensor<Self>;
}

#[derive(Debug)]
struct DropBackward;

impl<B: DrawnDropoutOps> Backward<B, 1> for DropBackward {
    type State = (FloatTensor<B>, f32);
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (drawn, probability) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::drop_drawn(grad, drawn, probability));
    }
}

impl<B: DrawnDropoutOps, C: CheckpointStrategy> DrawnDropoutOps for Autodiff<B, C> {
    fn drop_drawn(input: FloatTensor<Self>, drawn: FloatTensor<Self>, probability: f32) -> FloatTensor<Self> {
        let ((input, node), drawn) = (input.into_parts(), drawn.into_primitive());
        let output = B::drop_drawn(input, drawn.clone(), probability);
        match Backward::<B, 1>::prepare::<C>(DropBackward, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((drawn, probability), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

pub(super) fn dropout<const D: usize>(input: Tensor<D>, probability: f64) -> Tensor<D> {
    let device = input.device().without_autodiff();
    let drawn = context::draw(|| Tensor::<1>::random([2], Distribution::Uniform(0.0, 1.0), &device));
    Tensor::from_dispatch(Dispatch::drop_drawn(input.into_dispatch(), drawn.into_dispatch(), probability as f32))
}
