//! What holds for all operations: views, empty tensors, frozen inputs, NaN, half precision.

use burn::tensor::{DType, Distribution, Int, Tensor};

use super::{check, device, halves, is_on_flex, numbers, values};
use crate::ops::{self, AttentionMask, Pairing, RotaryTable, Visibility, plain};

#[test]
fn views_are_read_as_they_are_seen() {
    let x: Tensor<3> = numbers([5, 6, 40], 4);
    let view = |x: Tensor<3>| x.swap_dims(0, 2).slice([3..37, 1..5, 0..5]);
    check("gelu of a view", [x.clone()], |[x]| ops::gelu(view(x)), |[x]| plain::gelu(view(x)));
    let weight: Tensor<1> = numbers([5], 5);
    check(
        "rms_norm of a view",
        [x.clone()],
        |[x]| ops::rms_norm(view(x), Tensor::from_inner(weight.clone()), 1e-6),
        |[x]| plain::rms_norm(view(x), Tensor::from_inner(weight.clone()), 1e-6),
    );
    check(
        "silu_mul of views",
        [x.clone(), x.mul_scalar(0.5)],
        |[a, b]| ops::silu_mul(view(a), view(b)),
        |[a, b]| plain::silu_mul(view(a), view(b)),
    );
}

#[test]
fn empty_tensors_pass() {
    let empty = || Tensor::<2>::zeros([0, 8], &device());
    assert_eq!(ops::gelu(empty()).dims(), [0, 8]);
    assert_eq!(ops::silu_mul(empty(), empty()).dims(), [0, 8]);
    let ones = || Tensor::<1>::ones([8], &device());
    assert_eq!(ops::layer_norm(empty(), ones(), ones(), 1e-5).dims(), [0, 8]);
    assert_eq!(ops::rms_norm(empty(), ones(), 1e-5).dims(), [0, 8]);
}

#[test]
fn frozen_inputs_get_no_gradient_and_others_do() {
    let auto = device().autodiff();
    let x = Tensor::<2>::random([3, 8], Distribution::Default, &auto).require_grad();
    let weight = Tensor::<1>::ones([8], &auto);
    let bias = Tensor::<1>::ones([8], &auto).require_grad();
    let grads = ops::layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5).sum().backward();
    assert!(weight.grad(&grads).is_none());
    assert_eq!(values(bias.grad(&grads).expect("a gradient")), [3.0; 8]);
    assert!(x.grad(&grads).is_some());
}

#[test]
fn nan_is_not_hidden() {
    let x = Tensor::<1>::from_floats([1.0, f32::NAN, 2.0], &device());
    for y in [ops::gelu(x.clone()), ops::gelu_tanh(x.clone()), ops::silu(x.clone())] {
        let y = values(y);
        assert!(!y[0].is_nan() && y[1].is_nan() && !y[2].is_nan());
    }
}

/// What there is on cards: numbers in half precision are rounded where they are stored, and nowhere else.
#[test]
fn operations_in_half_precision_are_those_of_single_precision_rounded() {
    // On the CPU only weights are in half precision.
    for dtype in if is_on_flex() { Vec::new() } else { halves() } {
        let unit = if dtype == DType::F16 { 1e-3 } else { 8e-3 };
        let half = |shape: [usize; 4], salt: usize| numbers(shape, salt).cast(dtype);
        let near = |name: &str, ours: Tensor<4>, single: Tensor<4>| {
            assert_eq!(ours.dtype(), dtype, "{name}");
            let (ours, single) = (values(ours.cast(DType::F32)), values(single));
            let largest = single.iter().fold(0.5f32, |largest, x| largest.max(x.abs()));
            for (a, b) in ours.iter().zip(&single) {
                // Attention stores scores and weights, too.
                let stored = if name.ends_with("attention") { 4.0 } else { 1.0 };
                assert!((a - b).abs() <= stored * unit * largest, "{name} in {dtype:?}: {a} is not {b}");
            }
        };
        type Operation = (&'static str, fn([Tensor<4>; 3]) -> Tensor<4>);
        let operations: [Operation; 7] = [
            ("gelu", |[x, ..]| ops::gelu(x)),
            ("silu", |[x, ..]| ops::silu(x)),
            ("silu_mul", |[x, y, _]| ops::silu_mul(x, y)),
            ("rms_norm", |[x, w, _]| {
                let width = x.dims()[3];
                ops::rms_norm(x, w.slice([0..1, 0..1, 0..1, 0..width]).reshape([width]), 1e-6)
            }),
            ("layer_norm", |[x, w, b]| {
                let width = x.dims()[3];
                let [w, b] = [w, b].map(|it| it.slice([0..1, 0..1, 0..1, 0..width]).reshape([width]));
                ops::layer_norm(x, w, b, 1e-5)
            }),
            ("rotate", |[x, ..]| {
                let positions = Tensor::<1, Int>::arange(0..x.dims()[2] as i64, &device()).reshape([1, x.dims()[2]]);
                let frequencies: Vec<f32> = (0..x.dims()[3] / 2).map(|at| 0.8f32.powi(at as i32)).collect();
                RotaryTable::new(positions, &frequencies, 1.0, Pairing::HalfSplit).rotate(x)
            }),
            ("attention", |[q, k, v]| {
                let seen = Visibility::around(0..q.dims()[2], None, 0, &device());
                ops::attention(q, k, v, Some(&AttentionMask::new(seen, false)), 0.4, 0.0)
            }),
        ];
        for shape in [[2, 3, 17, 34], [1, 2, 70, 64]] {
            for (name, operation) in operations {
                let inputs = [half(shape, 1), half(shape, 2), half(shape, 3)];
                let single = inputs.clone().map(|it| it.cast(DType::F32));
                near(name, operation(inputs.clone()), operation(single.clone()));
                let slopes = |inputs: [Tensor<4>; 3]| {
                    let tracked = inputs.map(|it| Tensor::from_inner(it).require_grad());
                    let grads = operation(tracked.clone()).cast(DType::F32).sum().backward();
                    tracked.map(|it| it.grad(&grads))
                };
                for (ours, single) in slopes(inputs).into_iter().zip(slopes(single)) {
                    if let (Some(ours), Some(single)) = (ours, single) {
                        near(&format!("gradient of {name}"), ours, single);
                    }
                }
            }
        }
    }
}
