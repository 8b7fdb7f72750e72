//! Sums of squares on cards: one cube of units, for what is no larger than the gradient of an adapter.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor as BurnTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::ops::cube::{self, sum_of_cube, sum_of_vector};

/// Numbers that one cube sums up in little time. More go the way of Burn's reductions, in several passes.
const LARGEST: usize = 1 << 22;

#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(all(feature = "cube", feature = "fusion")))]
pub(super) trait SquaresOps: Backend {
    #[fusion(dtype = sum, shape = sum)]
    fn add_squares(sum: FloatTensor<Self>, tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cube(launch, address_type = "dynamic")]
fn squares_kernel<N: Size>(
    sum: &Tensor<f32>,
    tensor: &Tensor<Vector<f32, N>>,
    output: &mut Tensor<f32>,
    vectors: usize,
    #[comptime] units: usize,
) {
    let mut squares = Vector::<f32, N>::new(0.0f32);
    for at in range_stepped(UNIT_POS as usize, vectors, units) {
        squares += tensor[at] * tensor[at];
    }
    let total = sum_of_cube(sum_of_vector::<N>(squares), units);
    if UNIT_POS == 0 {
        output[0] = sum[0] + total;
    }
}

impl SquaresOps for CubeBackend {
    fn add_squares(sum: CubeTensor, tensor: CubeTensor) -> CubeTensor {
        let tensor = into_contiguous(tensor);
        let count = tensor.shape().num_elements();
        if count == 0 {
            return sum;
        }
        let vector = cube::vector_size(&[&tensor]);
        let (client, dim) = (tensor.client.clone(), cube::cube_for_row(&tensor, count / vector));
        let output = cube::empty_contiguous(Shape::new([1]), &sum);
        squares_kernel::launch(
            &client,
            CubeCount::Static(1, 1, 1),
            dim,
            cube::address_type(&[&tensor]),
            vector,
            sum.into_tensor_arg(),
            tensor.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            count / vector,
            dim.num_elems() as usize,
        );
        output
    }
}

pub(super) fn fits<const D: usize>(tensor: &BurnTensor<D>) -> bool {
    let is_small = tensor.dims().iter().product::<usize>() <= LARGEST;
    is_small && cube::fits(tensor) && tensor.dtype() == DType::F32 && !tensor.device().is_autodiff()
}

pub(super) fn add_squares<const D: usize>(sum: BurnTensor<1>, tensor: BurnTensor<D>) -> BurnTensor<1> {
    BurnTensor::from_dispatch(Dispatch::add_squares(sum.into_dispatch(), tensor.into_dispatch()))
}
