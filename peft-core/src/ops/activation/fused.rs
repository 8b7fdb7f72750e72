//! Activation functions with their gradients, each in one pass, on the backends that have kernels for them.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::ops::fits::no_second_gradient;

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Curve {
    Gelu,
    GeluTanh,
    QuickGelu,
    Silu,
}

#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(crate) trait ActivationOps: Backend {
    /// `f(x)`
    #[fusion(dtype = input, shape = input)]
    fn curve(input: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;

    /// The gradient of `x`, from that of `f(x)`.
    #[fusion(dtype = input, shape = input)]
    fn curve_grad(grad: FloatTensor<Self>, input: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;

    /// `f(gate) · up`
    #[fusion(dtype = up, shape = up)]
    fn gated_curve(gate: FloatTensor<Self>, up: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;

    /// The gradients of `gate` and `up`, from that of `f(gate) · up`.
    #[fusion(meta = |_grad, gate, up, _curve| (gate.clone(), up.clone()))]
    fn gated_curve_grads(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        curve: Curve,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

#[derive(Debug)]
struct CurveBackward;

impl<B: ActivationOps> Backward<B, 1> for CurveBackward {
    type State = (FloatTensor<B>, Curve);
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (input, curve) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::curve_grad(grad, input, curve));
    }
}

#[derive(Debug)]
struct GatedBackward;

impl<B: ActivationOps> Backward<B, 2> for GatedBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Curve);
    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up, curve) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (to_gate, to_up) = B::gated_curve_grads(grad, gate, up, curve);
        for (parent, grad) in ops.parents.into_iter().zip([to_gate, to_up]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: ActivationOps, C: CheckpointStrategy> ActivationOps for Autodiff<B, C> {
    fn curve(input: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        match Backward::<B, 1>::prepare::<C>(CurveBackward, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((input.clone(), curve), B::curve(input, curve)),
            OpsKind::UnTracked(prep) => prep.finish(B::curve(input, curve)),
        }
    }

    fn curve_grad(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Curve) -> FloatTensor<Self> {
        no_second_gradient()
    }

    fn gated_curve(gate: FloatTensor<Self>, up: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        match Backward::<B, 2>::prepare::<C>(GatedBackward, [gate_node, up_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (gate.clone(), up.clone(), curve);
                prep.finish(state, B::gated_curve(gate, up, curve))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_curve(gate, up, curve)),
        }
    }

    fn gated_curve_grads(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Curve,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        no_second_gradient()
    }
}

pub(crate) fn activation<const D: usize>(input: Tensor<D>, curve: Curve) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::curve(input.into_dispatch(), curve))
}

pub(crate) fn gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>, curve: Curve) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::gated_curve(gate.into_dispatch(), up.into_dispatch(), curve))
}
