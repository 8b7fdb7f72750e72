//! Rotary position embedding in one pass, on the backends that have a kernel for it.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use super::pairing::Pairing;

#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(crate) trait RotaryOps: Backend {
    /// Turns pairs by the angles, or back by them where the direction is −1.
    #[fusion(dtype = input, shape = input)]
    fn turn_pairs(
        input: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
        direction: f32,
    ) -> FloatTensor<Self>;
}

#[derive(Debug)]
struct TurnBack;

impl<B: RotaryOps> Backward<B, 1> for TurnBack {
    type State = (FloatTensor<B>, FloatTensor<B>, Pairing, f32);
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin, pairing, direction) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::turn_pairs(grad, cos, sin, pairing, -direction));
    }
}

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn turn_pairs(
        input: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
        direction: f32,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let (input, node) = input.into_parts();
        let output = B::turn_pairs(input, cos.clone(), sin.clone(), pairing, direction);
        match Backward::<B, 1>::prepare::<C>(TurnBack, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos, sin, pairing, direction), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

pub(crate) fn rotate(input: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>, pairing: Pairing) -> Tensor<4> {
    let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(Dispatch::turn_pairs(input.into_dispatch(), cos, sin, pairing, 1.0))
}
