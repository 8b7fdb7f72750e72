//! Sums of squares on cards: parts of every tensor, a launch for as many tensors as a kernel takes buffers, and then all parts.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor as BurnTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::VectorSize;
use cubecl::prelude::*;

use crate::ops::cube::{self, sum_of_cube, sum_of_vector};
use crate::ops::queue::{self, Queue};

/// Parts of a tensor, each of them summed up by a cube.
const PARTS: usize = 16;

#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(all(feature = "cube", feature = "fusion")))]
pub(super) trait SquaresOps: Backend {
    #[fusion(dtype = sum, shape = sum)]
    fn add_squares(sum: FloatTensor<Self>, tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A row of cubes for each tensor; a part for each cube.
#[cube(launch, address_type = "dynamic")]
fn parts_kernel<N: Size>(
    tensors: &Sequence<OwnedTensor<Vector<f32, N>>>,
    parts: &mut Tensor<f32>,
    first: usize,
    #[comptime] count: usize,
    #[comptime] units: usize,
) {
    let start = CUBE_POS_X as usize * units + UNIT_POS as usize;
    let step = CUBE_COUNT_X as usize * units;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for which in 0..count {
        let tensor = tensors.index(which);
        if CUBE_POS_Y == comptime!(which as u32) {
            for at in range_stepped(start, tensor.len(), step) {
                squares += tensor[at] * tensor[at];
            }
        }
    }
    let total = sum_of_cube(sum_of_vector::<N>(squares), units);
    if UNIT_POS == 0 {
        parts[first + (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize] = total;
    }
}

/// One cube adds all parts to what there is.
#[cube(launch, address_type = "dynamic")]
fn sum_kernel(sum: &Tensor<f32>, parts: &Tensor<f32>, output: &mut Tensor<f32>, #[comptime] units: usize) {
    let mut own = 0.0f32;
    for at in range_stepped(UNIT_POS as usize, parts.len(), units) {
        own += parts[at];
    }
    let total = sum_of_cube(own, units);
    if UNIT_POS == 0 {
        output[0] = sum[0] + total;
    }
}

/// Sums that are not launched yet: of what there is and of tensors, which all go into one.
struct Waiting {
    sum: CubeTensor,
    output: CubeTensor,
    tensors: Vec<CubeTensor>,
}

thread_local! {
    static WAITING: Queue<Waiting> = const { Queue::new(None) };
}

pub(in crate::ops) fn together<R>(run: impl FnOnce() -> R) -> R {
    queue::within(&WAITING, run, |all| all.into_iter().for_each(launch))
}

fn launch(Waiting { sum, output, tensors }: Waiting) {
    let client = sum.client.clone();
    let parts = cube::empty_f32(Shape::new([tensors.len() * PARTS]), &sum);
    let mut by_vector: Vec<(VectorSize, Vec<CubeTensor>)> = Vec::new();
    for tensor in tensors {
        let vector = cube::vector_size(&[&tensor]);
        match by_vector.iter_mut().find(|it| it.0 == vector) {
            Some((_, all)) => all.push(tensor),
            None => by_vector.push((vector, vec![tensor])),
        }
    }
    let mut first = 0;
    for (vector, tensors) in &by_vector {
        for tensors in tensors.chunks(cube::most_tensors(&client, 1)) {
            let largest = tensors.iter().map(|it| it.shape().num_elements() / vector).max().unwrap_or(0);
            let dim = cube::cube_for_row(&sum, largest.div_ceil(PARTS));
            parts_kernel::launch(
                &client,
                CubeCount::Static(PARTS as u32, tensors.len() as u32, 1),
                dim,
                cube::address_type(&tensors.iter().collect::<Vec<_>>()),
                *vector,
                tensors.iter().map(|it| it.clone().into_tensor_arg()).collect(),
                parts.clone().into_tensor_arg(),
                first,
                tensors.len(),
                dim.num_elems() as usize,
            );
            first += tensors.len() * PARTS;
        }
    }
    let dim = cube::cube_for_row(&sum, parts.shape().num_elements());
    sum_kernel::launch(
        &client,
        CubeCount::Static(1, 1, 1),
        dim,
        cube::address_type(&[&parts]),
        sum.into_tensor_arg(),
        parts.into_tensor_arg(),
        output.into_tensor_arg(),
        dim.num_elems() as usize,
    );
}

impl SquaresOps for CubeBackend {
    fn add_squares(sum: CubeTensor, tensor: CubeTensor) -> CubeTensor {
        let tensor = into_contiguous(tensor);
        if tensor.shape().num_elements() == 0 {
            return sum;
        }
        WAITING.with_borrow_mut(|all| {
            // What is added to a sum that waits is one more term of it.
            if let Some(waiting) = all.iter_mut().flatten().find(|it| cube::is_same(&it.output, &sum)) {
                waiting.tensors.push(tensor);
                return sum;
            }
            let output = cube::empty_contiguous(Shape::new([1]), &sum);
            let waiting = Waiting { sum, output: output.clone(), tensors: vec![tensor] };
            match all {
                Some(all) => all.push(waiting),
                None => launch(waiting),
            }
            output
        })
    }
}

pub(super) fn fits<const D: usize>(tensor: &BurnTensor<D>) -> bool {
    cube::fits(tensor) && tensor.dtype() == DType::F32 && !tensor.device().is_autodiff()
}

pub(super) fn add_squares<const D: usize>(sum: BurnTensor<1>, tensor: BurnTensor<D>) -> BurnTensor<1> {
    BurnTensor::from_dispatch(Dispatch::add_squares(sum.into_dispatch(), tensor.into_dispatch()))
}
