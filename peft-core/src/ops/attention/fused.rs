//! Attention on the CPU: every head of every row of the batch is a task, which works on tiles of query rows.
//!
//! The scores of a tile stay in the cache of the core: they are computed, used and forgotten, in the backward pass once
//! more, so that memory grows linearly with length (after Rabe and Staats, arXiv 2112.05682). What is hidden of a row is
//! computed there too, from a mask that is a few vectors. Keys that no query of a tile may see take no part in its
//! products: a causal mask halves the work, and padding costs little.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use super::AttentionMask;
use super::seen::{ADDED, SET, Seen};
use crate::ops::dropout::Seed;
use crate::ops::kernel::{
    self, Block, Kernel, Matrix, Memory, Panels, Start, contiguous, math, multiply_alone, numbers, permuted,
};

/// Scores of a tile: 256 kB, of which the backward pass holds two in the second cache.
const TILE: usize = 1 << 16;

/// Query rows of a tile at most: where keys are hidden, fewer rows leave out more keys; more make larger products.
const ROWS: usize = 128;
const ROWS_MASKED: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) scale: f32,
    /// Scores are bent by a hyperbolic tangent, and come no further than this.
    pub(crate) cap: Option<f32>,
    /// A query that may see no key gives zero, not the mean.
    pub(crate) fully_masked_is_zero: bool,
    pub(crate) seed: Option<Seed>,
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait AttentionOps: Backend {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        hidden: Option<Arc<Seen>>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The same with a term for the scores: an extension takes no optional tensors.
    fn attend_biased(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        hidden: Option<Arc<Seen>>,
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
    let hidden = mask.and_then(AttentionMask::seen);
    let (query, key, value) = (query.into_dispatch(), key.into_dispatch(), value.into_dispatch());
    Tensor::from_dispatch(match mask.and_then(|it| it.bias.clone()) {
        Some(bias) => Dispatch::attend_biased(query, key, value, bias.into_dispatch(), hidden, settings),
        None => Dispatch::attend(query, key, value, hidden, settings),
    })
}

/// What goes in, as the operation gets it.
#[derive(Debug, Clone)]
struct Attention {
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    hidden: Option<Arc<Seen>>,
    /// `[batch or 1, heads or 1, q_len or 1, kv_len]`
    bias: Option<FlexTensor>,
    settings: Settings,
    sizes: Sizes,
}

/// Sizes, by name.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
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

/// A head of a row of the batch.
#[derive(Debug, Clone, Copy)]
struct Place {
    batch: usize,
    head: usize,
}

/// What a task needs beside that.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    slopes: Vec<f32>,
    row: RowScratch,
    packed: Packed,
}

/// The keys and values of a head, packed for the products with the tiles of its queries: as they are, and turned.
#[derive(Default)]
struct Packed {
    key: Panels,
    key_turned: Panels,
    value: Panels,
    value_turned: Panels,
}

/// Products with keys and values, packed or not: for few queries packing costs more than it brings.
impl Packed {
    /// `left · right` with the keys of a tile down the rows of the right side.
    fn down(panels: &Panels, packs: bool, output: &mut Block<'_>, left: Matrix<'_>, right: Matrix<'_>, tile: Tile) {
        match packs {
            true => panels.multiply(output, left, [tile.key, 0], Start::Zero),
            false => multiply_alone(output, &[(left, right.rows(tile.key, tile.width).into())], Start::Zero),
        }
    }

    /// `left · rightᵀ` with the keys of a tile along the columns of the output.
    fn along(panels: &Panels, packs: bool, output: &mut Block<'_>, left: Matrix<'_>, right: Matrix<'_>, tile: Tile) {
        match packs {
            true => panels.multiply(output, left, [0, tile.key], Start::Zero),
            false => {
                let right = right.rows(tile.key, tile.width).transposed();
                multiply_alone(output, &[(left, right.into())], Start::Zero);
            }
        }
    }
}

/// Of one row of a tile.
#[derive(Default)]
struct RowScratch {
    flags: Vec<u8>,
    /// The slopes of the cap.
    bends: Vec<f32>,
}

thread_local! {
    /// Kept, so that no task has to touch new pages.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The gradient of a bias, which some of the heads may share.
struct BiasGrad<'a> {
    numbers: &'a mut [f32],
    /// `[batch or 1, heads or 1, q_len or 1, kv_len]`
    shape: [usize; 4],
}

