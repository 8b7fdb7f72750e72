//! Attention on cards: a tile of query rows at a time, its products by the backend's own matrix multiplication.
//!
//! Scores exist for the rows of a tile only, and nothing of them is kept for the backward pass, which computes them again:
//! memory grows linearly with length (after Rabe and Staats, arXiv 2112.05682). What is between the two products is one
//! kernel: scale, cap, bias, mask from a few vectors, softmax, dropout.
//!
//! The products are the backend's since those use the units of a card that multiply matrices, which a kernel written for
//! all runtimes cannot: WGSL has none.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Distribution, Tensor};

use super::AttentionMask;
use super::vectors::Vectors;
use crate::context;
use crate::ops::fits::no_second_gradient;

/// What is done with scores. It chooses the code of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Scores of what is hidden are set to the lowest number.
    pub(super) set: bool,
    /// The lowest number is added to scores of what is hidden.
    pub(super) added: bool,
    /// What is hidden is said by a table, too.
    pub(super) dense: bool,
    pub(super) bias: bool,
    pub(super) capped: bool,
    /// A query that may see no key gives zero, not the mean.
    pub(super) fully_masked_is_zero: bool,
    pub(super) dropout: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) form: Form,
    pub(super) scale: f32,
    pub(super) cap: f32,
    /// The share of weights that is dropped.
    pub(super) dropout: f32,
}

/// What is not there is a tensor of a single number: an extension takes no optional ones.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
#[allow(clippy::too_many_arguments, reason = "an extension takes its tensors one by one")]
pub(super) trait TiledAttentionOps: Backend {
    /// Row by row, as products want it. Query, key and value are kept so: each of them takes part in two more products backward,
    /// and a view of heads is copied for every one.
    #[fusion(dtype = tensor, shape = tensor)]
    fn in_rows(tensor: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = query, shape = query)]
    fn attend_tiled(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        drawn: FloatTensor<Self>,
        queries: IntTensor<Self>,
        keys: IntTensor<Self>,
        dense: IntTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The gradients of query, key, value and bias, from that of the output.
    #[fusion(meta = |_grad, query, key, value, bias, _drawn, _queries, _keys, _dense, _settings| {
        (query.clone(), key.clone(), value.clone(), bias.clone())
    })]
    fn attend_tiled_grads(
        grad: FloatTensor<Self>,
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        drawn: FloatTensor<Self>,
        queries: IntTensor<Self>,
        keys: IntTensor<Self>,
        dense: IntTensor<Self>,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Whether the kernels can take these.
pub(super) fn fits(tensors: [&Tensor<4>; 3], mask: Option<&AttentionMask>, cap: Option<f64>) -> bool {
    let bias = mask.and_then(|it| it.bias.as_ref());
    // The slope of a cap is not undone for the bias behind it. No model has both.
    tensors.into_iter().all(|it| crate::ops::cube::fits(it) && it.dtype() == tensors[0].dtype())
        && bias.is_none_or(|it| crate::ops::cube::fits(it) && it.dtype() == DType::F32 && cap.is_none())
}

pub(super) fn attention(
    [query, key, value]: [Tensor<4>; 3],
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
    dropout: f64,
) -> Tensor<4> {
    let device = query.device().without_autodiff();
    let vectors = match mask {
        Some(mask) => mask.vectors(key.dims()[2], &device),
        None => Vectors::of_everything(&device),
    };
    let bias = mask.and_then(|it| it.bias.clone());
    let form = Form {
        set: vectors.set,
        added: vectors.added,
        dense: vectors.has_dense,
        bias: bias.is_some(),
        capped: cap.is_some(),
        fully_masked_is_zero: vectors.set && mask.is_some_and(AttentionMask::fully_masked_is_zero),
        dropout: dropout > 0.0,
    };
    let settings = Settings { form, scale: scale as f32, cap: cap.unwrap_or(1.0) as f32, dropout: dropout as f32 };
    // What is not there is not read.
    let bias = bias.unwrap_or_else(|| Tensor::empty([1, 1, 1, 1], &device));
    let drawn = if dropout > 0.0 {
        context::draw(|| Tensor::<1>::random([2], Distribution::Uniform(0.0, 1.0), &device))
    } else {
        Tensor::empty([2], &device)
    };
    Tensor::from_dispatch(Dispatch::attend_tiled(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        bias.into_dispatch(),
        drawn.into_dispatch(),
        vectors.queries.into_dispatch(),
        vectors.keys.into_dispatch(),
        vectors.dense.into_dispatch(),
        settings,
    ))
}

/// Query, key, value, bias and what was drawn; the vectors of the mask.
type State<B> = ([FloatTensor<B>; 5], [IntTensor<B>; 3], Settings);

#[derive(Debug)]
struct AttentionBackward;

impl<B: TiledAttentionOps> Backward<B, 4> for AttentionBackward {
    type State = State<B>;
    fn backward(self, ops: Ops<State<B>, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([query, key, value, bias, drawn], [queries, keys, dense], settings) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (to_query, to_key, to_value, to_bias) =
            B::attend_tiled_grads(grad, query, key, value, bias, drawn, queries, keys, dense, settings);
        for (parent, grad) in ops.parents.into_iter().zip([to_query, to_key, to_value, to_bias]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: TiledAttentionOps, C: CheckpointStrategy> TiledAttentionOps for Autodiff<B, C> {
    fn attend_tiled(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        drawn: FloatTensor<Self>,
        queries: IntTensor<Self>,
        keys: IntTensor<Self>,
        dense: IntTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((query, to_query), (key, to_key)) = (query.into_parts(), key.into_parts());
        let ((value, to_value), (bias, to_bias)) = (value.into_parts(), bias.into_parts());
        let drawn = drawn.into_primitive();
        let [query, key, value] = [query, key, value].map(B::in_rows);
        let output = B::attend_tiled(
            query.clone(),
            key.clone(),
            value.clone(),
            bias.clone(),
            drawn.clone(),
            queries.clone(),
            keys.clone(),
            dense.clone(),
            settings,
        );
        let nodes = [to_query, to_key, to_value, to_bias];
        match Backward::<B, 4>::prepare::<C>(AttentionBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish(([query, key, value, bias, drawn], [queries, keys, dense], settings), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn in_rows(_: FloatTensor<Self>) -> FloatTensor<Self> {
        no_second_gradient()
    }

    fn attend_tiled_grads(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: IntTensor<Self>,
        _: IntTensor<Self>,
        _: IntTensor<Self>,
        _: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        no_second_gradient()
    }
}
