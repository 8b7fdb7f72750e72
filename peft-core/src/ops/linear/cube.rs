//! Products with a weight on cards, whatever it is stored in.
//!
//! For many rows a weight in codes is widened once and multiplied by the backend's product, as bitsandbytes does: the units that multiply
//! matrices do not read codes. A few rows, as in decoding, take as long as reading the weight does, and read the codes themselves.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::frozen::FrozenProductOps;
use super::rounded::rounded;
use crate::ops::{cube, to_f32};
use crate::quant::{self, Coding, Header, Parts};

/// Up to so many rows read the codes of a weight themselves.
const FEW: usize = 8;

/// `input · weight`, in the type of the input; multiplied in bf16 if that is asked for, with sums in single precision.
pub(in crate::ops) fn with_weight(input: CubeTensor, weight: CubeTensor, bf16: bool) -> CubeTensor {
    if let Some(header) = quant::header(&weight)
        // As in a forward: a backward pass sees the weight as it is stored.
        && header.is_turned(&weight)
    {
        if let Some(threshold) = header.threshold {
            let weight = to_f32::cube::widened_from(weight, header.without_rounding(), input.dtype);
            return CubeBackend::float_matmul(rounded(input, threshold), weight);
        }
        if input.shape()[0] <= FEW {
            return few_rows(input, weight, header);
        }
    }
    let dtype = input.dtype;
    let weight = to_f32::cube::for_product(weight, &input, bf16);
    if !bf16 {
        return CubeBackend::float_matmul(input, weight);
    }
    let output = cube::single_product(to_f32::cube::for_product(input.clone(), &input, bf16), weight);
    if output.dtype == dtype { output } else { CubeBackend::float_cast(output, dtype.into()) }
}

/// A cube computes the product of a row with a line of the weight.
#[cube(launch, address_type = "dynamic")]
fn few_rows_kernel<F: Float, N: Size>(
    input: &Tensor<Vector<F, N>>,
    bytes: &Tensor<u32>,
    output: &mut Tensor<F>,
    parts: Parts,
    lines: usize,
    width: usize,
    #[comptime] coding: Coding,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    if CUBE_POS >= output.len() {
        terminate!();
    }
    let (row, line) = (CUBE_POS / lines, CUBE_POS % lines);
    let vectors = width / input.vector_size();
    let mut sums = Vector::<f32, N>::new(0.0f32);
    for at in range_stepped(UNIT_POS as usize, vectors, units) {
        let weights = quant::numbers::<N>(bytes, &parts, line, at * input.vector_size(), coding);
        sums += Vector::<f32, N>::cast_from(input[row * vectors + at]) * weights;
    }
    let sum = cube::sum_of_cube(cube::sum_of_vector(sums), units);
    if UNIT_POS == 0 {
        output[CUBE_POS] = F::cast_from(sum);
    }
}

fn few_rows(input: CubeTensor, weight: CubeTensor, header: Header) -> CubeTensor {
    let input = into_contiguous(input);
    let (rows, [lines, width]) = (input.shape()[0], header.shape());
    let output = cube::empty_contiguous(Shape::new([rows, lines]), &input);
    if rows * lines == 0 {
        return output;
    }
    let (client, vector, bytes) = (output.client.clone(), cube::vector_size(&[&input]), quant::bytes(weight));
    let dim = cube::cube_for_row(&output, width / vector);
    few_rows_kernel::launch(
        &client,
        cube::cubes(&output, rows * lines),
        dim,
        cube::address_type(&[&input, &bytes, &output]),
        vector,
        input.into_tensor_arg(),
        bytes.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        header.parts(),
        lines,
        width,
        header.coding(),
        dim.num_elems() as usize,
        cube::element(&output),
    );
    output
}

impl FrozenProductOps for CubeBackend {
    fn frozen_product(input: CubeTensor, weight: CubeTensor, bf16: bool) -> CubeTensor {
        with_weight(input, weight, bf16)
    }
}
