//! What is between the two products of attention, on cards: a cube of units for each row of scores.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tiled::{Form, Settings, TiledAttentionOps};
use super::visibility::Visibility;
use crate::ops::cube::{self, factor_of_place, max_of_cube, sum_of_cube};

/// Scores that exist at a time: 128 MB. Few in tests, which should see more than one tile.
const TILE: usize = if cfg!(test) { 1 << 15 } else { 1 << 25 };

/// The number that hides a score. Not the lowest one that there is: twice that is infinite, and infinities less infinities
/// are no numbers. Every score that there may be disappears in it all the same.
const LOWEST: f32 = -1e30;

const EVERYONE: i32 = Visibility::EVERYONE as i32;
const EVERYTHING: i32 = Visibility::EVERYTHING as i32;

/// Where the rows of a tile stand: `[batch, heads, rows]`, of which the first is this query.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Place {
    heads: usize,
    rows: usize,
    first: usize,
    /// Queries that there are in all.
    queries: usize,
    keys: usize,
}

/// Numbers of the operation.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Numbers {
    scale: f32,
    cap: f32,
    dropout: f32,
}

/// What hides keys from one query, and where the row finds its other things.
#[derive(CubeType, Clone, Copy)]
struct Row {
    begin: i32,
    end: i32,
    document: i32,
    added_begin: i32,
    added_end: i32,
    added_document: i32,
    /// Where documents, table and bias of its keys begin; how far the next key is.
    documents: usize,
    documents_step: usize,
    dense: usize,
    dense_step: usize,
    bias: usize,
    bias_step: usize,
    /// Its number among all rows.
    number: usize,
}

/// Where the last axis begins that belongs to a row, in a tensor whose axes may each have one item for all.
#[cube]
fn begin_of<T: CubePrimitive>(tensor: &Tensor<T>, batch: usize, head: usize, query: usize) -> usize {
    let (b, h, q) = (batch % tensor.shape(0), head % tensor.shape(1), query % tensor.shape(2));
    ((b * tensor.shape(1) + h) * tensor.shape(2) + q) * tensor.shape(3)
}

#[cube]
fn step_of(length: usize) -> usize {
    let mut step = 1usize;
    if length == 1 {
        step = 0usize;
    }
    step
}

#[cube]
fn row_of(queries: &Tensor<i32>, keys: &Tensor<i32>, dense: &Tensor<i32>, bias: &Tensor<f32>, place: &Place) -> Row {
    let at = CUBE_POS;
    let query = place.first + at % place.rows;
    let head = at / place.rows % place.heads;
    let batch = at / place.rows / place.heads;
    let own = (batch % queries.shape(0) * queries.shape(1) + query % queries.shape(1)) * 6;
    Row {
        begin: queries[own],
        end: queries[own + 1],
        document: queries[own + 2],
        added_begin: queries[own + 3],
        added_end: queries[own + 4],
        added_document: queries[own + 5],
        documents: batch % keys.shape(0) * keys.shape(1) * 2,
        documents_step: step_of(keys.shape(1)) * 2,
        dense: begin_of::<i32>(dense, batch, head, query),
        dense_step: step_of(dense.shape(3)),
        bias: begin_of::<f32>(bias, batch, head, query),
        bias_step: step_of(bias.shape(3)),
        number: (batch * place.heads + head) * place.queries + query,
    }
}

/// Whether a range and a document leave a key out.
#[cube]
fn is_outside(key: i32, begin: i32, end: i32, own: i32, document: i32) -> bool {
    let other = own != EVERYTHING && document != own && document != EVERYONE;
    key < begin || key >= end || other
}

#[cube]
fn is_set(row: &Row, keys: &Tensor<i32>, dense: &Tensor<i32>, key: usize, #[comptime] form: Form) -> bool {
    let mut hidden = false;
    if form.set {
        let document = keys[row.documents + key * row.documents_step];
        hidden = is_outside(key as i32, row.begin, row.end, row.document, document);
        if form.dense {
            hidden = hidden || dense[row.dense + key * row.dense_step] % 2 == 1;
        }
    }
    hidden
}

