//! Normalisations on cards: a cube of units for each row.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::fused::NormOps;
use crate::ops::cube::{self, sum_of_cube, sum_of_vector};

/// Mean and reciprocal deviation of the row that begins at `start`; without a centre the mean is taken to be zero.
#[cube]
fn moments<F: Float, N: Size>(
    input: &Tensor<Vector<F, N>>,
    start: usize,
    vectors: usize,
    epsilon: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) -> (f32, f32) {
    let unit = UNIT_POS as usize;
    let count = f32::cast_from(vectors * input.vector_size());
    let mut mean = 0.0f32;
    if centred {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for at in range_stepped(unit, vectors, units) {
            sum += Vector::<f32, N>::cast_from(input[start + at]);
        }
        mean = sum_of_cube(sum_of_vector::<N>(sum), units) / count;
    }
    let centre = Vector::<f32, N>::new(mean);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for at in range_stepped(unit, vectors, units) {
        let x = Vector::<f32, N>::cast_from(input[start + at]) - centre;
        sum += x * x;
    }
    let variance = sum_of_cube(sum_of_vector::<N>(sum), units) / count;
    (mean, 1.0f32 / f32::sqrt(variance + epsilon))
}

#[cube(launch, address_type = "dynamic")]
fn forward_kernel<F: Float, N: Size>(
    input: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    rows: usize,
    vectors: usize,
    epsilon: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * vectors;
    let (mean, scale) = moments::<F, N>(input, start, vectors, epsilon, centred, units);
    for at in range_stepped(UNIT_POS as usize, vectors, units) {
        let x = Vector::<f32, N>::cast_from(input[start + at]) - Vector::new(mean);
        let mut y = x * Vector::new(scale) * Vector::<f32, N>::cast_from(weight[at]);
        if centred {
            y += Vector::<f32, N>::cast_from(bias[at]);
        }
        output[start + at] = Vector::cast_from(y);
    }
}

#[cube(launch, address_type = "dynamic")]
fn to_input_kernel<F: Float, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    input: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    rows: usize,
    vectors: usize,
    epsilon: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * vectors;
    let unit = UNIT_POS as usize;
    let (mean, scale) = moments::<F, N>(input, start, vectors, epsilon, centred, units);
    let count = f32::cast_from(vectors * input.vector_size());
    let centre = Vector::<f32, N>::new(mean);
    let mut levels = Vector::<f32, N>::new(0.0f32);
    let mut alongs = Vector::<f32, N>::new(0.0f32);
    for at in range_stepped(unit, vectors, units) {
        let g = Vector::<f32, N>::cast_from(grad[start + at]) * Vector::<f32, N>::cast_from(weight[at]);
        levels += g;
        alongs += g * (Vector::<f32, N>::cast_from(input[start + at]) - centre);
    }
    let along = sum_of_cube(sum_of_vector::<N>(alongs), units) * scale / count;
    let mut level = 0.0f32;
    if centred {
        level = sum_of_cube(sum_of_vector::<N>(levels), units) / count;
    }
    for at in range_stepped(unit, vectors, units) {
        let g = Vector::<f32, N>::cast_from(grad[start + at]) * Vector::<f32, N>::cast_from(weight[at]);
        let x = Vector::<f32, N>::cast_from(input[start + at]) - centre;
        let to_x = Vector::new(scale) * (g - Vector::new(level) - x * Vector::new(scale * along));
        output[start + at] = Vector::cast_from(to_x);
    }
}

/// Mean and reciprocal deviation of each row, side by side.
#[cube(launch, address_type = "dynamic")]
fn moments_kernel<F: Float, N: Size>(
    input: &Tensor<Vector<F, N>>,
    output: &mut Tensor<f32>,
    rows: usize,
    vectors: usize,
    epsilon: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (mean, scale) = moments::<F, N>(input, row * vectors, vectors, epsilon, centred, units);
    if UNIT_POS == 0 {
        output[2 * row] = mean;
        output[2 * row + 1] = scale;
    }
}

/// What a run of rows adds to the gradients of weight and bias: a unit for each vector of columns and each run.
#[cube(launch, address_type = "dynamic")]
fn to_scale_kernel<F: Float, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    input: &Tensor<Vector<F, N>>,
    moments: &Tensor<f32>,
    to_weight: &mut Tensor<Vector<f32, N>>,
    to_bias: &mut Tensor<Vector<f32, N>>,
    rows: usize,
    vectors: usize,
    run: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= to_weight.len() {
        terminate!();
    }
    let first = ABSOLUTE_POS / vectors * run;
    let column = ABSOLUTE_POS % vectors;
    let mut end = first + run;
    if end > rows {
        end = rows;
    }
    let mut weight = Vector::<f32, N>::new(0.0f32);
    let mut bias = Vector::<f32, N>::new(0.0f32);
    for row in first..end {
        let g = Vector::<f32, N>::cast_from(grad[row * vectors + column]);
        let x = Vector::<f32, N>::cast_from(input[row * vectors + column]);
        weight += g * (x - Vector::new(moments[2 * row])) * Vector::new(moments[2 * row + 1]);
        bias += g;
    }
    to_weight[ABSOLUTE_POS] = weight;
    to_bias[ABSOLUTE_POS] = bias;
}

