//! Attention on the CPU in tiles of query rows.
//!
//! The scores of a tile are computed, used and forgotten, in the backward pass once more, so that memory grows linearly
//! with length (after Rabe and Staats, arXiv 2112.05682). Keys that no query of a tile may see take no part in its
//! products: a causal mask halves the work.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, BackendTensor, Dispatch, DispatchTensorKind, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{Bool, Shape, Tensor};
use rayon::prelude::*;

use super::AttentionMask;
use crate::ops::dropout::Seed;
use crate::ops::kernel::{self, Kernel, contiguous, math, numbers, permuted};

/// Scores of a tile, all heads together: 4 MB.
const TILE: usize = 1 << 20;

/// Query rows of a tile at most, where keys are hidden: fewer rows leave out more keys, more make larger products.
const ROWS: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) scale: f32,
    /// A query that may see no key gives zero, not the mean.
    pub(crate) blind_is_zero: bool,
    pub(crate) seed: Option<Seed>,
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait AttentionOps: Backend {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        hidden: Option<FlexTensor>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The same with a term for the scores: an extension takes no optional tensors.
    fn attend_biased(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        hidden: Option<FlexTensor>,
        settings: Settings,
    ) -> FloatTensor<Self>;
}

pub(crate) fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&AttentionMask>,
    settings: Settings,
) -> Tensor<4> {
    let hidden = mask.and_then(|it| it.hidden.clone()).map(flags);
    let (query, key, value) = (query.into_dispatch(), key.into_dispatch(), value.into_dispatch());
    Tensor::from_dispatch(match mask.and_then(|it| it.bias.clone()) {
        Some(bias) => Dispatch::attend_biased(query, key, value, bias.into_dispatch(), hidden, settings),
        None => Dispatch::attend(query, key, value, hidden, settings),
    })
}

/// A tensor of flags on the CPU, whether or not it is thought to be on a device that differentiates.
fn flags(tensor: Tensor<4, Bool>) -> FlexTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Bool(flags)) => flags,
        _ => panic!("the mask is not on the device of the queries"),
    }
}

/// What goes in, with the heads of a group on an axis of their own: `[batch, kv_heads, group, length, d_head]`.
#[derive(Debug, Clone)]
struct Attention {
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    /// `[batch or 1, 1, q_len, kv_len]`
    hidden: Option<FlexTensor>,
    /// `[batch or 1, heads or 1, q_len or 1, kv_len]`
    bias: Option<FlexTensor>,
    settings: Settings,
}

/// Sizes, by name.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    group: usize,
    queries: usize,
    keys: usize,
    d_head: usize,
}

/// A run of query rows and the keys that some of them may see.
#[derive(Debug, Clone, Copy)]
struct Tile {
    query: usize,
    rows: usize,
    key: usize,
    width: usize,
}

/// `[batch, heads, length, d_head]` with the heads split into groups of `group`.
fn grouped(tensor: FlexTensor, group: usize) -> FlexTensor {
    let (shape, strides) = (tensor.layout().shape().dims::<4>(), tensor.layout().strides().to_vec());
    let shape = Shape::new([shape[0], shape[1] / group, group, shape[2], shape[3]]);
    let strides = vec![strides[0], strides[1] * group as isize, strides[1], strides[2], strides[3]];
    let layout = Layout::new(shape, strides, tensor.layout().start_offset());
    tensor.with_layout(layout)
}

fn narrowed(tensor: &FlexTensor, axis: usize, start: usize, length: usize) -> FlexTensor {
    let layout = tensor.layout().narrow(axis, start, length);
    tensor.clone().with_layout(layout)
}

fn transposed(tensor: FlexTensor) -> FlexTensor {
    permuted(tensor, &[0, 1, 2, 4, 3])
}

impl Attention {
    fn new(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        hidden: Option<FlexTensor>,
        bias: Option<FlexTensor>,
        settings: Settings,
    ) -> Self {
        let group = (query.shape()[1] / key.shape()[1].max(1)).max(1);
        Self {
            query: grouped(query, group),
            key: grouped(key, 1),
            value: grouped(value, 1),
            hidden: hidden.map(contiguous),
            bias: bias.map(contiguous),
            settings,
        }
    }

    fn sizes(&self) -> Sizes {
        let [batch, kv_heads, group, queries, d_head] = self.query.shape().dims::<5>();
        Sizes { batch, kv_heads, group, queries, keys: self.key.shape()[3], d_head }
    }

