//! Rotary position embedding on cards: a unit for each pair of coordinates.

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::fused::RotaryOps;
use super::pairing::Pairing;
use crate::ops::cube;

/// The result lies as `[batch, heads, seq, d_head]`, which the products of attention read, or as `[batch, seq, heads, d_head]`, which
/// the backward pass of projections does.
#[cube(launch, address_type = "dynamic")]
fn turn_kernel<F: Float>(
    input: &Tensor<F>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    output: &mut Tensor<F>,
    units: usize,
    half: usize,
    direction: f32,
    #[comptime] heads_first: bool,
    #[comptime] pairing: Pairing,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let (seq, heads, d_head) = (input.shape(2), input.shape(1), input.shape(3));
    // Pairs, and after them the coordinates that pass.
    let items = d_head - half;
    let item = ABSOLUTE_POS % items;
    let head = ABSOLUTE_POS / items % heads;
    let position = ABSOLUTE_POS / items / heads % seq;
    let batch = ABSOLUTE_POS / items / heads / seq;
    let from = batch * input.stride(0) + head * input.stride(1) + position * input.stride(2);
    let mut to = ((batch * seq + position) * heads + head) * d_head;
    if heads_first {
        to = ((batch * heads + head) * seq + position) * d_head;
    }
    let step = input.stride(3);
    if item < half {
        let mut left = item;
        let mut right = item + half;
        if comptime!(matches!(pairing, Pairing::Neighbours)) {
            left = 2 * item;
            right = 2 * item + 1;
        }
        let angle = (batch % cos.shape(0) * seq + position) * half + item;
        let (cos, sin) = (cos[angle], sin[angle] * direction);
        let a = f32::cast_from(input[from + left * step]);
        let b = f32::cast_from(input[from + right * step]);
        output[to + left] = F::cast_from(a * cos - b * sin);
        output[to + right] = F::cast_from(b * cos + a * sin);
    } else {
        output[to + item + half] = input[from + (item + half) * step];
    }
}

impl RotaryOps for CubeBackend {
    fn turn_pairs(input: CubeTensor, cos: CubeTensor, sin: CubeTensor, pairing: Pairing, direction: f32) -> CubeTensor {
        let [batch, heads, seq, d_head] = input.shape().dims::<4>();
        let half = cos.shape()[3];
        let [cos, sin] = [cos, sin].map(into_contiguous);
        let heads_first = direction > 0.0;
        let shape = if heads_first { [batch, heads, seq, d_head] } else { [batch, seq, heads, d_head] };
        let output = cube::empty_contiguous(Shape::new(shape), &input);
        let units = batch * heads * seq * (d_head - half);
        if units > 0 {
            let (client, element) = (output.client.clone(), cube::element(&output));
            let dim = CubeDim::new(&client, units);
            let address = cube::address_type(&[&input, &cos, &sin, &output]);
            turn_kernel::launch(
                &client,
                calculate_cube_count_elemwise(&client, units, dim),
                dim,
                address,
                input.into_tensor_arg(),
                cos.into_tensor_arg(),
                sin.into_tensor_arg(),
                output.clone().into_tensor_arg(),
                units,
                half,
                direction,
                heads_first,
                pairing,
                element,
            );
        }
        if heads_first { output } else { permute(output, &[0, 2, 1, 3]) }
    }
}