#[cube]
fn is_added(row: &Row, keys: &Tensor<i32>, dense: &Tensor<i32>, key: usize, #[comptime] form: Form) -> bool {
    let mut hidden = false;
    if form.added {
        let document = keys[row.documents + key * row.documents_step + 1];
        hidden = is_outside(key as i32, row.added_begin, row.added_end, row.added_document, document);
        if form.dense {
            hidden = hidden || dense[row.dense + key * row.dense_step] >= 2;
        }
    }
    hidden
}

/// The hyperbolic tangent by which a score is bent, 0 without a cap.
#[cube]
fn bent(raw: f32, numbers: &Numbers, #[comptime] form: Form) -> f32 {
    let mut bent = 0.0f32;
    if form.capped {
        bent = f32::tanh(raw * numbers.scale / numbers.cap);
    }
    bent
}

/// A score as the softmax sees it.
#[cube]
fn score(
    raw: f32,
    row: &Row,
    keys: &Tensor<i32>,
    dense: &Tensor<i32>,
    bias: &Tensor<f32>,
    numbers: &Numbers,
    key: usize,
    #[comptime] form: Form,
) -> f32 {
    let mut score = raw * numbers.scale;
    if form.capped {
        score = numbers.cap * bent(raw, numbers, form);
    }
    if form.bias {
        score += bias[row.bias + key * row.bias_step];
    }
    if is_set(row, keys, dense, key, form) {
        score = LOWEST;
    }
    if is_added(row, keys, dense, key, form) {
        score += LOWEST;
    }
    score
}

/// What a weight is multiplied by when some are dropped.
#[cube]
fn kept(drawn: &Tensor<f32>, row: &Row, place: &Place, numbers: &Numbers, key: usize, #[comptime] form: Form) -> f32 {
    let mut factor = 1.0f32;
    if form.dropout {
        let number = row.number * place.keys + key;
        factor = factor_of_place(drawn[0], drawn[1], number as u32, numbers.dropout);
    }
    factor
}

/// The largest score of a row, and what every exponential is multiplied by: one over their sum, or zero for a row that
/// sees nothing and gives nothing.
#[cube]
#[allow(clippy::collapsible_if, reason = "the outer of two conditions is decided when the kernel is compiled")]
fn largest_and_factor(
    scores: &Tensor<f32>,
    start: usize,
    row: &Row,
    keys: &Tensor<i32>,
    dense: &Tensor<i32>,
    bias: &Tensor<f32>,
    place: &Place,
    numbers: &Numbers,
    #[comptime] form: Form,
    #[comptime] units: usize,
) -> (f32, f32) {
    let mut largest = f32::new(-3e38f32);
    let mut sum = 0.0f32;
    let mut sees = 0.0f32;
    for key in range_stepped(UNIT_POS as usize, place.keys, units) {
        let raw = scores[start + key];
        let score = score(raw, row, keys, dense, bias, numbers, key, form);
        if score > largest {
            sum *= f32::exp(largest - score);
            largest = score;
        }
        sum += f32::exp(score - largest);
        if form.fully_masked_is_zero {
            if !is_set(row, keys, dense, key, form) {
                sees = 1.0f32;
            }
        }
    }
    let most = max_of_cube(largest, units);
    let sum = sum_of_cube(sum * f32::exp(largest - most), units);
    let mut factor = 1.0f32 / sum;
    if form.fully_masked_is_zero {
        factor *= max_of_cube(sees, units);
    }
    (most, factor)
}

