//! Activation functions on cards: one pass over the numbers, forward and backward.

use std::f32::consts::FRAC_1_SQRT_2;

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::fused::{ActivationOps, Curve};
use crate::ops::cube::{self, Elementwise};

/// What `x` is multiplied by: `f(x) = x · s(x)`.
#[cube]
fn share<N: Size>(x: Vector<f32, N>, #[comptime] curve: Curve) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    match curve {
        Curve::Gelu => {
            let root_half = Vector::new(FRAC_1_SQRT_2);
            Vector::new(0.5f32) * (one + Vector::erf(x * root_half))
        }
        Curve::GeluTanh => sigmoid::<N>(twice_inner::<N>(x)),
        Curve::QuickGelu => sigmoid::<N>(x * Vector::new(1.702f32)),
        Curve::Silu => sigmoid::<N>(x),
    }
}

/// The slope of [`share`], of which `s` is the value.
#[cube]
fn slope_of_share<N: Size>(x: Vector<f32, N>, s: Vector<f32, N>, #[comptime] curve: Curve) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    match curve {
        Curve::Gelu => {
            let density = Vector::exp(x * x * Vector::new(-0.5f32));
            density * Vector::new(0.398_942_3f32)
        }
        Curve::GeluTanh => {
            let inner = one + Vector::new(0.134_145f32) * x * x;
            s * (one - s) * Vector::new(1.595_769f32) * inner
        }
        Curve::QuickGelu => s * (one - s) * Vector::new(1.702f32),
        Curve::Silu => s * (one - s),
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    one / (one + Vector::exp(-x))
}

/// ½ (1 + tanh u) is σ(2u), which keeps its relative accuracy in the tail.
#[cube]
fn twice_inner<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.595_769f32) * (x + Vector::new(0.044_715f32) * x * x * x)
}

#[cube(launch, address_type = "dynamic")]
fn curve_kernel<F: Float, N: Size>(
    input: LinearView<'_, Vector<F, N>>,
    mut output: LinearViewMut<'_, Vector<F, N>>,
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if !output.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(input.read(ABSOLUTE_POS));
    output.write(ABSOLUTE_POS, Vector::cast_from(x * share::<N>(x, curve)));
}

#[cube(launch, address_type = "dynamic")]
fn curve_grad_kernel<F: Float, N: Size>(
    grad: LinearView<'_, Vector<F, N>>,
    input: LinearView<'_, Vector<F, N>>,
    mut output: LinearViewMut<'_, Vector<F, N>>,
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if !output.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(input.read(ABSOLUTE_POS));
    let g = Vector::<f32, N>::cast_from(grad.read(ABSOLUTE_POS));
    let s = share::<N>(x, curve);
    output.write(ABSOLUTE_POS, Vector::cast_from(g * (s + x * slope_of_share::<N>(x, s, curve))));
}

#[cube(launch, address_type = "dynamic")]
fn gate_kernel<F: Float, N: Size>(
    gate: LinearView<'_, Vector<F, N>>,
    up: LinearView<'_, Vector<F, N>>,
    mut output: LinearViewMut<'_, Vector<F, N>>,
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if !output.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(gate.read(ABSOLUTE_POS));
    let up = Vector::<f32, N>::cast_from(up.read(ABSOLUTE_POS));
    output.write(ABSOLUTE_POS, Vector::cast_from(x * share::<N>(x, curve) * up));
}

#[cube(launch, address_type = "dynamic")]
fn gate_grad_kernel<F: Float, N: Size>(
    grad: LinearView<'_, Vector<F, N>>,
    gate: LinearView<'_, Vector<F, N>>,
    up: LinearView<'_, Vector<F, N>>,
    mut to_gate: LinearViewMut<'_, Vector<F, N>>,
    mut to_up: LinearViewMut<'_, Vector<F, N>>,
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if !to_gate.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(grad.read(ABSOLUTE_POS));
    let x = Vector::<f32, N>::cast_from(gate.read(ABSOLUTE_POS));
    let up = Vector::<f32, N>::cast_from(up.read(ABSOLUTE_POS));
    let s = share::<N>(x, curve);
    to_gate.write(ABSOLUTE_POS, Vector::cast_from(g * up * (s + x * slope_of_share::<N>(x, s, curve))));
    to_up.write(ABSOLUTE_POS, Vector::cast_from(g * x * s));
}

impl ActivationOps for CubeBackend {
    fn curve(input: CubeTensor, curve: Curve) -> CubeTensor {
        let output = cube::empty(input.shape(), &input);
        if let Some(it) = Elementwise::new(&[&output, &input]) {
            let element = cube::element(&output);
            let (client, input) = (output.client.clone(), input.into_linear_view_like(&output));
            let view = output.clone().into_linear_view();
            curve_kernel::launch(&client, it.count, it.dim, it.address, it.vector, input, view, curve, element);
        }
        output
    }

    fn curve_grad(grad: CubeTensor, input: CubeTensor, curve: Curve) -> CubeTensor {
        let output = cube::empty(input.shape(), &input);
        if let Some(it) = Elementwise::new(&[&output, &grad, &input]) {
            let element = cube::element(&output);
            let (client, view) = (output.client.clone(), output.clone().into_linear_view());
            let [grad, input] = [grad, input].map(|it| it.into_linear_view_like(&output));
            curve_grad_kernel::launch(
                &client, it.count, it.dim, it.address, it.vector, grad, input, view, curve, element,
            );
        }
        output
    }

    fn gated_curve(gate: CubeTensor, up: CubeTensor, curve: Curve) -> CubeTensor {
        let output = cube::empty(up.shape(), &up);
        if let Some(it) = Elementwise::new(&[&output, &gate, &up]) {
            let element = cube::element(&output);
            let (client, view) = (output.client.clone(), output.clone().into_linear_view());
            let [gate, up] = [gate, up].map(|it| it.into_linear_view_like(&output));
            gate_kernel::launch(&client, it.count, it.dim, it.address, it.vector, gate, up, view, curve, element);
        }
        output
    }

    fn gated_curve_grads(grad: CubeTensor, gate: CubeTensor, up: CubeTensor, curve: Curve) -> (CubeTensor, CubeTensor) {
        let (to_gate, to_up) = (cube::empty(gate.shape(), &gate), cube::empty(up.shape(), &up));
        if let Some(it) = Elementwise::new(&[&to_gate, &to_up, &grad, &gate, &up]) {
            let element = cube::element(&to_gate);
            let client = to_gate.client.clone();
            let [grad, gate, up] = [grad, gate, up].map(|it| it.into_linear_view_like(&to_gate));
            let views = [&to_gate, &to_up].map(|it| it.clone().into_linear_view());
            let [gate_view, up_view] = views;
            gate_grad_kernel::launch(
                &client, it.count, it.dim, it.address, it.vector, grad, gate, up, gate_view, up_view, curve, element,
            );
        }
        (to_gate, to_up)
    }
}
