//! The kernel that adds a product of low rank to what is there, on cards: a unit for each vector of the output.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::beside::{LowRankBesideOps, Settings};
use crate::ops::cube;
use crate::ops::linear::cube::with_weight;

/// `output + bias + scale · low · right`, where `right` is `[rank, columns]`, or `[columns, rank]` if it is turned; and
/// `scale · low`, which the units of the first column write.
#[cube(launch, address_type = "dynamic")]
fn add_kernel<F: Float, N: Size>(
    output: &Tensor<Vector<F, N>>,
    bias: &Tensor<f32>,
    low: &Tensor<f32>,
    right: &Tensor<f32>,
    sum: &mut Tensor<Vector<f32, N>>,
    scaled: &mut Tensor<f32>,
    columns: usize,
    rank: usize,
    scale: f32,
    #[comptime] has_bias: bool,
    #[comptime] turned: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sum.len() {
        terminate!();
    }
    let width = sum.vector_size();
    let vectors = columns / width;
    let row = ABSOLUTE_POS / vectors;
    let column = ABSOLUTE_POS % vectors * width;
    let mut added = Vector::<f32, N>::new(0.0f32);
    for term in 0..rank {
        let left = low[row * rank + term] * scale;
        if column == 0 {
            scaled[row * rank + term] = left;
        }
        let mut factors = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for at in 0..width {
            let mut place = term * columns + column + at;
            if turned {
                place = (column + at) * rank + term;
            }
            factors.insert(at, right[place]);
        }
        added += factors * Vector::new(left);
    }
    let mut total = Vector::<f32, N>::cast_from(output[ABSOLUTE_POS]) + added;
    if has_bias {
        let mut biases = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for at in 0..width {
            biases.insert(at, bias[column + at]);
        }
        total += biases;
    }
    sum[ABSOLUTE_POS] = total;
}

fn add(
    output: CubeTensor,
    bias: Option<CubeTensor>,
    low: CubeTensor,
    right: CubeTensor,
    scale: f32,
    turned: bool,
) -> (CubeTensor, CubeTensor) {
    let [output, low, right] = [output, low, right].map(into_contiguous);
    let ([rows, columns], rank) = (output.shape().dims::<2>(), low.shape()[1]);
    let client = output.client.clone();
    let sum = cube::empty_f32(Shape::new([rows, columns]), &output);
    let scaled = cube::empty_f32(Shape::new([rows, rank]), &low);
    let vector = cube::vector_size(&[&output, &sum]);
    let vectors = rows * columns / vector;
    if vectors == 0 {
        return (sum, scaled);
    }
    let (dim, has_bias) = (CubeDim::new(&client, vectors), bias.is_some());
    let bias = into_contiguous(bias.unwrap_or_else(|| low.clone()));
    add_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, vectors, dim),
        dim,
        cube::address_type(&[&output, &sum, &right, &scaled]),
        vector,
        output.clone().into_tensor_arg(),
        bias.into_tensor_arg(),
        low.into_tensor_arg(),
        right.into_tensor_arg(),
        sum.clone().into_tensor_arg(),
        scaled.clone().into_tensor_arg(),
        columns,
        rank,
        scale,
        has_bias,
        turned,
        cube::element(&output),
    );
    (sum, scaled)
}

impl LowRankBesideOps for CubeBackend {
    fn low_rank_beside_kept(
        input: CubeTensor,
        weight: CubeTensor,
        bias: CubeTensor,
        a: CubeTensor,
        b: CubeTensor,
        settings: Settings,
    ) -> (CubeTensor, CubeTensor) {
        let low = CubeBackend::float_matmul(input.clone(), cube::turned(a));
        let output = with_weight(input, weight, settings.bf16);
        let bias = settings.has_bias.then_some(bias);
        add(output, bias, low, b, settings.scale, true)
    }

    fn low_rank_beside(
        input: CubeTensor,
        weight: CubeTensor,
        bias: CubeTensor,
        a: CubeTensor,
        b: CubeTensor,
        settings: Settings,
    ) -> CubeTensor {
        Self::low_rank_beside_kept(input, weight, bias, a, b, settings).0
    }

    fn low_rank_beside_grads(
        grad: CubeTensor,
        input: CubeTensor,
        weight: CubeTensor,
        a: CubeTensor,
        b: CubeTensor,
        low: CubeTensor,
        Settings { scale, bf16, to_input, .. }: Settings,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let thin = CubeBackend::float_matmul(grad.clone(), b);
        let to_b = CubeBackend::float_matmul(cube::turned(grad.clone()), low);
        let (to_input, thin) = match to_input {
            true => add(with_weight(grad, cube::turned(weight), bf16), None, thin, a, scale, false),
            false => (cube::empty(Shape::new([1]), &input), CubeBackend::float_mul_scalar(thin, scale.into())),
        };
        let to_a = CubeBackend::float_matmul(cube::turned(thin), input);
        (to_input, to_a, to_b)
    }
}
