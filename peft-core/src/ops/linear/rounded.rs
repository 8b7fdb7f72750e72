//! Activations as LLM.int8 multiplies them, on cards: rounded to steps of the largest of their row, but for columns that hold outliers.
//!
//! The reference multiplies codes with codes, and columns with outliers once more in half precision; to know them it waits for the card.
//! Here the numbers that rounded activations mean go into one product with what the codes of the weight mean. That is the same but for
//! the rounding of sums, and nothing waits.
//!
//! Source: `MatMul8bitLt` and `int8_vectorwise_quant` of bitsandbytes 0.50; the form for the CPU is in `kernel/int8.rs`.

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use crate::ops::cube;
use crate::quant::{ACTIVATION_STEP, STEPS, rounded_to_f16, to_even};

/// 1 for each column in which a number reaches the threshold, else 0.
#[cube(launch, address_type = "dynamic")]
fn outlier_kernel<F: Float>(
    input: &Tensor<F>,
    outliers: &mut Tensor<f32>,
    rows: usize,
    threshold: f32,
    #[define(F)] _dtype: ElemType,
) {
    let width = outliers.len();
    if ABSOLUTE_POS >= width {
        terminate!();
    }
    let mut found = 0.0f32;
    for row in 0..rows {
        let x = rounded_to_f16(f32::cast_from(input[row * width + ABSOLUTE_POS]));
        if f32::abs(x) >= threshold {
            found = 1.0f32;
        }
    }
    outliers[ABSOLUTE_POS] = found;
}

/// A cube rounds a row.
#[cube(launch, address_type = "dynamic")]
fn round_kernel<F: Float>(
    input: &Tensor<F>,
    outliers: &Tensor<f32>,
    output: &mut Tensor<F>,
    width: usize,
    threshold: f32,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (start, unit) = (CUBE_POS * width, UNIT_POS as usize);
    if start >= output.len() {
        terminate!();
    }
    let mut most = 0.0f32;
    for at in range_stepped(unit, width, units) {
        let x = f32::abs(rounded_to_f16(f32::cast_from(input[start + at])));
        if threshold == 0.0f32 || x < threshold {
            most = max(most, x);
        }
    }
    let largest = cube::max_of_cube(most, units);
    let mut steps = 0.0f32;
    if largest > 0.0f32 {
        steps = 1.0f32 / largest * comptime!(STEPS);
    }
    for at in range_stepped(unit, width, units) {
        let mut x = f32::cast_from(input[start + at]);
        if outliers[at] == 0.0f32 {
            let exact = rounded_to_f16(x) * steps;
            let code = to_even(f32::abs(exact));
            x = code * (largest * comptime!(ACTIVATION_STEP));
            if exact < 0.0f32 {
                x = -x;
            }
        }
        output[start + at] = F::cast_from(x);
    }
}

/// What is multiplied in place of the activations. With a threshold of 0 there are no outliers.
pub(super) fn rounded(input: CubeTensor, threshold: f32) -> CubeTensor {
    let input = into_contiguous(input);
    let [rows, width] = input.shape().dims::<2>();
    if rows * width == 0 {
        return input;
    }
    let (client, element) = (input.client.clone(), cube::element(&input));
    let output = cube::empty_contiguous(input.shape(), &input);
    let outliers = cube::empty_f32(Shape::new([width]), &input);
    let address = cube::address_type(&[&input, &output]);
    let dim = CubeDim::new(&client, width);
    outlier_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, width, dim),
        dim,
        address,
        input.clone().into_tensor_arg(),
        outliers.clone().into_tensor_arg(),
        rows,
        if threshold > 0.0 { threshold } else { f32::INFINITY },
        element,
    );
    let dim = cube::cube_for_row(&output, width);
    round_kernel::launch(
        &client,
        cube::cubes(&output, rows),
        dim,
        address,
        input.into_tensor_arg(),
        outliers.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        width,
        threshold,
        dim.num_elems() as usize,
        element,
    );
    output
}