/// Rows, vectors of a row, and how a kernel with a cube for each row is launched.
struct Rows {
    rows: usize,
    vectors: usize,
    count: CubeCount,
    dim: CubeDim,
    address: AddressType,
    vector: usize,
}

impl Rows {
    /// Of contiguous tensors that have rows of one width; nothing if they are empty.
    fn new(tensors: &[&CubeTensor]) -> Option<Self> {
        let vector = cube::vector_size(tensors);
        let [rows, width] = cube::rows_and_width(tensors[0]);
        let dim = cube::cube_for_row(tensors[0], width / vector);
        let (count, address) = (cube::cubes(tensors[0], rows), cube::address_type(tensors));
        (rows * width > 0).then(|| Self { rows, vectors: width / vector, count, dim, address, vector })
    }

    fn units(&self) -> usize {
        self.dim.num_elems() as usize
    }
}

fn forward(input: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, epsilon: f32) -> CubeTensor {
    let centred = bias.is_some();
    let [input, weight, bias] = [input, weight.clone(), bias.unwrap_or(weight)].map(into_contiguous);
    let output = cube::empty_contiguous(input.shape(), &input);
    if let Some(it) = Rows::new(&[&input, &weight, &bias, &output]) {
        let (client, element, units) = (output.client.clone(), cube::element(&output), it.units());
        let [input, weight, bias] = [input, weight, bias].map(CubeTensor::into_tensor_arg);
        let to = output.clone().into_tensor_arg();
        forward_kernel::launch(
            &client, it.count, it.dim, it.address, it.vector, input, weight, bias, to, it.rows, it.vectors, epsilon,
            centred, units, element,
        );
    }
    output
}

/// Rows whose sums a single unit takes.
const RUN: usize = 64;

impl NormOps for CubeBackend {
    fn normalise_centred(input: CubeTensor, weight: CubeTensor, bias: CubeTensor, epsilon: f32) -> CubeTensor {
        forward(input, weight, Some(bias), epsilon)
    }

    fn normalise(input: CubeTensor, weight: CubeTensor, epsilon: f32) -> CubeTensor {
        forward(input, weight, None, epsilon)
    }

    fn normalise_to_input(
        grad: CubeTensor,
        input: CubeTensor,
        weight: CubeTensor,
        centred: bool,
        epsilon: f32,
    ) -> CubeTensor {
        let [grad, input, weight] = [grad, input, weight].map(into_contiguous);
        let output = cube::empty_contiguous(input.shape(), &input);
        if let Some(it) = Rows::new(&[&input, &grad, &weight, &output]) {
            let (client, element, units) = (output.client.clone(), cube::element(&output), it.units());
            let [grad, input, weight] = [grad, input, weight].map(CubeTensor::into_tensor_arg);
            let to = output.clone().into_tensor_arg();
            to_input_kernel::launch(
                &client, it.count, it.dim, it.address, it.vector, grad, input, weight, to, it.rows, it.vectors,
                epsilon, centred, units, element,
            );
        }
        output
    }

    fn normalise_to_scale(
        grad: CubeTensor,
        input: CubeTensor,
        weight: CubeTensor,
        centred: bool,
        epsilon: f32,
    ) -> (CubeTensor, CubeTensor) {
        let [grad, input] = [grad, input].map(into_contiguous);
        let [rows, width] = cube::rows_and_width(&input);
        let runs = rows.div_ceil(RUN).max(1);
        let numbers = |shape: [usize; 2]| cube::empty_f32(Shape::new(shape), &input);
        let (moments, weights, biases) = (numbers([rows, 2]), numbers([runs, width]), numbers([runs, width]));
        let Some(it) = Rows::new(&[&input, &grad, &weights, &biases]) else {
            return (cube::zeros_like(&weight), cube::zeros_like(&weight));
        };
        let (client, element, units) = (input.client.clone(), cube::element(&input), it.units());
        moments_kernel::launch(
            &client,
            it.count,
            it.dim,
            it.address,
            it.vector,
            input.clone().into_tensor_arg(),
            moments.clone().into_tensor_arg(),
            it.rows,
            it.vectors,
            epsilon,
            centred,
            units,
            element,
        );
        let dim = CubeDim::new(&client, runs * it.vectors);
        to_scale_kernel::launch(
            &client,
            cubecl::calculate_cube_count_elemwise(&client, runs * it.vectors, dim),
            dim,
            it.address,
            it.vector,
            grad.into_tensor_arg(),
            input.into_tensor_arg(),
            moments.into_tensor_arg(),
            weights.clone().into_tensor_arg(),
            biases.clone().into_tensor_arg(),
            it.rows,
            it.vectors,
            RUN,
            element,
        );
        let sum = |runs: CubeTensor| {
            let sum = CubeBackend::float_reshape(CubeBackend::float_sum_dim(runs, 0), weight.shape());
            CubeBackend::float_cast(sum, weight.dtype.into())
        };
        (sum(weights), sum(biases))
    }
}
