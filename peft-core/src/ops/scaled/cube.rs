//! Tensors by a number that is on the card: one launch for as many as a kernel takes buffers.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::DType;
use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::VectorSize;
use cubecl::prelude::*;

use crate::ops::cube;
use crate::ops::queue::{self, Queue};

#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(all(feature = "cube", feature = "fusion")))]
pub(super) trait ScaledOps: Backend {
    #[fusion(dtype = tensor, shape = tensor)]
    fn scaled(tensor: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A row of cubes for each tensor.
#[cube(launch, address_type = "dynamic")]
fn scaled_kernel<N: Size>(
    tensors: &Sequence<OwnedTensor<Vector<f32, N>>>,
    outputs: &mut Sequence<OwnedTensor<Vector<f32, N>>>,
    factor: &Tensor<f32>,
    #[comptime] count: usize,
) {
    let start = (CUBE_POS_X * CUBE_DIM + UNIT_POS) as usize;
    let step = (CUBE_COUNT_X * CUBE_DIM) as usize;
    let factor = Vector::<f32, N>::new(factor[0]);
    #[unroll]
    for which in 0..count {
        let tensor = tensors.index(which);
        if CUBE_POS_Y == comptime!(which as u32) {
            for place in range_stepped(start, tensor.len(), step) {
                outputs.index_mut(which)[place] = tensor[place] * factor;
            }
        }
    }
}

/// A tensor, and where it goes.
struct Waiting {
    tensor: CubeTensor,
    output: CubeTensor,
    factor: CubeTensor,
    vector: VectorSize,
}

thread_local! {
    static WAITING: Queue<Waiting> = const { Queue::new(None) };
}

pub(in crate::ops) fn together<R>(run: impl FnOnce() -> R) -> R {
    queue::within(&WAITING, run, launch)
}

fn launch(mut waiting: Vec<Waiting>) {
    while let Some(Waiting { vector, factor, tensor, .. }) = waiting.first() {
        let (vector, factor, client) = (*vector, factor.clone(), tensor.client.clone());
        let (alike, others): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|it| it.vector == vector && cube::is_same(&it.factor, &factor));
        waiting = others;
        for alike in alike.chunks(cube::most_tensors(&client, 2)) {
            let largest = alike.iter().map(|it| it.tensor.shape().num_elements() / vector).max().unwrap_or(0);
            let dim = CubeDim::new(&client, largest);
            let tensors: Vec<&CubeTensor> = alike.iter().map(|it| &it.tensor).collect();
            scaled_kernel::launch(
                &client,
                cube::rows_of_cubes(largest, dim, alike.len()),
                dim,
                cube::address_type(&tensors),
                vector,
                tensors.iter().map(|it| (*it).clone().into_tensor_arg()).collect(),
                alike.iter().map(|it| it.output.clone().into_tensor_arg()).collect(),
                factor.clone().into_tensor_arg(),
                alike.len(),
            );
        }
    }
}

impl ScaledOps for CubeBackend {
    fn scaled(tensor: CubeTensor, factor: CubeTensor) -> CubeTensor {
        let tensor = into_contiguous(tensor);
        let output = cube::empty_contiguous(tensor.shape(), &tensor);
        if output.shape().num_elements() > 0 {
            let vector = cube::vector_size(&[&tensor]);
            let waiting = Waiting { tensor, output: output.clone(), factor, vector };
            queue::give(&WAITING, waiting, launch);
        }
        output
    }
}

pub(super) fn fits<const D: usize>(tensor: &BurnTensor<D>) -> bool {
    cube::fits(tensor) && tensor.dtype() == DType::F32 && !tensor.device().is_autodiff()
}

pub(super) fn scaled<const D: usize>(tensor: BurnTensor<D>, factor: BurnTensor<1>) -> BurnTensor<D> {
    BurnTensor::from_dispatch(Dispatch::scaled(tensor.into_dispatch(), factor.into_dispatch()))
}