    fn tiles(&self) -> Vec<Tile> {
        let sizes = self.sizes();
        let per_row = (sizes.batch * sizes.kv_heads * sizes.group * sizes.keys).max(1);
        let most = (TILE / per_row).clamp(1, if self.hidden.is_some() { ROWS } else { usize::MAX });
        // Of equal size, so that the last one is not a sliver.
        let count = sizes.queries.div_ceil(most).max(1);
        let rows = sizes.queries.div_ceil(count).max(1);
        let starts = (0..sizes.queries).step_by(rows);
        starts
            .map(|query| {
                let rows = rows.min(sizes.queries - query);
                let (key, end) = self.visible(query, rows).unwrap_or((0, sizes.keys));
                Tile { query, rows, key, width: end - key }
            })
            .collect()
    }

    /// The first key that some of the queries may see, and the one after the last; `None` means all keys.
    fn visible(&self, query: usize, rows: usize) -> Option<(usize, usize)> {
        let Sizes { queries, keys, .. } = self.sizes();
        let hidden = self.hidden.as_ref()?;
        let (mut first, mut end) = (keys, 0);
        for batch in hidden.storage::<u8>()[hidden.layout().start_offset()..].chunks(queries * keys) {
            for row in batch.chunks(keys).skip(query).take(rows) {
                match row.iter().position(|it| *it == 0) {
                    Some(at) => first = first.min(at),
                    None if self.settings.blind_is_zero => continue,
                    // The mean is over all keys.
                    None => return None,
                }
                end = end.max(row.iter().rposition(|it| *it == 0).map_or(0, |at| at + 1));
            }
        }
        // At least one, so that there is a product to compute.
        if first < end { Some((first, end)) } else { Some((0, keys.min(1))) }
    }

    /// Unscaled scores of a tile, `[batch, kv_heads, group, rows, width]`.
    fn scores(&self, tile: Tile) -> FlexTensor {
        let query = narrowed(&self.query, 3, tile.query, tile.rows);
        Flex::float_matmul(query, transposed(narrowed(&self.key, 3, tile.key, tile.width)))
    }