/// Calls `work` for every head of every row with its parts `[length, d_head]` of the buffers `[batch, length, heads,
/// d_head]`, of which each may be absent, and with its rows of the gradient of the bias. Those that share rows are called
/// one after the other, so that their sum has an order.
fn for_each_head<const N: usize>(
    sizes: Sizes,
    buffers: [Option<Block<'_>>; N],
    bias: Option<BiasGrad<'_>>,
    work: impl Fn(Place, [Option<Block<'_>>; N], Option<&mut [f32]>) + Sync,
) {
    let Sizes { batch, heads, d_head, .. } = sizes;
    let mut parts: Vec<(Place, [Option<Block<'_>>; N])> = (0..heads * batch)
        .map(|at| (Place { batch: at % batch, head: at / batch }, std::array::from_fn(|_| None)))
        .collect();
    for (which, buffer) in buffers.into_iter().enumerate() {
        let blocks = buffer.into_iter().flat_map(|buffer| {
            let length = buffer.rows() / batch;
            buffer.columns_of(d_head).flat_map(move |head| head.bands(length))
        });
        for ((_, parts), block) in parts.iter_mut().zip(blocks) {
            parts[which] = Some(block);
        }
    }
    let Some(BiasGrad { numbers, shape }) = bias else {
        parts.into_par_iter().for_each(|(place, parts)| work(place, parts, None));
        return;
    };
    let [batches, heads, queries, keys] = shape;
    let mut tasks: Vec<_> = numbers.chunks_mut(queries * keys).map(|bias| (bias, Vec::new())).collect();
    for (place, parts) in parts {
        tasks[place.batch % batches * heads + place.head % heads].1.push((place, parts));
    }
    tasks.into_par_iter().for_each(|(bias, parts)| {
        for (place, parts) in parts {
            work(place, parts, Some(&mut *bias));
        }
    });
}

impl Attention {
    fn new(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        hidden: Option<Arc<Seen>>,
        bias: Option<FlexTensor>,
        settings: Settings,
    ) -> Self {
        let [query, key, value] = [query, key, value].map(kernel::visible);
        let [batch, heads, queries, d_head] = query.shape().dims::<4>();
        let [_, kv_heads, keys, _] = key.shape().dims::<4>();
        let sizes = Sizes { batch, heads, kv_heads, queries, keys, d_head };
        Self { query, key, value, hidden, bias: bias.map(contiguous), settings, sizes }
    }

    /// The tiles of every row of the batch, or of all rows alike.
    fn tiles(&self) -> Vec<Vec<Tile>> {
        let Sizes { queries, keys, .. } = self.sizes;
        let most = if self.hidden.is_some() { ROWS_MASKED } else { ROWS };
        let most = (TILE / keys.max(1)).clamp(32, most);
        // Of equal size, so that the last one is not a sliver.
        let rows = queries.div_ceil(queries.div_ceil(most).max(1)).max(1);
        // Whole tiles of a product.
        let rows = if rows < queries { rows.next_multiple_of(8) } else { rows };
        let batches = self.hidden.as_ref().map_or(1, |it| it.batches());
        let panel = Panels::width_for(keys);
        let tile = |batch: usize, query: usize| {
            let rows = rows.min(queries - query);
            let seen = self.hidden.as_ref().and_then(|it| self.visible(it, batch, query..query + rows));
            let seen = seen.unwrap_or(0..keys);
            // From a panel on: what no query sees is hidden in any case.
            let key = if self.packs() { seen.start / panel * panel } else { seen.start };
            Tile { query, rows, key, width: seen.end - key }
        };
        (0..batches).map(|batch| (0..queries).step_by(rows).map(|query| tile(batch, query)).collect()).collect()
    }

    /// Whether keys and values are packed for all tiles of a head.
    fn packs(&self) -> bool {
        self.sizes.queries >= Panels::LEAST
    }

    /// The keys that some of the queries may see; `None` means all keys.
    fn visible(&self, hidden: &Seen, batch: usize, queries: Range<usize>) -> Option<Range<usize>> {
        let keys = self.sizes.keys;
        let (mut first, mut end) = (keys, 0);
        for query in queries {
            let seen = hidden.range(batch, query, keys);
            if !seen.is_empty() {
                (first, end) = (first.min(seen.start), end.max(seen.end));
            } else if !self.settings.fully_masked_is_zero {
                // The mean is over all keys.
                return None;
            }
        }
        // At least one, so that there is a product to compute.
        Some(if first < end { first..end } else { 0..keys.min(1) })
    }

    /// The rows of a head in a tensor `[batch, heads, length, d_head]`.
    fn head(tensor: &FlexTensor, Place { batch, head }: Place) -> Matrix<'_> {
        let layout = tensor.layout();
        let strides = layout.strides();
        let start = layout.start_offset() + batch * strides[0].unsigned_abs() + head * strides[1].unsigned_abs();
        let shape = [layout.shape()[2], layout.shape()[3]];
        Matrix::new(&tensor.storage::<f32>()[start..], shape, [strides[2].unsigned_abs(), 1])
    }

    /// Query, key and value of a head.
    fn sides(&self, place: Place) -> [Matrix<'_>; 3] {
        let Sizes { heads, kv_heads, .. } = self.sizes;
        let shared = Place { head: place.head / (heads / kv_heads), ..place };
        [Self::head(&self.query, place), Self::head(&self.key, shared), Self::head(&self.value, shared)]
    }

    /// What applies to one row of scores.
    #[inline(always)]
    fn row<'a>(&'a self, Place { batch, head }: Place, tile: Tile, at: usize, flags: &'a mut Vec<u8>) -> Row<'a> {
        let Sizes { heads, queries, keys, .. } = self.sizes;
        let query = tile.query + at;
        let seen = tile.key..tile.key + tile.width;
        let hidden = self.hidden.as_ref().map(|it| {
            flags.resize(tile.width, 0);
            it.flags(batch, query, seen.clone(), flags);
            &flags[..]
        });
        let bias = self.bias.as_ref().map(|it| {
            let [batches, bias_heads, rows, _] = it.shape().dims::<4>();
            let row = (batch % batches * bias_heads + head % bias_heads) * rows + query % rows;
            &numbers(it)[row * keys..(row + 1) * keys][seen]
        });
        let place = ((batch * heads + head) * queries + query) * keys + tile.key;
        Row { hidden, bias, place: place as u32, settings: self.settings }
    }

    fn forward(&self) -> FlexTensor {
        let Sizes { batch, heads, queries, keys, d_head, .. } = self.sizes;
        let shape = Shape::new([batch, queries, heads, d_head]);
        if shape.num_elements() == 0 || keys == 0 {
            return permuted(kernel::tensor(kernel::zeros(shape.num_elements()), shape), &[0, 2, 1, 3]);
        }
        let tiles = self.tiles();
        let mut output = Memory::new([batch * queries, heads * d_head]);
        for_each_head(self.sizes, [Some(output.block())], None, |place, [output], _| {
            let mut output = output.expect("the output is wanted");
            let [query, key, value] = self.sides(place);
            let mut scratch = SCRATCH.take();
            let packs = self.packs();
            if packs {
                scratch.packed.key_turned.pack(key.transposed());
                scratch.packed.value.pack(value);
            }
            for tile in &tiles[place.batch % tiles.len()] {
                let scores = kernel::first(&mut scratch.scores, tile.rows * tile.width);
                let query = query.rows(tile.query, tile.rows);
                let packed = &scratch.packed;
                Packed::along(&packed.key_turned, packs, &mut Block::new(scores, tile.width), query, key, *tile);
                kernel::simd(Weights { attention: self, place, tile: *tile, row: &mut scratch.row, scores });
                let weights = Matrix::new(scores, [tile.rows, tile.width], [tile.width, 1]);
                let mut output = output.part(tile.query..tile.query + tile.rows, 0..d_head);
                Packed::down(&scratch.packed.value, packs, &mut output, weights, value, *tile);
            }
            SCRATCH.set(scratch);
        });
        #[allow(unsafe_code)]
        // SAFETY: the tiles of a head are all its queries, and the product that ends a tile writes all of its output.
        let output = unsafe { output.written() };
        permuted(kernel::tensor(output, shape), &[0, 2, 1, 3])
    }

    /// Gradients of query, key, value and bias, of which those that are not wanted are not computed.
    fn backward(&self, grad: FlexTensor, [to_query, to_key, to_value, to_bias]: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let Sizes { batch, heads, kv_heads, queries, keys, d_head } = self.sizes;
        let grad = kernel::visible(grad);
        // Every head of a group has keys and values of its own here; they are summed in the end.
        let shape = |length: usize| Shape::new([batch, length, heads, d_head]);
        let biased = self.bias.as_ref().filter(|_| to_bias).map(TensorMetadata::shape);
        let mut bias_grad = biased.as_ref().map(|it| kernel::zeros(it.num_elements()));
        let wanted = [(to_query, queries), (to_key, keys), (to_value, keys)];
        let [query_grad, key_grad, value_grad] = if [queries, keys, batch, heads, d_head].contains(&0) {
            wanted.map(|(wanted, length)| wanted.then(|| kernel::zeros(shape(length).num_elements())))
        } else {
            let tiles = self.tiles();
            let mut memory =
                wanted.map(|(wanted, length)| wanted.then(|| Memory::new([batch * length, heads * d_head])));
            let buffers = memory.each_mut().map(|it| it.as_mut().map(Memory::block));
            let bias = biased.iter().zip(&mut bias_grad);
            let bias = bias.map(|(shape, numbers)| BiasGrad { numbers, shape: shape.dims::<4>() }).next();
            for_each_head(
                self.sizes,
                buffers,
                bias,
                |place, [mut query_grad, mut key_grad, mut value_grad], mut bias| {
                    // They are sums over tiles.
                    for part in [&mut key_grad, &mut value_grad].into_iter().flatten() {
                        part.fill(0.0);
                    }
                    let mut scratch = SCRATCH.take();
                    let packs = self.packs();
                    if packs {
                        let [_, key, value] = self.sides(place);
                        scratch.packed.key_turned.pack(key.transposed());
                        scratch.packed.value_turned.pack(value.transposed());
                        if query_grad.is_some() {
                            scratch.packed.key.pack(key);
                        }
                    }
                    for tile in &tiles[place.batch % tiles.len()] {
                        self.slopes(&grad, place, *tile, bias.as_deref_mut(), &mut scratch);
                        let [query, key, _] = self.sides(place);
                        let above = Self::head(&grad, place).rows(tile.query, tile.rows);
                        let seen = tile.key..tile.key + tile.width;
                        let [weights, slopes] = [&scratch.scores, &scratch.slopes]
                            .map(|it| Matrix::new(it, [tile.rows, tile.width], [tile.width, 1]));
                        if let Some(output) = &mut value_grad {
                            let mut output = output.part(seen.clone(), 0..d_head);
                            multiply_alone(&mut output, &[(weights.transposed(), above.into())], Start::Output);
                        }
                        if let Some(output) = &mut query_grad {
                            let mut output = output.part(tile.query..tile.query + tile.rows, 0..d_head);
                            Packed::down(&scratch.packed.key, packs, &mut output, slopes, key, *tile);
                        }
                        if let Some(output) = &mut key_grad {
                            let query = query.rows(tile.query, tile.rows);
                            let mut output = output.part(seen, 0..d_head);
                            multiply_alone(&mut output, &[(slopes.transposed(), query.into())], Start::Output);
                        }
                    }
                    SCRATCH.set(scratch);
                },
            );
            #[allow(unsafe_code)]
            // SAFETY: every task has filled its sums, and the tiles of a head are all its queries.
            memory.map(|it| it.map(|it| unsafe { it.written() }))
        };
        let by_head = |it: Option<Vec<f32>>, length: usize, heads: usize| {
            let group = self.sizes.heads / heads.max(1);
            it.map(|it| {
                let mut it = kernel::tensor(it, shape(length));
                if group > 1 {
                    let split = Shape::new([batch * length, heads, group, d_head]);
                    it = Flex::float_sum_dim(it.reshape(split), 2);
                    it = it.reshape(Shape::new([batch, length, heads, d_head]));
                }
                permuted(it, &[0, 2, 1, 3])
            })
        };
        [
            by_head(query_grad, queries, heads),
            by_head(key_grad, keys, kv_heads),
            by_head(value_grad, keys, kv_heads),
            bias_grad.zip(biased).map(|(numbers, shape)| kernel::tensor(numbers, shape)),
        ]
    }

    /// The weights of a tile, and the slopes at its products; those at its scores are added to the gradient of the bias.
    fn slopes(&self, grad: &FlexTensor, place: Place, tile: Tile, bias: Option<&mut [f32]>, scratch: &mut Scratch) {
        let [query, key, value] = self.sides(place);
        let query = query.rows(tile.query, tile.rows);
        let above = Self::head(grad, place).rows(tile.query, tile.rows);
        let (packs, packed) = (self.packs(), &scratch.packed);
        let scores = kernel::first(&mut scratch.scores, tile.rows * tile.width);
        Packed::along(&packed.key_turned, packs, &mut Block::new(scores, tile.width), query, key, tile);
        let slopes = kernel::first(&mut scratch.slopes, tile.rows * tile.width);
        Packed::along(&packed.value_turned, packs, &mut Block::new(slopes, tile.width), above, value, tile);
        kernel::simd(Slopes { attention: self, place, tile, row: &mut scratch.row, bias, scores, slopes });
    }
}

/// What applies to one row of scores.
struct Row<'a> {
    /// [`SET`] and [`ADDED`].
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

    /// Products to scores.
    #[inline(always)]
    fn scale(&self, scores: &mut [f32]) {
        let Settings { scale, cap, .. } = self.settings;
        match cap {
            Some(cap) => scores.iter_mut().for_each(|it| *it = cap * math::tanh(*it * (scale / cap))),
            None => scores.iter_mut().for_each(|it| *it *= scale),
        }
    }

    /// Softmax of scores in place, with the bias and without what is hidden.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32]) {
        if let Some(bias) = self.bias {
            math::axpy(1.0, bias, scores);
        }
        if let Some(hidden) = self.hidden {
            for (score, hidden) in scores.iter_mut().zip(hidden) {
                // The lowest finite number, not −∞: a row of −∞ has no softmax. Twice that number is −∞.
                let lowest = if *hidden == SET | ADDED { f32::NEG_INFINITY } else { f32::MIN };
                *score = if *hidden != 0 { lowest } else { *score };
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

    /// A score that was set is a constant.
    #[inline(always)]
    fn stop(&self, slopes: &mut [f32]) {
        for (slope, hidden) in slopes.iter_mut().zip(self.hidden.unwrap_or_default()) {
            *slope = if *hidden & SET != 0 { 0.0 } else { *slope };
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

/// Products to the weights of the values.
struct Weights<'a> {
    attention: &'a Attention,
    place: Place,
    tile: Tile,
    row: &'a mut RowScratch,
    scores: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (at, scores) in self.scores.chunks_exact_mut(self.tile.width).enumerate() {
            let row = self.attention.row(self.place, self.tile, at, &mut self.row.flags);
            if row.settings.fully_masked_is_zero && row.sees_nothing() {
                scores.fill(0.0);
                continue;
            }
            row.scale(scores);
            row.softmax(scores);
            row.drop(scores);
        }
    }
}

/// Products to the weights of the values, and slopes at the weights to slopes at the products.
struct Slopes<'a> {
    attention: &'a Attention,
    place: Place,
    tile: Tile,
    row: &'a mut RowScratch,
    bias: Option<&'a mut [f32]>,
    scores: &'a mut [f32],
    slopes: &'a mut [f32],
}

impl Kernel for Slopes<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { attention, place, tile, row: scratch, mut bias, scores, slopes } = self;
        let keys = attention.sizes.keys;
        let Settings { scale, cap, fully_masked_is_zero, .. } = attention.settings;
        let bends = kernel::first(&mut scratch.bends, if cap.is_some() { tile.width } else { 0 });
        let rows = scores.chunks_exact_mut(tile.width).zip(slopes.chunks_exact_mut(tile.width));
        for (at, (scores, slopes)) in rows.enumerate() {
            let row = attention.row(place, tile, at, &mut scratch.flags);
            let blind = row.sees_nothing();
            if blind && fully_masked_is_zero {
                scores.fill(0.0);
                slopes.fill(0.0);
                continue;
            }
            row.scale(scores);
            if let Some(cap) = cap {
                for (soft_cap, score) in bends.iter_mut().zip(scores.iter()) {
                    *soft_cap = 1.0 - (score / cap) * (score / cap);
                }
            }
            row.softmax(scores);
            row.drop(slopes);
            let level = math::sum2(scores, slopes, |p, g| p * g);
            for (g, p) in slopes.iter_mut().zip(scores.iter()) {
                *g = p * (*g - level);
            }
            if blind {
                row.stop(slopes);
            }
            if let Some(bias) = &mut bias {
                let queries = bias.len() / keys;
                let bias = &mut bias[(tile.query + at) % queries * keys + tile.key..][..tile.width];
                math::axpy(1.0, slopes, bias);
            }
            for g in slopes.iter_mut() {
                *g *= scale;
            }
            for (g, soft_cap) in slopes.iter_mut().zip(bends.iter()) {
                *g *= soft_cap;
            }
            row.drop(scores);
        }
    }
}

impl AttentionOps for Flex {
    fn attend(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        hidden: Option<Arc<Seen>>,
        settings: Settings,
    ) -> FlexTensor {
        Attention::new(query, key, value, hidden, None, settings).forward()
    }

    fn attend_biased(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        bias: FlexTensor,
        hidden: Option<Arc<Seen>>,
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
        hidden: Option<Arc<Seen>>,
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
        hidden: Option<Arc<Seen>>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((query, q), (key, k), (value, v)) = (query.into_parts(), key.into_parts(), value.into_parts());
        let (bias, b) = bias.into_parts();
        finish!(4, Attention::new(query, key, value, hidden, Some(bias), settings), [q, k, v, b])
    }
}
