//! Normalisations with their gradients, on the backends that have kernels for them.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::ops::fits::no_second_gradient;

#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(crate) trait NormOps: Backend {
    #[fusion(dtype = input, shape = input)]
    fn normalise_centred(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = input, shape = input)]
    fn normalise(input: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// The gradient of the input; without a centre the mean is taken to be zero.
    #[fusion(dtype = input, shape = input)]
    fn normalise_to_input(
        grad: FloatTensor<Self>,
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        centred: bool,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// The gradients of weight and bias.
    #[fusion(meta = |_grad, _input, weight, _centred, _epsilon| (weight.clone(), weight.clone()))]
    fn normalise_to_scale(
        grad: FloatTensor<Self>,
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        centred: bool,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Input, weight and ε: the moments are computed again, which costs less than to keep them.
type State<B> = (FloatTensor<B>, FloatTensor<B>, f32);

#[derive(Debug)]
struct NormBackward {
    centred: bool,
}

impl NormBackward {
    fn register<B: NormOps, const N: usize>(&self, ops: Ops<State<B>, N>, grads: &mut Gradients) {
        let (input, weight, epsilon) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let [to_x, to_weight, to_bias] = [0, 1, 2].map(|at| ops.parents.get(at).and_then(Clone::clone));
        if to_weight.is_some() || to_bias.is_some() {
            let (weight_grad, bias_grad) =
                B::normalise_to_scale(grad.clone(), input.clone(), weight.clone(), self.centred, epsilon);
            for (parent, grad) in [(to_weight, weight_grad), (to_bias, bias_grad)] {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, grad);
                }
            }
        }
        if let Some(parent) = to_x {
            grads.register::<B>(parent.id, B::normalise_to_input(grad, input, weight, self.centred, epsilon));
        }
    }
}

impl<B: NormOps> Backward<B, 3> for NormBackward {
    type State = State<B>;
    fn backward(self, ops: Ops<State<B>, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        self.register::<B, 3>(ops, grads);
    }
}

impl<B: NormOps> Backward<B, 2> for NormBackward {
    type State = State<B>;
    fn backward(self, ops: Ops<State<B>, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        self.register::<B, 2>(ops, grads);
    }
}

impl<B: NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn normalise_centred(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (w, w_node), (b, b_node)) = (input.into_parts(), weight.into_parts(), bias.into_parts());
        let output = B::normalise_centred(x.clone(), w.clone(), b, epsilon);
        let backward = NormBackward { centred: true };
        match Backward::<B, 3>::prepare::<C>(backward, [x_node, w_node, b_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, w, epsilon), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn normalise(input: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ((x, x_node), (w, w_node)) = (input.into_parts(), weight.into_parts());
        let output = B::normalise(x.clone(), w.clone(), epsilon);
        let backward = NormBackward { centred: false };
        match Backward::<B, 2>::prepare::<C>(backward, [x_node, w_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, w, epsilon), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn normalise_to_input(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: bool,
        _: f32,
    ) -> FloatTensor<Self> {
        no_second_gradient()
    }

    fn normalise_to_scale(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: bool,
        _: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        no_second_gradient()
    }
}

pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>, w: Tensor<1>, b: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let (x, w, b) = (x.into_dispatch(), w.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(Dispatch::normalise_centred(x, w, b, epsilon as f32))
}

pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, w: Tensor<1>, epsilon: f64) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::normalise(x.into_dispatch(), w.into_dispatch(), epsilon as f32))
}
