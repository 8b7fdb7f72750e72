//! Steps of AdamW on cards: one launch for as many parameters as a kernel takes buffers.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::VectorSize;
use cubecl::prelude::*;

use super::settings::AdamWStep;
use crate::ops::cube;
use crate::ops::queue::{self, Queue};

#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Factors {
    beta_1: f32,
    beta_2: f32,
    correction_1: f32,
    correction_2: f32,
    rate: f32,
    epsilon: f32,
    kept: f32,
}

#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(all(feature = "cube", feature = "fusion")))]
pub(super) trait AdamWOps: Backend {
    #[fusion(meta = |parameter, _grad, first, second, _step| (parameter.clone(), first.clone(), second.clone()))]
    fn adamw(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// A row of cubes for each parameter. Without old tensors the new ones are what is read, too.
#[cube(launch, address_type = "dynamic")]
fn adamw_kernel<N: Size>(
    grads: &Sequence<OwnedTensor<Vector<f32, N>>>,
    old: &Sequence<OwnedTensor<Vector<f32, N>>>,
    new: &mut Sequence<OwnedTensor<Vector<f32, N>>>,
    factors: Factors,
    #[comptime] count: usize,
    #[comptime] in_place: bool,
) {
    let start = (CUBE_POS_X * CUBE_DIM + UNIT_POS) as usize;
    let step = (CUBE_COUNT_X * CUBE_DIM) as usize;
    #[unroll]
    for which in 0..count {
        let grad = grads.index(which);
        if CUBE_POS_Y == comptime!(which as u32) {
            for place in range_stepped(start, grad.len(), step) {
                let g = grad[place];
                let (x, m, v) = if in_place {
                    (
                        new.index(comptime!(3 * which))[place],
                        new.index(comptime!(3 * which + 1))[place],
                        new.index(comptime!(3 * which + 2))[place],
                    )
                } else {
                    (
                        old.index(comptime!(3 * which))[place],
                        old.index(comptime!(3 * which + 1))[place],
                        old.index(comptime!(3 * which + 2))[place],
                    )
                };
                let one = Vector::<f32, N>::new(1.0f32);
                let (beta_1, beta_2) = (Vector::new(factors.beta_1), Vector::new(factors.beta_2));
                let m = m * beta_1 + g * (one - beta_1);
                let v = v * beta_2 + g * g * (one - beta_2);
                let root = Vector::sqrt(v / Vector::new(factors.correction_2)) + Vector::new(factors.epsilon);
                let delta = m / Vector::new(factors.correction_1) / root;
                let moved = x * Vector::new(factors.kept) - delta * Vector::new(factors.rate);
                new.index_mut(comptime!(3 * which))[place] = moved;
                new.index_mut(comptime!(3 * which + 1))[place] = m;
                new.index_mut(comptime!(3 * which + 2))[place] = v;
            }
        }
    }
}

/// A step that is not launched yet.
struct Waiting {
    grad: CubeTensor,
    /// Parameter and moments, before it and after it.
    old: [CubeTensor; 3],
    new: [CubeTensor; 3],
    in_place: bool,
    vector: VectorSize,
    step: AdamWStep,
}

impl Waiting {
    /// Whether one launch can do both.
    fn is_like(&self, other: &Self) -> bool {
        (self.in_place, self.vector, self.step) == (other.in_place, other.vector, other.step)
            && self.grad.device == other.grad.device
    }
}

thread_local! {
    static WAITING: Queue<Waiting> = const { Queue::new(None) };
}

pub(in crate::ops) fn together<R>(run: impl FnOnce() -> R) -> R {
    queue::within(&WAITING, run, launch)
}

fn launch(mut waiting: Vec<Waiting>) {
    while let Some(first) = waiting.pop() {
        let (mut alike, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|it| it.is_like(&first));
        alike.push(first);
        launch_alike(&alike);
        waiting = others;
    }
}

/// Steps that are alike.
fn launch_alike(waiting: &[Waiting]) {
    let Some(Waiting { in_place, vector, step, grad, .. }) = waiting.first() else { return };
    let (in_place, vector, AdamWStep { betas: [beta_1, beta_2], .. }) = (*in_place, *vector, *step);
    let client = grad.client.clone();
    for waiting in waiting.chunks(cube::most_tensors(&client, if in_place { 4 } else { 7 })) {
        let largest = waiting.iter().map(|it| it.grad.shape().num_elements() / vector).max().unwrap_or(0);
        let dim = CubeDim::new(&client, largest);
        let tensors: Vec<&CubeTensor> = waiting.iter().map(|it| &it.grad).collect();
        let (mut grads, mut old, mut new) = (SequenceArg::new(), SequenceArg::new(), SequenceArg::new());
        for it in waiting {
            grads.push(it.grad.clone().into_tensor_arg());
            it.new.iter().for_each(|it| new.push(it.clone().into_tensor_arg()));
            if !in_place {
                it.old.iter().for_each(|it| old.push(it.clone().into_tensor_arg()));
            }
        }
        let factors = FactorsLaunch::new(
            beta_1,
            beta_2,
            1.0 - beta_1.powi(step.time),
            1.0 - beta_2.powi(step.time),
            step.rate,
            step.epsilon,
            1.0 - step.rate * step.decay,
        );
        adamw_kernel::launch(
            &client,
            cube::rows_of_cubes(largest, dim, waiting.len()),
            dim,
            cube::address_type(&tensors),
            vector,
            grads,
            old,
            new,
            factors,
            waiting.len(),
            in_place,
        );
    }
}

impl AdamWOps for CubeBackend {
    fn adamw(
        parameter: CubeTensor,
        grad: CubeTensor,
        first: CubeTensor,
        second: CubeTensor,
        step: AdamWStep,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let grad = into_contiguous(grad);
        let old = [parameter, first, second].map(into_contiguous);
        let in_place = old.iter().all(CubeTensor::can_mut);
        let new = match in_place {
            true => old.clone(),
            false => old.clone().map(|it| cube::empty_contiguous(it.shape(), &it)),
        };
        let outcome = new.clone();
        let count = grad.shape().num_elements();
        if count > 0 {
            let vector = cube::vector_size(&[&grad]);
            let waiting = Waiting { grad, old, new, in_place, vector, step };
            queue::give(&WAITING, waiting, launch);
        }
        let [parameter, first, second] = outcome;
        (parameter, first, second)
    }
}

pub(super) fn fits<const D: usize>(parameter: &Tensor<D>) -> bool {
    cube::fits(parameter) && parameter.dtype() == DType::F32 && !parameter.device().is_autodiff()
}

pub(super) fn step<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    [first, second]: [Tensor<D>; 2],
    step: AdamWStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let [parameter, grad, first, second] = [parameter, grad, first, second].map(Tensor::into_dispatch);
    let (parameter, first, second) = Dispatch::adamw(parameter, grad, first, second, step);
    (Tensor::from_dispatch(parameter), [Tensor::from_dispatch(first), Tensor::from_dispatch(second)])
}