/// Scores become weights.
#[cube(launch, address_type = "dynamic")]
fn weights_kernel<F: Float>(
    scores: &Tensor<f32>,
    queries: &Tensor<i32>,
    keys: &Tensor<i32>,
    dense: &Tensor<i32>,
    bias: &Tensor<f32>,
    drawn: &Tensor<f32>,
    output: &mut Tensor<F>,
    place: Place,
    numbers: Numbers,
    #[comptime] form: Form,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let start = CUBE_POS * place.keys;
    if start >= output.len() {
        terminate!();
    }
    let row = row_of(queries, keys, dense, bias, &place);
    let (most, factor) = largest_and_factor(scores, start, &row, keys, dense, bias, &place, &numbers, form, units);
    for key in range_stepped(UNIT_POS as usize, place.keys, units) {
        let raw = scores[start + key];
        let score = score(raw, &row, keys, dense, bias, &numbers, key, form);
        let weight = f32::exp(score - most) * factor * kept(drawn, &row, &place, &numbers, key, form);
        output[start + key] = F::cast_from(weight);
    }
}

/// Scores become weights, and gradients of weights become those of the products of queries and keys.
#[cube(launch, address_type = "dynamic")]
fn slopes_kernel<F: Float>(
    scores: &Tensor<f32>,
    grads: &Tensor<f32>,
    queries: &Tensor<i32>,
    keys: &Tensor<i32>,
    dense: &Tensor<i32>,
    bias: &Tensor<f32>,
    drawn: &Tensor<f32>,
    weights: &mut Tensor<F>,
    slopes: &mut Tensor<F>,
    place: Place,
    numbers: Numbers,
    #[comptime] form: Form,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let start = CUBE_POS * place.keys;
    if start >= weights.len() {
        terminate!();
    }
    let row = row_of(queries, keys, dense, bias, &place);
    let (most, factor) = largest_and_factor(scores, start, &row, keys, dense, bias, &place, &numbers, form, units);
    let mut along = 0.0f32;
    for key in range_stepped(UNIT_POS as usize, place.keys, units) {
        let raw = scores[start + key];
        let score = score(raw, &row, keys, dense, bias, &numbers, key, form);
        let weight = f32::exp(score - most) * factor * kept(drawn, &row, &place, &numbers, key, form);
        along += weight * grads[start + key];
    }
    let along = sum_of_cube(along, units);
    for key in range_stepped(UNIT_POS as usize, place.keys, units) {
        let raw = scores[start + key];
        let score = score(raw, &row, keys, dense, bias, &numbers, key, form);
        let weight = f32::exp(score - most) * factor;
        let kept = kept(drawn, &row, &place, &numbers, key, form);
        let mut slope = weight * (grads[start + key] * kept - along) * numbers.scale;
        if form.capped {
            let bent = bent(raw, &numbers, form);
            slope *= 1.0f32 - bent * bent;
        }
        // A score that was set has no slope.
        if is_set(&row, keys, dense, key, form) {
            slope = 0.0f32;
        }
        weights[start + key] = F::cast_from(weight * kept);
        slopes[start + key] = F::cast_from(slope);
    }
}

/// What goes in, contiguous where kernels want it, and how it is cut.
struct Attention {
    key: CubeTensor,
    value: CubeTensor,
    bias: CubeTensor,
    drawn: CubeTensor,
    masks: [CubeTensor; 3],
    settings: Settings,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    /// Query rows of a tile.
    rows: usize,
}

