//! The numbers that codes mean, on cards: a unit for each vector of them.

use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::widen::WidenOps;
use crate::ops::cube::{self, Elementwise};
use crate::quant::{self, Coding, Header, Parts};

#[cube(launch, address_type = "dynamic")]
fn widen_kernel<F: Float, N: Size>(
    bytes: &Tensor<u32>,
    output: &mut Tensor<Vector<F, N>>,
    parts: Parts,
    width: usize,
    #[comptime] coding: Coding,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let place = ABSOLUTE_POS * output.vector_size();
    let numbers = quant::numbers::<N>(bytes, &parts, place / width, place % width, coding);
    output[ABSOLUTE_POS] = Vector::cast_from(numbers);
}

/// A packed matrix in that type, as it is seen; a tensor of numbers as it is.
pub(in crate::ops) fn widened(packed: CubeTensor, dtype: DType) -> CubeTensor {
    match quant::header(&packed) {
        Some(header) => widened_from(packed, header, dtype),
        None => packed,
    }
}

/// The same by a header, perhaps changed.
pub(in crate::ops) fn widened_from(packed: CubeTensor, header: Header, dtype: DType) -> CubeTensor {
    let (is_turned, [lines, width]) = (header.is_turned(&packed), header.shape());
    let (client, device) = (packed.client.clone(), packed.device.clone());
    let output = empty_device_contiguous_dtype(client, device, Shape::new([lines, width]), dtype);
    if let Some(it) = Elementwise::new(&[&output]) {
        let bytes = quant::bytes(packed);
        widen_kernel::launch(
            &output.client,
            it.count,
            it.dim,
            it.address.max(cube::address_type(&[&bytes])),
            it.vector,
            bytes.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            header.parts(),
            width,
            header.coding(),
            cube::element(&output),
        );
    }
    if is_turned { cube::turned(output) } else { output }
}

/// A weight or an input in the type that a product computes in: that of the inputs, or bf16.
pub(in crate::ops) fn for_product(tensor: CubeTensor, inputs: &CubeTensor, bf16: bool) -> CubeTensor {
    let dtype = if bf16 { DType::BF16 } else { inputs.dtype };
    let tensor = widened(tensor, dtype);
    if tensor.dtype == dtype { tensor } else { CubeBackend::float_cast(tensor, dtype.into()) }
}

impl WidenOps for CubeBackend {
    fn widen(tensor: CubeTensor) -> CubeTensor {
        widened(tensor, DType::F32)
    }
}
