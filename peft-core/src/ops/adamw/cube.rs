//! A step of AdamW on cards.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::settings::AdamWStep;
use crate::ops::cube::{self, Elementwise};

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

#[cube(launch, address_type = "dynamic")]
fn adamw_kernel<N: Size>(
    parameter: LinearView<'_, Vector<f32, N>>,
    grad: LinearView<'_, Vector<f32, N>>,
    first: LinearView<'_, Vector<f32, N>>,
    second: LinearView<'_, Vector<f32, N>>,
    mut new_parameter: LinearViewMut<'_, Vector<f32, N>>,
    mut new_first: LinearViewMut<'_, Vector<f32, N>>,
    mut new_second: LinearViewMut<'_, Vector<f32, N>>,
    factors: Factors,
) {
    if !new_parameter.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let one = Vector::<f32, N>::new(1.0f32);
    let (beta_1, beta_2) = (Vector::new(factors.beta_1), Vector::new(factors.beta_2));
    let g = grad.read(ABSOLUTE_POS);
    let m = first.read(ABSOLUTE_POS) * beta_1 + g * (one - beta_1);
    let v = second.read(ABSOLUTE_POS) * beta_2 + g * g * (one - beta_2);
    let root = Vector::sqrt(v / Vector::new(factors.correction_2)) + Vector::new(factors.epsilon);
    let delta = m / Vector::new(factors.correction_1) / root;
    let kept = parameter.read(ABSOLUTE_POS) * Vector::new(factors.kept);
    new_parameter.write(ABSOLUTE_POS, kept - delta * Vector::new(factors.rate));
    new_first.write(ABSOLUTE_POS, m);
    new_second.write(ABSOLUTE_POS, v);
}

impl AdamWOps for CubeBackend {
    fn adamw(
        parameter: CubeTensor,
        grad: CubeTensor,
        first: CubeTensor,
        second: CubeTensor,
        step: AdamWStep,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [new, new_first, new_second] = [(); 3].map(|()| cube::empty(parameter.shape(), &parameter));
        if let Some(it) = Elementwise::new(&[&new, &new_first, &new_second, &parameter, &grad, &first, &second]) {
            let client = new.client.clone();
            let [parameter, grad, first, second] =
                [parameter, grad, first, second].map(|it| it.into_linear_view_like(&new));
            let [to, to_first, to_second] = [&new, &new_first, &new_second].map(|it| it.clone().into_linear_view());
            let [beta_1, beta_2] = step.betas;
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
                &client, it.count, it.dim, it.address, it.vector, parameter, grad, first, second, to, to_first,
                to_second, factors,
            );
        }
        (new, new_first, new_second)
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