    /// What applies to one row of scores.
    fn row(&self, sizes: Sizes, tile: Tile, at: usize) -> Row<'_> {
        let heads = sizes.kv_heads * sizes.group;
        let (query, above) = (tile.query + at % tile.rows, at / tile.rows);
        let (head, batch) = (above % heads, above / heads);
        let keys = tile.key..tile.key + tile.width;
        let hidden = self.hidden.as_ref().map(|it| {
            let batch = batch % it.shape()[0];
            let start = it.layout().start_offset() + (batch * sizes.queries + query) * sizes.keys;
            &it.storage::<u8>()[start..start + sizes.keys][keys.clone()]
        });
        let bias = self.bias.as_ref().map(|it| {
            let [batches, bias_heads, queries, _] = it.shape().dims::<4>();
            let row = ((batch % batches) * bias_heads + head % bias_heads) * queries + query % queries;
            &numbers(it)[row * sizes.keys..(row + 1) * sizes.keys][keys]
        });
        let place = ((batch * heads + head) * sizes.queries + query) * sizes.keys + tile.key;
        Row { hidden, bias, place: place as u32, settings: self.settings }
    }

    fn forward(&self) -> FlexTensor {
        let sizes = self.sizes();
        let heads = sizes.kv_heads * sizes.group;
        let shape = Shape::new([sizes.batch, sizes.queries, heads, sizes.d_head]);
        let mut output = kernel::zeros(shape.num_elements());
        for tile in self.tiles().into_iter().filter(|it| it.width > 0) {
            let weights = kernel::overwrite(self.scores(tile), |scores| {
                let rows = kernel::rows_per_piece(tile.width);
                scores.par_chunks_mut(rows * tile.width).enumerate().for_each(|(piece, scores)| {
                    for (at, scores) in scores.chunks_mut(tile.width).enumerate() {
                        let row = self.row(sizes, tile, piece * rows + at);
                        kernel::simd(Weights { scores, row });
                    }
                });
            });
            let mixed = Flex::float_matmul(weights, narrowed(&self.value, 3, tile.key, tile.width));
            scatter(&mixed, &mut output, sizes.queries, heads, tile.query, tile.rows, |to, from| {
                to.copy_from_slice(from);
            });
        }
        permuted(kernel::tensor(output, shape), &[0, 2, 1, 3])
    }

    /// Gradients of query, key, value and bias, of which those that are not wanted are not computed.
    fn backward(&self, grad: FlexTensor, [to_query, to_key, to_value, to_bias]: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let sizes = self.sizes();
        let Sizes { batch, kv_heads, group, queries, keys, d_head } = sizes;
        let (heads, scale) = (kv_heads * group, self.settings.scale);
        let grad = grouped(grad, group);
        let buffer = |wanted: bool, length: usize, heads: usize| {
            let shape = Shape::new([batch, length, heads, d_head]);
            wanted.then(|| (kernel::zeros(shape.num_elements()), shape))
        };
        let mut query_grad = buffer(to_query, queries, heads);
        let mut key_grad = buffer(to_key, keys, kv_heads);
        let mut value_grad = buffer(to_value, keys, kv_heads);
        let bias = self.bias.as_ref().filter(|_| to_bias);
        let mut bias_grad = bias.map(|it| (vec![0.0; it.shape().num_elements()], it.shape()));

        for tile in self.tiles().into_iter().filter(|it| it.width > 0) {
            let rows = kernel::rows_per_piece(tile.width);
            let piece = rows * tile.width;
            let above = narrowed(&grad, 3, tile.query, tile.rows);
            let value = narrowed(&self.value, 3, tile.key, tile.width);
            let slopes = Flex::float_matmul(above.clone(), transposed(value));
            let (weights, slopes) = both(self.scores(tile), slopes, |weights, slopes| {
                weights.par_chunks_mut(piece).zip(slopes.par_chunks_mut(piece)).enumerate().for_each(
                    |(piece, (weights, slopes))| {
                        let pairs = weights.chunks_mut(tile.width).zip(slopes.chunks_mut(tile.width));
                        for (at, (scores, slopes)) in pairs.enumerate() {
                            let row = self.row(sizes, tile, piece * rows + at);
                            kernel::simd(Slopes { scores, slopes, row });
                        }
                    },
                );
            });
            if let (Some((bias_grad, shape)), slopes) = (&mut bias_grad, numbers(&slopes)) {
                let [batches, bias_heads, bias_queries, _] = shape.dims::<4>();
                for (at, slopes) in slopes.chunks(tile.width).enumerate() {
                    let (query, above) = (tile.query + at % tile.rows, at / tile.rows);
                    let (head, batch) = (above % heads % bias_heads, above / heads % batches);
                    let row = (batch * bias_heads + head) * bias_queries + query % bias_queries;
                    math::axpy(1.0, slopes, &mut bias_grad[row * keys + tile.key..][..tile.width]);
                }
            }
            if let Some((value_grad, _)) = &mut value_grad {
                let product = summed(Flex::float_matmul(transposed(weights), above));
                scatter(&product, value_grad, keys, kv_heads, tile.key, tile.width, |to, from| {
                    math::axpy(1.0, from, to);
                });
            }
            if let Some((query_grad, _)) = &mut query_grad {
                let product = Flex::float_matmul(slopes.clone(), narrowed(&self.key, 3, tile.key, tile.width));
                scatter(&product, query_grad, queries, heads, tile.query, tile.rows, |to, from| {
                    math::axpy(scale, from, to);
                });
            }
            if let Some((key_grad, _)) = &mut key_grad {
                let query = narrowed(&self.query, 3, tile.query, tile.rows);
                let product = summed(Flex::float_matmul(transposed(slopes), query));
                scatter(&product, key_grad, keys, kv_heads, tile.key, tile.width, |to, from| {
                    math::axpy(scale, from, to);
                });
            }
        }
        let by_head = |it: Option<(Vec<f32>, Shape)>| {
            it.map(|(values, shape)| permuted(kernel::tensor(values, shape), &[0, 2, 1, 3]))
        };
        let bias_grad = bias_grad.map(|(values, shape)| kernel::tensor(values, shape));
        [by_head(query_grad), by_head(key_grad), by_head(value_grad), bias_grad]
    }
}

/// Two tensors of one shape, changed together.
fn both(a: FlexTensor, b: FlexTensor, change: impl FnOnce(&mut [f32], &mut [f32])) -> (FlexTensor, FlexTensor) {
    let mut second = None;
    let first = kernel::overwrite(a, |a| {
        second = Some(kernel::overwrite(b, |b| change(a, b)));
    });
    (first, second.expect("the closure has run"))
}

/// The sum over the heads of a group.
fn summed(tensor: FlexTensor) -> FlexTensor {
    if tensor.shape()[2] == 1 { tensor } else { Flex::float_sum_dim(tensor, 2) }
}

/// Brings the rows of `[batch, kv_heads, group, rows, d_head]` to their places in `[batch, length, heads, d_head]`.
fn scatter(
    from: &FlexTensor,
    to: &mut [f32],
    length: usize,
    heads: usize,
    start: usize,
    rows: usize,
    put: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    let d_head = from.shape()[4];
    if d_head == 0 || heads == 0 {
        return;
    }
    let from = contiguous(from.clone());
    let from = numbers(&from);
    let positions = to.par_chunks_mut(heads * d_head).with_min_len(kernel::rows_per_piece(heads * d_head));
    positions.enumerate().for_each(|(at, to)| {
        let (batch, position) = (at / length, at % length);
        if (start..start + rows).contains(&position) {
            for (head, to) in to.chunks_mut(d_head).enumerate() {
                let row = (batch * heads + head) * rows + position - start;
                put(to, &from[row * d_head..][..d_head]);
            }
        }
    });
}