impl Attention {
    fn new(
        query: &CubeTensor,
        [key, value, bias, drawn]: [CubeTensor; 4],
        masks: [CubeTensor; 3],
        settings: Settings,
    ) -> Self {
        let [batch, heads, queries, _] = query.shape().dims::<4>();
        let [_, kv_heads, keys, _] = key.shape().dims::<4>();
        let row = (batch * heads * keys).max(1);
        Self {
            key,
            value,
            bias: into_contiguous(bias),
            drawn: into_contiguous(drawn),
            masks: masks.map(into_contiguous),
            settings,
            batch,
            heads,
            kv_heads,
            queries,
            keys,
            // Tiles of one size, but for the last.
            rows: queries.div_ceil(queries.div_ceil((TILE / row).max(1)).max(1)).max(1),
        }
    }

    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (queries, rows) = (self.queries, self.rows);
        (0..queries).step_by(rows).map(move |first| (first, rows.min(queries - first)))
    }

    /// Rows of a tensor `[batch, heads, queries, n]`, the heads that share a key as if they were rows of it:
    /// `[batch, kv_heads, groups · rows, n]`.
    fn tile(&self, tensor: &CubeTensor, (first, rows): (usize, usize)) -> CubeTensor {
        let part = if rows == self.queries {
            tensor.clone()
        } else {
            let all = |size: usize| burn::tensor::Slice::from(0..size);
            let shape = tensor.shape();
            let rows = burn::tensor::Slice::from(first..first + rows);
            CubeBackend::float_slice(tensor.clone(), &[all(shape[0]), all(shape[1]), rows, all(shape[3])])
        };
        let width = tensor.shape()[3];
        let shape = Shape::new([self.batch, self.kv_heads, self.heads / self.kv_heads * rows, width]);
        CubeBackend::float_reshape(part, shape)
    }

    /// The other way.
    fn untile(&self, tile: CubeTensor, rows: usize) -> CubeTensor {
        let width = tile.shape()[3];
        CubeBackend::float_reshape(tile, Shape::new([self.batch, self.heads, rows, width]))
    }

    fn launch(&self, (first, rows): (usize, usize)) -> (PlaceLaunch, NumbersLaunch, CubeCount, CubeDim) {
        let place = PlaceLaunch::new(self.heads, rows, first, self.queries, self.keys);
        let Settings { scale, cap, dropout, .. } = self.settings;
        let count = cube::cubes(&self.key, self.batch * self.heads * rows);
        (place, NumbersLaunch::new(scale, cap, dropout), count, cube::cube_for_row(&self.key, self.keys))
    }

    /// In single precision: they are large, and a softmax makes much of their last bits.
    fn scores(&self, query: &CubeTensor) -> CubeTensor {
        into_contiguous(cube::single_product(query.clone(), cube::turned(self.key.clone())))
    }

    /// The weights of a tile, from its scores.
    fn weights(&self, scores: CubeTensor, tile: (usize, usize)) -> CubeTensor {
        let (place, numbers, count, dim) = self.launch(tile);
        let (client, element, form) = (scores.client.clone(), cube::element(&self.value), self.settings.form);
        let output = cube::empty_contiguous(scores.shape(), &self.value);
        let [queries, keys, dense] = self.masks.clone().map(CubeTensor::into_tensor_arg);
        weights_kernel::launch(
            &client,
            count,
            dim,
            cube::address_type(&[&scores, &output]),
            scores.into_tensor_arg(),
            queries,
            keys,
            dense,
            self.bias.clone().into_tensor_arg(),
            self.drawn.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            place,
            numbers,
            form,
            dim.num_elems() as usize,
            element,
        );
        output
    }

    /// The weights of a tile, and the gradients of its products of queries and keys.
    fn slopes(&self, scores: CubeTensor, grads: CubeTensor, tile: (usize, usize)) -> [CubeTensor; 2] {
        let (place, numbers, count, dim) = self.launch(tile);
        let (client, element, form) = (scores.client.clone(), cube::element(&self.value), self.settings.form);
        let grads = into_contiguous(grads);
        let [weights, slopes] = [(); 2].map(|()| cube::empty_contiguous(scores.shape(), &self.value));
        let [queries, keys, dense] = self.masks.clone().map(CubeTensor::into_tensor_arg);
        slopes_kernel::launch(
            &client,
            count,
            dim,
            cube::address_type(&[&scores, &grads, &weights]),
            scores.into_tensor_arg(),
            grads.into_tensor_arg(),
            queries,
            keys,
            dense,
            self.bias.clone().into_tensor_arg(),
            self.drawn.clone().into_tensor_arg(),
            weights.clone().into_tensor_arg(),
            slopes.clone().into_tensor_arg(),
            place,
            numbers,
            form,
            dim.num_elems() as usize,
            element,
        );
        [weights, slopes]
    }

    /// The gradient of the bias by the rows of a tile, from that of its products.
    fn to_bias(&self, slopes: CubeTensor, rows: usize) -> CubeTensor {
        let slopes = CubeBackend::float_cast(self.untile(slopes, rows), DType::F32.into());
        let bias = self.bias.shape();
        let sum = (0..4).filter(|axis| bias[*axis] == 1).fold(slopes, CubeBackend::float_sum_dim);
        CubeBackend::float_mul_scalar(sum, (1.0 / self.settings.scale).into())
    }
}

