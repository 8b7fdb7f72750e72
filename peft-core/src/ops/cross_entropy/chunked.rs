//! The loss of a head on cards: logits exist for some rows at a time, and nothing goes to the host.

use burn::backend::TensorMetadata;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};

use crate::ops::fits::no_second_gradient;
use crate::ops::{bf16, cube};

/// Settings of a loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) smoothing: f32,
    /// Whether products with the weight are in bf16.
    pub(super) bf16: bool,
    /// Whether the weight is trained. Else it has no gradient.
    pub(super) to_weight: bool,
}

#[backend_extension(
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(super) trait HeadLossOps: Backend {
    /// The mean, `[1]`.
    #[fusion(dtype = DType::F32, shape = { let _ = hidden; Shape::new([1]) })]
    fn head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The mean, and its gradients by hidden states and weight.
    #[fusion(meta = |hidden, weight, _labels, settings| {
        let mean = burn::backend::fusion::custom::TensorSpec::new(Shape::new([1]), DType::F32);
        let like = if settings.to_weight { weight } else { &mean };
        (mean.clone(), hidden.clone(), like.clone())
    })]
    fn head_loss_and_grads(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Whether the kernels can take these: the weight may be frozen in half precision or in codes.
pub(super) fn fits(hidden: &Tensor<2>, weight: &Tensor<2>) -> bool {
    cube::fits(hidden) && cube::fits_weight(weight) && (weight.dtype() == hidden.dtype() || !weight.is_require_grad())
}

pub(super) fn head_loss(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, smoothing: f64) -> Tensor<1> {
    let settings = Settings { smoothing: smoothing as f32, bf16: bf16::is_on(), to_weight: false };
    let (hidden, weight) = (hidden.into_dispatch(), weight.into_dispatch());
    let labels = labels.cast(DType::I32).into_dispatch();
    Tensor::from_dispatch(Dispatch::head_loss(hidden, weight, labels, settings))
}

#[derive(Debug)]
struct LossBackward;

impl<B: HeadLossOps> Backward<B, 2> for LossBackward {
    /// The gradients by hidden states and weight.
    type State = (FloatTensor<B>, FloatTensor<B>);
    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (hidden, weight) = ops.state;
        let grad = B::float_reshape(grads.consume::<B>(&ops.node), Shape::new([1, 1]));
        for (parent, own) in ops.parents.into_iter().zip([hidden, weight]) {
            if let Some(parent) = parent {
                let grad = B::float_cast(grad.clone(), own.dtype().into());
                grads.register::<B>(parent.id, B::float_mul(own, grad));
            }
        }
    }
}

impl<B: HeadLossOps, C: CheckpointStrategy> HeadLossOps for Autodiff<B, C> {
    fn head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let settings = Settings { to_weight: weight.is_tracked(), ..settings };
        let ((hidden, to_hidden), (weight, to_weight)) = (hidden.into_parts(), weight.into_parts());
        match Backward::<B, 2>::prepare::<C>(LossBackward, [to_hidden, to_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (mean, hidden, weight) = B::head_loss_and_grads(hidden, weight, labels, settings);
                prep.finish((hidden, weight), mean)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::head_loss(hidden, weight, labels, settings)),
        }
    }

    fn head_loss_and_grads(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: IntTensor<Self>,
        _: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        no_second_gradient()
    }
}
