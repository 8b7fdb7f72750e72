//! Dropout on cards: one pass.

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::drawn::DrawnDropoutOps;
use crate::ops::cube::{self, Elementwise, factor_of_place};

#[cube(launch, address_type = "dynamic")]
fn drop_kernel<F: Float>(
    input: LinearView<'_, F>,
    drawn: &Tensor<f32>,
    mut output: LinearViewMut<'_, F>,
    probability: f32,
    #[define(F)] _dtype: ElemType,
) {
    if !output.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let factor = factor_of_place(drawn[0], drawn[1], ABSOLUTE_POS as u32, probability);
    output.write(ABSOLUTE_POS, F::cast_from(f32::cast_from(input.read(ABSOLUTE_POS)) * factor));
}

impl DrawnDropoutOps for CubeBackend {
    fn drop_drawn(input: CubeTensor, drawn: CubeTensor, probability: f32) -> CubeTensor {
        let output = cube::empty(input.shape(), &input);
        if let Some(it) = Elementwise::single(&[&output, &input]) {
            let (client, element) = (output.client.clone(), cube::element(&output));
            let input = input.into_linear_view_like(&output);
            let (drawn, view) = (drawn.into_tensor_arg(), output.clone().into_linear_view());
            drop_kernel::launch(&client, it.count, it.dim, it.address, input, drawn, view, probability, element);
        }
        output
    }
}