impl TiledAttentionOps for CubeBackend {
    fn in_rows(tensor: CubeTensor) -> CubeTensor {
        into_contiguous(tensor)
    }

    fn attend_tiled(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        bias: CubeTensor,
        drawn: CubeTensor,
        queries: CubeTensor,
        keys: CubeTensor,
        dense: CubeTensor,
        settings: Settings,
    ) -> CubeTensor {
        let [query, key, value] = [query, key, value].map(into_contiguous);
        let attention = Attention::new(&query, [key, value, bias, drawn], [queries, keys, dense], settings);
        if query.shape().num_elements() == 0 || attention.keys == 0 {
            return cube::zeros_like(&query);
        }
        let outputs = attention.tiles().map(|tile| {
            let scores = attention.scores(&attention.tile(&query, tile));
            let weights = attention.weights(scores, tile);
            attention.untile(CubeBackend::float_matmul(weights, attention.value.clone()), tile.1)
        });
        cube::joined(outputs.collect(), 2)
    }

    fn attend_tiled_grads(
        grad: CubeTensor,
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        bias: CubeTensor,
        drawn: CubeTensor,
        queries: CubeTensor,
        keys: CubeTensor,
        dense: CubeTensor,
        settings: Settings,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let grad = into_contiguous(grad);
        let own = [key.clone(), value.clone(), bias.clone(), drawn];
        let attention = Attention::new(&query, own, [queries, keys, dense], settings);
        if query.shape().num_elements() == 0 || attention.keys == 0 {
            return (
                cube::zeros_like(&query),
                cube::zeros_like(&key),
                cube::zeros_like(&value),
                cube::zeros_like(&bias),
            );
        }
        let (mut to_query, mut to_bias_rows) = (Vec::new(), Vec::new());
        let (mut to_key, mut to_value, mut to_bias) = (None, None, None);
        for tile in attention.tiles() {
            let (query, grad) = (attention.tile(&query, tile), attention.tile(&grad, tile));
            let scores = attention.scores(&query);
            let grads = cube::single_product(grad.clone(), cube::turned(value.clone()));
            let [weights, slopes] = attention.slopes(scores, grads, tile);
            to_value = Some(cube::added(to_value, CubeBackend::float_matmul(cube::turned(weights), grad)));
            to_query.push(attention.untile(CubeBackend::float_matmul(slopes.clone(), key.clone()), tile.1));
            to_key = Some(cube::added(to_key, CubeBackend::float_matmul(cube::turned(slopes.clone()), query)));
            if settings.form.bias {
                let part = attention.to_bias(slopes, tile.1);
                if bias.shape()[2] == 1 {
                    to_bias = Some(cube::added(to_bias, part));
                } else {
                    to_bias_rows.push(part);
                }
            }
        }
        let to_bias = match to_bias {
            Some(sum) => sum,
            // Nobody reads the gradient of a bias that is not there.
            None if !settings.form.bias => bias,
            None if to_bias_rows.is_empty() => cube::zeros_like(&bias),
            None => cube::joined(to_bias_rows, 2),
        };
        let none = |grad: Option<CubeTensor>, like: &CubeTensor| grad.unwrap_or_else(|| cube::zeros_like(like));
        (cube::joined(to_query, 2), none(to_key, &key), none(to_value, &value), to_bias)
    }
}