/// What applies to one row of scores.
struct Row<'a> {
    hidden: Option<&'a [u8]>,
    bias: Option<&'a [f32]>,
    /// Of the first score among all scores, for dropout.
    place: u32,
    settings: Settings,
}

impl Row<'_> {
    #[inline(always)]
    fn sees_nothing(&self) -> bool {
        self.hidden.is_some_and(|it| it.iter().all(|it| *it != 0))
    }

    /// Softmax in place.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32]) {
        for score in scores.iter_mut() {
            *score *= self.settings.scale;
        }
        if let Some(bias) = self.bias {
            math::axpy(1.0, bias, scores);
        }
        if let Some(hidden) = self.hidden {
            for (score, hidden) in scores.iter_mut().zip(hidden) {
                // The lowest finite number, not −∞: a row of −∞ has no softmax.
                *score = if *hidden != 0 { f32::MIN } else { *score };
            }
        }
        let max = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp(*score - max);
        }
        let scale = 1.0 / math::sum(scores, |x| x);
        for score in scores.iter_mut() {
            *score *= scale;
        }
    }

    #[inline(always)]
    fn drop(&self, numbers: &mut [f32]) {
        if let Some(seed) = self.settings.seed {
            for (at, x) in (0u32..).zip(numbers) {
                *x *= seed.factor(self.place.wrapping_add(at));
            }
        }
    }
}

/// Scores to the weights of the values.
struct Weights<'a> {
    scores: &'a mut [f32],
    row: Row<'a>,
}

impl Kernel for Weights<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        if self.row.settings.blind_is_zero && self.row.sees_nothing() {
            self.scores.fill(0.0);
            return;
        }
        self.row.softmax(self.scores);
        self.row.drop(self.scores);
    }
}

/// Scores to the weights of the values, and slopes at the weights to slopes at the scores.
struct Slopes<'a> {
    scores: &'a mut [f32],
    slopes: &'a mut [f32],
    row: Row<'a>,
}

impl Kernel for Slopes<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        if self.row.sees_nothing() {
            // Hidden scores are replaced by a constant.
            self.slopes.fill(0.0);
            if self.row.settings.blind_is_zero {
                self.scores.fill(0.0);
            } else {
                self.row.softmax(self.scores);
                self.row.drop(self.scores);
            }
            return;
        }
        self.row.softmax(self.scores);
        self.row.drop(self.slopes);
        let level = math::sum2(self.scores, self.slopes, |p, g| p * g);
        for (g, p) in self.slopes.iter_mut().zip(self.scores.iter()) {
            *g = p * (*g - level);
        }
        self.row.drop(self.scores);
    }
}

impl AttentionOps for Flex {
    fn attend(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        hidden: Option<FlexTensor>,
        settings: Settings,
    ) -> FlexTensor {
        Attention::new(query, key, value, hidden, None, settings).forward()
    }

    fn attend_biased(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        bias: FlexTensor,
        hidden: Option<FlexTensor>,
        settings: Settings,
    ) -> FlexTensor {
        Attention::new(query, key, value, hidden, Some(bias), settings).forward()
    }
}

#[derive(Debug)]
struct AttentionBackward;

fn register<const N: usize>(ops: Ops<Attention, N>, grads: &mut Gradients) {
    let grad = grads.consume::<Flex>(&ops.node);
    let wanted = std::array::from_fn(|at| ops.parents.get(at).is_some_and(Option::is_some));
    for (parent, grad) in ops.parents.into_iter().zip(ops.state.backward(grad, wanted)) {
        if let (Some(parent), Some(grad)) = (parent, grad) {
            grads.register::<Flex>(parent.id, grad);
        }
    }
}

impl Backward<Flex, 3> for AttentionBackward {
    type State = Attention;
    fn backward(self, ops: Ops<Attention, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        register(ops, grads);
    }
}

impl Backward<Flex, 4> for AttentionBackward {
    type State = Attention;
    fn backward(self, ops: Ops<Attention, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        register(ops, grads);
    }
}

/// Records the backward pass of an attention with so many parents.
macro_rules! finish {
    ($count:literal, $attention:expr, $nodes:expr) => {{
        let attention = $attention;
        let output = attention.forward();
        match Backward::<Flex, $count>::prepare::<C>(AttentionBackward, $nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(attention, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }};
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<Flex, C> {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        hidden: Option<FlexTensor>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((query, q), (key, k), (value, v)) = (query.into_parts(), key.into_parts(), value.into_parts());
        finish!(3, Attention::new(query, key, value, hidden, None, settings), [q, k, v])
    }

    fn attend_biased(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        hidden: Option<FlexTensor>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((query, q), (key, k), (value, v)) = (query.into_parts(), key.into_parts(), value.into_parts());
        let (bias, b) = bias.into_parts();
        finish!(4, Attention::new(query, key, value, hidden, Some(bias), settings), [q, k, v, b])
    }
}
