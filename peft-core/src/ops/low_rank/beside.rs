//! A linear layer with its low-rank update on cards: the update is added where the layer's output lies, in one pass over it.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape, Tensor};

use super::update::LowRank;
use crate::ops::fits::no_second_gradient;
use crate::ops::{bf16, cube};

/// Above it the backend's product, which uses the units that multiply matrices, is faster than a pass over the output.
const LARGEST_RANK: usize = 32;

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) scale: f32,
    /// Whether products with the weight are in bf16.
    pub(super) bf16: bool,
    pub(super) has_bias: bool,
    /// Whether the gradient of the input is wanted.
    pub(super) to_input: bool,
}

/// Without a bias it is any vector, which is not read. Weights are `[in, out]`.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub(super) trait LowRankBesideOps: Backend {
    /// `input · weight + bias + scale · (input · aᵀ) · bᵀ`, and `scale · (input · aᵀ)`.
    #[fusion(meta = |input, weight, _bias, a, _b, _settings| {
        let spec = burn::backend::fusion::custom::TensorSpec::new;
        let rows = input.shape[0];
        (spec(Shape::new([rows, weight.shape[1]]), input.dtype), spec(Shape::new([rows, a.shape[0]]), input.dtype))
    })]
    fn low_rank_beside_kept(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The first of both.
    #[fusion(dtype = input, shape = Shape::new([input[0], weight[1]]))]
    fn low_rank_beside(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The gradients of input, A and B; any number for an input that wants none. `low` is what was kept.
    #[fusion(meta = |_grad, input, _weight, a, b, _low, settings| {
        let one = burn::backend::fusion::custom::TensorSpec::new(Shape::new([1]), input.dtype);
        (if settings.to_input { input.clone() } else { one }, a.clone(), b.clone())
    })]
    fn low_rank_beside_grads(
        grad: FloatTensor<Self>,
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        low: FloatTensor<Self>,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Whether the kernel can take these: the weight may be frozen in half precision.
pub(super) fn fits(input: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, update: &LowRank) -> bool {
    let is_single = |it: &Tensor<2>| cube::fits(it) && it.dtype() == DType::F32;
    [input, &update.a, &update.b].into_iter().all(is_single)
        && bias.is_none_or(|it| cube::fits(it) && it.dtype() == DType::F32)
        && cube::fits_weight(weight)
        && (weight.dtype() == DType::F32 || !weight.is_require_grad())
        && update.a.dims()[0] <= LARGEST_RANK
        && update.dropout == 0.0
}

pub(super) fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, update: LowRank) -> Tensor<2> {
    let settings =
        Settings { scale: update.scale as f32, bf16: bf16::is_on(), has_bias: bias.is_some(), to_input: true };
    let bias = bias.unwrap_or_else(|| Tensor::empty([1], &input.device().without_autodiff()));
    let [input, weight, a, b] = [input, weight, update.a, update.b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::low_rank_beside(input, weight, bias.into_dispatch(), a, b, settings))
}

#[derive(Debug)]
struct BesideBackward;

impl<B: LowRankBesideOps> Backward<B, 5> for BesideBackward {
    /// Input, weight, A, B, and the scaled product of input and A.
    type State = ([FloatTensor<B>; 5], Settings);
    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([input, weight, a, b, low], settings) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let [to_input, to_weight, to_bias, to_a, to_b] = ops.parents;
        if let Some(parent) = to_weight {
            let turned = B::float_swap_dims(input.clone(), 0, 1);
            grads.register::<B>(parent.id, B::float_matmul(turned, grad.clone()));
        }
        if let Some(parent) = to_bias {
            let width = grad.shape()[1];
            let sum = B::float_sum_dim(grad.clone(), 0);
            grads.register::<B>(parent.id, B::float_reshape(sum, Shape::new([width])));
        }
        let settings = Settings { to_input: to_input.is_some(), ..settings };
        let (input, a, b) = B::low_rank_beside_grads(grad, input, weight, a, b, low, settings);
        for (parent, grad) in [to_input, to_a, to_b].into_iter().zip([input, a, b]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: LowRankBesideOps, C: CheckpointStrategy> LowRankBesideOps for Autodiff<B, C> {
    fn low_rank_beside(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((x, to_x), (w, to_w), (bias, to_bias)) = (input.into_parts(), weight.into_parts(), bias.into_parts());
        let ((a, to_a), (b, to_b)) = (a.into_parts(), b.into_parts());
        let nodes = [to_x, to_w, to_bias, to_a, to_b];
        match Backward::<B, 5>::prepare::<C>(BesideBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (output, low) = B::low_rank_beside_kept(x.clone(), w.clone(), bias, a.clone(), b.clone(), settings);
                prep.finish(([x, w, a, b, low], settings), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::low_rank_beside(x, w, bias, a, b, settings)),
        }
    }

    fn low_rank_beside_kept(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        no_second_gradient()
    }

    fn low_rank_beside_grads(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        no_second_gradient()
    }
}
