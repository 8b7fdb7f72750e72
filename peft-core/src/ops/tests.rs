//! Every fused operation against its plain composition, and against finite differences.

use std::cell::Cell;

use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor, TensorData};

use super::{self as ops, AttentionMask, Convolution, LowRank, Pairing, RotaryTable, Visibility, plain};
use crate::ops::Layout;
use crate::quant::{self, FourBit, QuantFormat, Rounding};

thread_local! {
    static ON_FLEX: Cell<bool> = const { Cell::new(false) };
}

/// The device that operations are tested on: flex, or what `PEFT_TEST_DEVICE` names.
fn device() -> Device {
    let name = std::env::var("PEFT_TEST_DEVICE").unwrap_or_else(|_| "flex".to_owned());
    match name.as_str() {
        _ if ON_FLEX.get() => Device::flex(),
        "flex" => Device::flex(),
        #[cfg(feature = "cube-cpu")]
        "cube-cpu" => Device::cpu(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "tch")]
        "tch" => Device::libtorch(),
        other => panic!("the tests of operations were not built for `{other}`"),
    }
}

/// For what there is on the CPU only: the test runs there, whatever the device of the others.
fn on_flex(test: impl FnOnce()) {
    ON_FLEX.set(true);
    test();
    ON_FLEX.set(false);
}

fn is_on_flex() -> bool {
    device() == Device::flex()
}

/// Numbers between −2 and 2 that depend on nothing but their count and `salt`.
fn numbers<const D: usize>(shape: [usize; D], salt: usize) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count).map(|i| (((i + 1) * 2_654_435_761 + salt * 40_503) % 10_007) as f32 / 2501.75 - 2.0).collect();
    Tensor::from_data(TensorData::new(values, shape), &device())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("f32")
}

fn assert_close(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    // Slopes of attention are small differences of large terms.
    let largest = theirs.iter().fold(0.5f32, |largest, x| largest.max(x.abs()));
    // Drivers may compute exponentials and hyperbolic tangents with fewer bits than a processor's library.
    let relative = if is_on_flex() { 1e-5 } else { 3e-5 };
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= relative * largest, "{name}: {a} is not {b} at {at} (largest {largest})");
    }
}

/// Output and gradients of `sum(f(inputs) · weights)`.
fn differentiate<const D: usize, const N: usize>(
    inputs: &[Tensor<D>; N],
    f: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let tracked = inputs.clone().map(|it| Tensor::from_inner(it).require_grad());
    let output = f(tracked.clone());
    let weights = Tensor::from_inner(numbers(output.dims(), 99));
    let grads = (output.clone() * weights).sum().backward();
    let grads = tracked.iter().map(|it| values(it.grad(&grads).expect("a gradient")));
    let grads = grads.collect();
    (values(output.inner()), grads)
}

/// Holds `fused` against `composed`, tracked and untracked; its gradients.
fn agree<const D: usize, const N: usize>(
    name: &str,
    inputs: &[Tensor<D>; N],
    fused: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    composed: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let (ours, our_grads) = differentiate(inputs, &fused);
    let (theirs, their_grads) = differentiate(inputs, &composed);
    assert_close(name, &ours, &theirs);
    for (ours, theirs) in our_grads.iter().zip(&their_grads) {
        assert_close(&format!("gradient of {name}"), ours, theirs);
    }
    assert_close(&format!("untracked {name}"), &values(fused(inputs.clone())), &theirs);
    our_grads
}

/// As [`agree`], and holds the gradients against differences.
fn check<const D: usize, const N: usize>(
    name: &str,
    inputs: [Tensor<D>; N],
    fused: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    composed: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    let our_grads = agree(name, &inputs, &fused, composed);
    // Central differences at a few coordinates; in single precision they are good to a per cent.
    let weights = |dims| numbers::<D>(dims, 99);
    let objective = |inputs: [Tensor<D>; N]| -> f64 {
        let output = fused(inputs);
        let weights = weights(output.dims());
        values(output).iter().zip(values(weights)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
    };
    for which in 0..N {
        let count = inputs[which].dims().iter().product::<usize>();
        for at in (0..count).step_by((count / 5).max(1)) {
            let moved = |by: f32| {
                let mut data = values(inputs[which].clone());
                data[at] += by;
                let mut inputs = inputs.clone();
                inputs[which] = Tensor::from_data(TensorData::new(data, inputs[which].dims()), &device());
                objective(inputs)
            };
            let step = 1e-2;
            let difference = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let gradient = f64::from(our_grads[which][at]);
            assert!(
                (difference - gradient).abs() <= 1e-2 * gradient.abs().max(0.3),
                "{name}: slope {difference}, gradient {gradient} of input {which} at {at}"
            );
        }
    }
}

/// Shapes that are ragged for vectors and for tasks, among them one of several tasks.
const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [2, 3, 17], [1, 7, 64], [3, 1, 33], [2, 40, 301]];

#[test]
fn activations_are_their_compositions() {
    for shape in SHAPES {
        let x = || [numbers(shape, 1).mul_scalar(3.0)];
        check("gelu", x(), |[x]| ops::gelu(x), |[x]| plain::gelu(x));
        check("gelu_tanh", x(), |[x]| ops::gelu_tanh(x), |[x]| plain::gelu_tanh(x));
        check("quick_gelu", x(), |[x]| ops::quick_gelu(x), |[x]| plain::quick_gelu(x));
        check("silu", x(), |[x]| ops::silu(x), |[x]| plain::silu(x));
        let pair = [numbers(shape, 1), numbers(shape, 2)];
        check("silu_mul", pair, |[a, b]| ops::silu_mul(a, b), |[a, b]| plain::silu_mul(a, b));
    }
}

#[test]
fn norms_are_their_compositions() {
    for shape in SHAPES.into_iter().filter(|it| it[2] > 1) {
        let flat = |it: Tensor<3>| it.slice([0..1, 0..1, 0..shape[2]]).reshape([shape[2]]);
        let inputs = || [numbers(shape, 1), numbers([1, 1, shape[2]], 2), numbers([1, 1, shape[2]], 3)];
        check(
            "layer_norm",
            inputs(),
            |[x, w, b]| ops::layer_norm(x, flat(w), flat(b), 1e-5),
            |[x, w, b]| plain::layer_norm(x, flat(w), flat(b), 1e-5),
        );
        let [x, w, _] = inputs();
        check("rms_norm", [x, w], |[x, w]| ops::rms_norm(x, flat(w), 1e-6), |[x, w]| plain::rms_norm(x, flat(w), 1e-6));
    }
}

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
    for dtype in [DType::F16, DType::BF16] {
        // On the CPU only weights are in half precision.
        if is_on_flex() || !device().supports_dtype(dtype) {
            continue;
        }
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

#[test]
fn sums_of_squares_are_those_of_all_numbers() {
    let mut sums = Vec::new();
    let parts: [Tensor<2>; 3] = [numbers([3, 17], 1), numbers([40, 64], 2), numbers([1, 1], 3)];
    let wanted: f64 = parts.iter().flat_map(|it| values(it.clone())).map(|x| f64::from(x) * f64::from(x)).sum();
    // A view is no contiguous tensor.
    let [a, b, c] = parts;
    for part in [a, b.transpose(), c] {
        ops::squares_onto(&mut sums, part);
    }
    let sum: f64 = sums.into_iter().flat_map(values).map(f64::from).sum();
    assert!((sum - wanted).abs() < 1e-5 * wanted, "{sum} is not {wanted}");
}

/// The kernel of cards against Burn's optimizer.
#[test]
fn a_step_of_adamw_is_that_of_burn() {
    use burn::optim::{AdamWConfig, Optimizer};
    for shape in [[1, 1], [3, 17], [40, 64]] {
        let mut parameter: Tensor<2> = numbers(shape, 1);
        if !ops::has_adamw_step(&parameter) {
            assert!(is_on_flex() || std::env::var("PEFT_TEST_DEVICE").as_deref() == Ok("tch"));
            continue;
        }
        let burns = AdamWConfig::new().with_beta_2(0.99).with_weight_decay(0.1).build();
        let (mut theirs, mut state) = (parameter.clone(), None);
        let mut moments = [(); 2].map(|()| parameter.zeros_like());
        for time in 1..5 {
            let grad: Tensor<2> = numbers(shape, 10 + time as usize);
            let betas = [0.9, 0.99];
            let step = ops::AdamWStep { rate: 0.01, betas, epsilon: 1e-5, decay: 0.1, time };
            (parameter, moments) = ops::adamw_step(parameter, grad.clone(), moments, step);
            (theirs, state) = burns.step(0.01, theirs, grad, state);
            assert_close("a step of AdamW", &values(parameter.clone()), &values(theirs.clone()));
        }
        let state = state.expect("moments");
        let [first, second] = moments;
        assert_close("the first moment", &values(first), &values(state.momentum.moment_1));
        assert_close("the second moment", &values(second), &values(state.momentum.moment_2));
    }
}

#[test]
fn rotations_are_their_compositions() {
    for pairing in [Pairing::HalfSplit, Pairing::Neighbours] {
        for (shape, batches, half) in [([2, 3, 5, 8], 2, 4), ([1, 2, 7, 10], 1, 3), ([3, 4, 40, 66], 1, 33)] {
            let positions = Tensor::<1, Int>::arange(3..(3 + batches * shape[2]) as i64, &device());
            let frequencies: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i)).collect();
            let positions = positions.reshape([batches, shape[2]]);
            let table = RotaryTable::new(positions, &frequencies, 1.3, pairing);
            let x = || [numbers(shape, 6)];
            check("rotate", x(), |[x]| table.rotate(x), |[x]| table.rotate_plain(x));
            // As attention calls it: heads are the second axis by a view.
            let [x] = x();
            let x = [x.swap_dims(1, 2).reshape([shape[0], shape[2], shape[1], shape[3]])];
            check(
                "rotate a view",
                x,
                |[x]| table.rotate(x.swap_dims(1, 2)),
                |[x]| table.rotate_plain(x.swap_dims(1, 2)),
            );
        }
    }
}

#[test]
fn linear_layers_are_their_compositions() {
    // Thin ones, ragged ones, and more than one run of the inner dimension and of rows.
    for (rows, d_in, d_out) in [(3, 5, 7), (33, 34, 35), (40, 48, 96), (150, 800, 49), (300, 33, 130)] {
        let inputs = [numbers([rows, d_in], 1), numbers([d_out, d_in], 2)].map(|it| it.mul_scalar(0.1));
        for layout in [Layout::OutIn, Layout::InOut] {
            let laid = |w: Tensor<2>| if layout == Layout::OutIn { w } else { w.transpose() };
            check(
                "linear",
                inputs.clone(),
                |[x, w]| ops::linear(x, laid(w), None, layout),
                |[x, w]| plain::linear(x, w.transpose(), None),
            );
        }
        // A row that is the same everywhere has a gradient of its own.
        let bias = numbers([1, d_out], 3);
        let [x, w] = inputs;
        check(
            "linear with a bias",
            [x, w, bias],
            |[x, w, b]| ops::linear(x, w, Some(b.reshape([d_out])), Layout::OutIn),
            |[x, w, b]| plain::linear(x, w.transpose(), Some(b.reshape([d_out]))),
        );
    }
    // A frozen weight, and an input that is a view.
    let x = numbers([70, 60], 1).autodiff().require_grad();
    let w = numbers([40, 50], 2);
    let view = x.clone().narrow(1, 5, 40).narrow(0, 10, 50);
    let grads = ops::linear(view, Tensor::from_inner(w.clone()), None, Layout::InOut).sum().backward();
    let slopes = values(w.clone().sum_dim(1));
    for (at, slope) in values(x.grad(&grads).expect("a gradient")).into_iter().enumerate() {
        let (row, column) = (at / 60, at % 60);
        let seen = (10..60).contains(&row) && (5..45).contains(&column);
        let wanted = if seen { slopes[column - 5] } else { 0.0 };
        assert!((slope - wanted).abs() < 1e-4, "{slope} is not {wanted} at {row}, {column}");
    }
    for [rows, d_in, d_out] in [[0, 40, 50], [40, 0, 50], [40, 50, 0]] {
        let (x, w, b) = (numbers([rows, d_in], 1), numbers([d_in, d_out], 2), numbers([d_out], 3));
        let y = ops::linear(x, w, Some(b.clone()), Layout::InOut);
        assert_eq!(y.dims(), [rows, d_out]);
        assert_eq!(values(y), values(b).repeat(rows));
    }
}

/// Kernels that overlap, leave gaps, reach beyond the picture and go by groups; few places and many, one channel and more
/// than a tile has rows.
#[test]
fn convolutions_are_their_compositions() {
    let how = |stride, padding, groups| Convolution { stride, padding, groups };
    let cases = [
        // batch, in, out, picture, kernel
        ([2, 3, 5], [7, 6], [3, 3], how([1, 1], [1, 1], 1)),
        ([1, 4, 20], [9, 33], [3, 3], how([1, 1], [1, 1], 1)),
        ([2, 2, 9], [8, 5], [3, 2], how([2, 1], [0, 1], 1)),
        ([1, 3, 4], [11, 12], [7, 7], how([4, 4], [3, 3], 1)),
        ([2, 5, 3], [4, 6], [1, 1], how([1, 1], [0, 0], 1)),
        ([1, 5, 3], [5, 6], [1, 1], how([2, 2], [0, 0], 1)),
        ([1, 2, 3], [2, 3], [2, 3], how([1, 1], [3, 4], 1)),
        ([2, 6, 6], [5, 7], [3, 3], how([1, 1], [1, 1], 6)),
        ([2, 6, 4], [6, 5], [2, 3], how([2, 3], [1, 0], 2)),
        ([1, 6, 12], [6, 5], [3, 3], how([1, 1], [2, 0], 3)),
        ([2, 3, 7], [1, 40], [1, 3], how([1, 2], [0, 1], 1)),
        ([1, 3, 2], [3, 4], [1, 1], how([1, 1], [1, 2], 1)),
        // Fewer places than channels of the output: the gradient is added up.
        ([1, 3, 40], [3, 4], [3, 3], how([1, 1], [1, 1], 1)),
        ([1, 180, 8], [10, 12], [3, 3], how([1, 1], [1, 1], 1)),
    ];
    for ([batch, d_input, d_output], [height, width], [rows, columns], how) in cases {
        let name = format!("convolution of {d_input}x{height}x{width} by {d_output}x{rows}x{columns}, {how:?}");
        let bias = numbers([1, 1, 1, d_output], 3);
        let inputs = [
            numbers([batch, d_input, height, width], 1),
            numbers([d_output, d_input / how.groups, rows, columns], 2),
            bias,
        ];
        let line = move |bias: Tensor<4>| bias.reshape([d_output]);
        check(
            &name,
            inputs.clone(),
            |[x, w, b]| ops::conv2d(x, w, Some(line(b)), how),
            |[x, w, b]| plain::conv2d(x, w, Some(line(b)), how),
        );
        let [x, w, _] = inputs;
        agree(
            &format!("{name} without a bias"),
            &[x, w],
            |[x, w]| ops::conv2d(x, w, None, how),
            |[x, w]| plain::conv2d(x, w, None, how),
        );
    }
}

/// Frozen kernels get no gradient, and the picture's is the same.
#[test]
fn frozen_kernels_leave_the_gradient_of_the_picture_alone() {
    let how = Convolution { stride: [1, 1], padding: [1, 1], groups: 1 };
    let (x, w) = (numbers([1, 3, 5, 6], 1), numbers([4, 3, 3, 3], 2));
    let gradient = |w: Tensor<4>| {
        let x = Tensor::from_inner(x.clone()).require_grad();
        let grads = ops::conv2d(x.clone(), w.clone(), None, how).square().sum().backward();
        (values(x.grad(&grads).expect("a gradient")), w.grad(&grads).is_some())
    };
    let (frozen, trained) = (gradient(Tensor::from_inner(w.clone())), gradient(Tensor::from_inner(w).require_grad()));
    assert_eq!((&frozen.0, frozen.1), (&trained.0, false));
    assert!(trained.1);
}

#[test]
fn the_mask_of_some_queries_is_part_of_the_mask() {
    let [q, k, v] = [1, 2, 3].map(|salt| numbers([2, 2, 6, 4], salt));
    let bias = numbers([1, 2, 1, 6], 4);
    let full = AttentionMask::new(Visibility::dense(mask(2, 6, 6, 1)), true).with_bias(bias);
    let all = ops::attention(q.clone(), k.clone(), v.clone(), Some(&full), 0.5, 0.0);
    let part = ops::attention(q.narrow(2, 2, 3), k, v, Some(&full.of_queries(2..5)), 0.5, 0.0);
    assert_close("queries", &values(part), &values(all.narrow(2, 2, 3)));
}

#[test]
fn low_rank_updates_are_their_compositions() {
    let update = |a, b| LowRank { a, b, scale: 1.7, dropout: 0.0 };
    // Thin and wide ranks, few rows, ragged columns, and more terms than a run has.
    for (rows, d_in, d_out, rank) in [
        (3, 5, 7, 2),
        (1, 8, 3, 4),
        (40, 65, 130, 9),
        (33, 16, 700, 1),
        (40, 48, 50, 33),
        (70, 1590, 49, 20),
        (2, 40, 90, 3),
    ] {
        let inputs =
            [numbers([rows, d_out], 1), numbers([rows, d_in], 2), numbers([rank, d_in], 3), numbers([d_out, rank], 4)];
        let shrink = 0.5 / (d_in as f64 / 50.0).sqrt().max(1.0);
        let inputs = inputs.map(|it| it.mul_scalar(shrink));
        check(
            "low_rank_update",
            inputs.clone(),
            |[y, x, a, b]| ops::low_rank_update(y, x, update(a, b)),
            |[y, x, a, b]| plain::low_rank_update(y, x, a, b, 1.7),
        );
        let [_, x, a, b] = inputs;
        let weight = numbers([d_out, d_in], 5).mul_scalar(shrink);
        check(
            "linear_low_rank",
            [x.clone(), weight.clone(), a.clone(), b.clone()],
            |[x, w, a, b]| ops::linear_low_rank(x, w, None, Layout::OutIn, update(a, b)),
            |[x, w, a, b]| plain::low_rank_update(plain::linear(x.clone(), w.transpose(), None), x, a, b, 1.7),
        );
        check(
            "linear_low_rank with a bias",
            [x, weight.transpose(), a, b, numbers([1, d_out], 6)],
            |[x, w, a, b, bias]| ops::linear_low_rank(x, w, Some(bias.reshape([d_out])), Layout::InOut, update(a, b)),
            |[x, w, a, b, bias]| {
                let output = plain::linear(x.clone(), w, Some(bias.reshape([d_out])));
                plain::low_rank_update(output, x, a, b, 1.7)
            },
        );
    }
    let empty = |shape| Tensor::<2>::zeros(shape, &device());
    let y = ops::low_rank_update(empty([0, 3]), empty([0, 5]), update(empty([2, 5]), empty([3, 2])));
    assert_eq!(y.dims(), [0, 3]);
}

#[test]
fn parts_are_views_and_their_gradients_meet_in_one_tensor() {
    // All parts, some of them, one twice, and the whole beside its parts.
    fn mix<const N: usize>(parts: [Tensor<3>; N], whole: Tensor<3>, which: usize) -> Tensor<3> {
        let [a, b] = [0, N - 1].map(|at| parts[at].clone());
        match which {
            0 => Tensor::cat(parts.into_iter().rev().map(|it| it * 2.0).collect(), 2),
            1 => b.clone() * b,
            2 => Tensor::cat(vec![a.clone().sin(), whole * 3.0, a], 2),
            _ => a.swap_dims(0, 1),
        }
    }
    for which in 0..4 {
        let inputs = || [numbers([3, 5, 12], 1)];
        check(
            "split",
            inputs(),
            |[x]| mix(ops::split(x.clone(), [5, 3, 4]), x, which),
            |[x]| mix(plain::split(x.clone(), [5, 3, 4]), x, which),
        );
        // Not a leaf, and large enough for several tasks.
        check(
            "split of a product",
            [numbers([4, 70, 120], 1)],
            |[x]| mix(ops::split(x.clone() * 0.5, [40, 40, 40]), x, which),
            |[x]| mix(plain::split(x.clone() * 0.5, [40, 40, 40]), x, which),
        );
    }
    let [a, b] = ops::split(Tensor::<2>::zeros([0, 5], &device()), [2, 3]);
    assert_eq!((a.dims(), b.dims()), ([0, 2], [0, 3]));
}

#[test]
fn a_frozen_weight_below_an_update_gets_no_gradient() {
    let auto = |tensor: Tensor<2>| Tensor::from_inner(tensor);
    let x = auto(numbers([50, 40], 1)).require_grad();
    let w = auto(numbers([60, 40], 2));
    let [a, b] = [numbers([3, 40], 3), numbers([60, 3], 4)].map(|it| auto(it).require_grad());
    let update = LowRank { a: a.clone(), b: b.clone(), scale: 2.0, dropout: 0.0 };
    let grads = ops::linear_low_rank(x.clone(), w.clone(), None, Layout::OutIn, update).sum().backward();
    assert!(w.grad(&grads).is_none());
    assert!([x, a, b].iter().all(|it| it.grad(&grads).is_some()));
}

/// One test, since the generator of the device is shared.
#[test]
fn dropout_is_a_mask_that_the_backward_pass_remembers() {
    let device = device();
    let ones = || Tensor::<2>::ones([300, 200], &device);
    let drawn: Vec<Vec<f32>> = (0..2).map(|_| values(ops::dropout(ones(), 0.1))).collect();
    for mask in &drawn {
        assert!(mask.iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.9).abs() < 1e-6));
        let dropped = mask.iter().filter(|x| **x == 0.0).count() as f64 / mask.len() as f64;
        // Four standard deviations.
        assert!((dropped - 0.1).abs() < 0.005, "{dropped}");
        // Neighbours are independent: a pair is dropped in one case of a hundred.
        for distance in [1, 2, 16, 200] {
            let pairs = mask.iter().zip(&mask[distance..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
            let share = pairs as f64 / (mask.len() - distance) as f64;
            assert!((share - 0.01).abs() < 0.002, "{share} at {distance}");
        }
    }
    assert_ne!(drawn[0], drawn[1]);

    let x = ones().autodiff().require_grad();
    let y = ops::dropout(x.clone(), 0.4);
    let grads = y.clone().sum().backward();
    assert_eq!(values(x.grad(&grads).expect("a gradient")), values(y.inner()));

    // With dropout before the product: of ones times ones, the output counts what was kept.
    let [y, x, a, b] =
        [[4, 3], [4, 50], [1, 50], [3, 1]].map(|shape| Tensor::<2>::ones(shape, &device).autodiff().require_grad());
    let update = |a, b| LowRank { a, b, scale: 1.0, dropout: 0.5 };
    let output = ops::low_rank_update(y.clone(), x.clone(), update(a.clone(), b.clone()));
    let grads = output.clone().sum().backward();
    let kept = values(x.grad(&grads).expect("a gradient"));
    let counted: Vec<f32> = kept.chunks(50).map(|row| row.iter().sum::<f32>() / 3.0).collect();
    for (row, kept) in values(output.inner()).chunks(3).zip(counted) {
        assert!(kept > 0.0 && row.iter().all(|x| (x - 1.0 - kept).abs() < 1e-4));
    }
    let by_column = values(a.grad(&grads).expect("a gradient"));
    for (column, gradient) in by_column.into_iter().enumerate() {
        let sum: f32 = kept.iter().skip(column).step_by(50).sum();
        assert!((gradient - sum).abs() < 1e-4);
    }

    // The same below a layer whose weight counts every input: it is not dropped, and its gradient is not either.
    let weight = Tensor::<2>::ones([3, 50], &device).autodiff();
    let output = ops::linear_low_rank(x.clone(), weight, None, Layout::OutIn, update(a, b));
    let grads = output.clone().sum().backward();
    let slopes = values(x.grad(&grads).expect("a gradient"));
    assert!(slopes.iter().all(|it| (it - 3.0).abs() < 1e-4 || (it - 9.0).abs() < 1e-4));
    for (row, slopes) in values(output.inner()).chunks(3).zip(slopes.chunks(50)) {
        let kept: f32 = slopes.iter().map(|it| (it - 3.0) / 3.0).sum();
        assert!(kept > 0.0 && row.iter().all(|x| (x - 50.0 - kept).abs() < 1e-3));
    }
}

/// Hides what comes after the query, some keys in the middle, and everything from the queries before `blind`.
fn mask(batch: usize, queries: usize, keys: usize, blind: usize) -> Tensor<4, Bool> {
    let hidden = (0..batch * queries * keys).map(|at| {
        let (row, query, key) = (at / (queries * keys), at / keys % queries, at % keys);
        key + queries > query + keys || query < blind || (key == 2 && row == 1 && query > 3)
    });
    Tensor::from_data(TensorData::new(hidden.collect::<Vec<_>>(), [batch, 1, queries, keys]), &device())
}

#[test]
fn attention_is_its_composition() {
    // batch, heads, key heads, queries, keys, d_head
    for (batch, heads, kv_heads, queries, keys, d_head) in [
        (1, 1, 1, 1, 1, 1),
        (2, 4, 2, 5, 7, 3),
        (2, 3, 3, 70, 70, 8),
        (1, 6, 2, 130, 150, 5),
        (3, 2, 1, 1, 9, 16),
        (2, 4, 2, 66, 77, 34),
    ] {
        let inputs = || {
            [
                numbers([batch, heads, queries, d_head], 1),
                numbers([batch, kv_heads, keys, d_head], 2),
                numbers([batch, kv_heads, keys, d_head], 3),
            ]
        };
        let causal = |blind| Visibility::dense(mask(batch, queries, keys, blind));
        let masks = [
            None,
            Some(AttentionMask::new(causal(0), false)),
            Some(AttentionMask::new(causal(queries.min(3)), true)),
            Some(AttentionMask::new(causal(queries.min(3)), false)),
            Some(AttentionMask::new(Visibility::dense(mask(1, queries, keys, 0)), true)),
            Some(AttentionMask::added(causal(queries.min(3)))),
            Some(AttentionMask::added_twice(Visibility::dense(mask(1, queries, keys, 0)), causal(queries.min(3)))),
        ];
        for (at, mask) in masks.iter().enumerate() {
            let name = format!("attention with mask {at} of {keys} keys");
            let fused = |[q, k, v]: [Tensor<4>; 3]| ops::attention(q, k, v, mask.as_ref(), 0.6, 0.0);
            let composed = |[q, k, v]: [Tensor<4>; 3]| ops::attention_plain(q, k, v, mask.as_ref(), 0.6, None, 0.0);
            // What is added to a score of a blind query drowns it, and its gradient goes through all the same.
            if at < 5 {
                check(&name, inputs(), fused, composed);
            } else {
                agree(&name, &inputs(), fused, composed);
            }
        }
        for shape in [[1, heads, queries, keys], [batch, heads, 1, keys], [batch, 1, queries, keys], [1, 1, 1, keys]] {
            let [q, k, v] = inputs();
            let masks = [AttentionMask::new(causal(1), true), AttentionMask::added(causal(1))];
            for (at, mask) in masks.into_iter().enumerate() {
                let biased = |bias| mask.clone().with_bias(bias);
                for cap in [None, Some(1.5)] {
                    let inputs = [q.clone(), k.clone(), v.clone(), numbers(shape, 4)];
                    let fused = |[q, k, v, bias]: [Tensor<4>; 4]| match cap {
                        // Bent first, biased then.
                        Some(cap) => ops::attention_capped(q, k, v, Some(&biased(bias)), 0.6, cap, 0.0),
                        None => ops::attention(q, k, v, Some(&biased(bias)), 0.6, 0.0),
                    };
                    let composed = |[q, k, v, bias]: [Tensor<4>; 4]| {
                        ops::attention_plain(q, k, v, Some(&biased(bias)), 0.6, cap, 0.0)
                    };
                    let name = format!("attention with a bias and a cap {cap:?}");
                    if at == 0 {
                        check(&name, inputs, fused, composed);
                    } else {
                        agree(&name, &inputs, fused, composed);
                    }
                }
            }
        }
        check(
            "attention with a cap",
            inputs(),
            |[q, k, v]| ops::attention_capped(q, k, v, None, 0.6, 2.5, 0.0),
            |[q, k, v]| ops::attention_plain(q, k, v, None, 0.6, Some(2.5), 0.0),
        );
    }
}

fn whole<const D: usize>(shape: [usize; D], number: impl Fn(usize) -> i64) -> Tensor<D, Int> {
    let numbers: Vec<i64> = (0..shape.iter().product()).map(number).collect();
    Tensor::from_data(TensorData::new(numbers, shape), &device())
}

/// A description in vectors hides what a table says that is made from the rule itself, one query and key at a time.
#[test]
fn a_mask_in_vectors_is_the_table_of_its_rule() {
    const BATCH: usize = 2;
    for (past, seq) in [(0, 1), (0, 9), (4, 1), (5, 6), (0, 80), (3, 130)] {
        let total = past + seq;
        let around = |window, ahead| Visibility::around(past..total, window, ahead, &device());
        // Padding on the left of one row, on the right and in the middle of the other.
        let kept = |row: usize, key: usize| match row {
            0 => key >= total / 3,
            _ => key < total - total / 4 && key != 2,
        };
        let padding = |at: usize| if kept(at / total, at % total) { Visibility::EVERYONE } else { Visibility::NOBODY };
        let padded = |sight: Visibility| sight.within(whole([1, 1], |_| 0), whole([BATCH, total], padding));
        // Documents of 7 and of 5 tokens behind a past that all see, and padding in the end.
        let document = |row: usize, key: usize| match key {
            key if key < past => Visibility::EVERYONE,
            key if row == 1 && key + 2 >= total => 0,
            key => 1 + ((key - past) / [7, 5][row]) as i64,
        };
        let apart = |sight: Visibility| {
            let queries = whole([BATCH, seq], |at| document(at / seq, past + at % seq));
            sight.within(queries, whole([BATCH, total], |at| document(at / total, at % total)))
        };
        let same = |row: usize, query: usize, key: usize| {
            let key = document(row, key);
            key == Visibility::EVERYONE || key == document(row, query)
        };
        let before = |query: usize, key: usize| key <= query;
        let prefix = |row: usize| total / (row + 2);
        let behind = Visibility::between(
            Tensor::zeros([1, 1], &device()),
            whole([BATCH, seq], |at| (past + at % seq + 1).max(prefix(at / seq)) as i64),
        );
        let free = |query: usize| query % 3 == 1;
        let some_free = Visibility::default().within(
            whole([1, seq], |at| if free(past + at) { Visibility::EVERYTHING } else { 5 }),
            whole([BATCH, total], padding),
        );
        type Rule<'a> = Box<dyn Fn(usize, usize, usize) -> bool + 'a>;
        let rules: Vec<(&str, Visibility, Rule)> = vec![
            ("causal", around(None, 0), Box::new(|_, query, key| before(query, key))),
            ("window", around(Some(4), 0), Box::new(|_, query, key| before(query, key) && key + 4 > query)),
            ("near", around(Some(4), 3), Box::new(|_, query, key| query.abs_diff(key) <= 3)),
            ("padded", padded(Visibility::default()), Box::new(|row, _, key| kept(row, key))),
            (
                "causal padded",
                padded(around(None, 0)),
                Box::new(|row, query, key| before(query, key) && kept(row, key)),
            ),
            (
                "window padded",
                padded(around(Some(3), 0)),
                Box::new(|row, query, key| before(query, key) && key + 3 > query && kept(row, key)),
            ),
            ("documents", apart(Visibility::default()), Box::new(same)),
            ("causal documents", apart(around(None, 0)), Box::new(|row, q, k| before(q, k) && same(row, q, k))),
            ("prefix", behind, Box::new(|row, query, key| before(query, key) || key < prefix(row))),
            ("free", some_free, Box::new(|row, query, key| free(query) || kept(row, key))),
            ("nothing", around(Some(0), 0), Box::new(|_, _, _| false)),
        ];
        let inputs = [seq, total, total].map(|length| numbers([BATCH, 2, length, 5], length));
        for (name, sight, rule) in &rules {
            let table = (0..BATCH * seq * total).map(|at| {
                let (row, query, key) = (at / (seq * total), at / total % seq, at % total);
                !rule(row, past + query, key)
            });
            let table = TensorData::new(table.collect::<Vec<bool>>(), [BATCH, 1, seq, total]);
            let table = Visibility::dense(Tensor::from_data(table, &device()));
            let window = || around(Some(5), 0);
            let masks: [[AttentionMask; 2]; 4] = [
                [sight, &table].map(|it| AttentionMask::new(it.clone(), true)),
                [sight, &table].map(|it| AttentionMask::new(it.clone(), true).never_blind()),
                [sight, &table].map(|it| AttentionMask::added(it.clone())),
                [sight, &table].map(|it| AttentionMask::added_twice(window(), it.clone())),
            ];
            for (how, [described, dense]) in masks.iter().enumerate() {
                // Hidden twice everywhere is not a number.
                if how == 3 && *name == "nothing" && seq + past <= 5 {
                    continue;
                }
                let name = format!("{name} {how} of {past} + {seq}");
                let plain = |mask: &AttentionMask| {
                    let [q, k, v] = inputs.clone();
                    values(ops::attention_plain(q, k, v, Some(mask), 0.6, None, 0.0))
                };
                assert_close(&format!("composed {name}"), &plain(described), &plain(dense));
                agree(
                    &name,
                    &inputs,
                    |[q, k, v]| ops::attention(q, k, v, Some(described), 0.6, 0.0),
                    |[q, k, v]| ops::attention_plain(q, k, v, Some(dense), 0.6, None, 0.0),
                );
                let (from, count) = (seq / 3, seq.div_ceil(2));
                let part = || described.of_queries(from..from + count);
                let [q, k, v] = inputs.clone();
                let all = ops::attention(q.clone(), k.clone(), v.clone(), Some(dense), 0.6, 0.0);
                let some = ops::attention(q.narrow(2, from, count), k, v, Some(&part()), 0.6, 0.0);
                assert_close(&format!("some queries of {name}"), &values(some), &values(all.narrow(2, from, count)));
            }
        }
    }
}

#[test]
fn attention_reads_views_and_drops_what_it_remembers() {
    let fused: Tensor<4> = numbers([2, 6, 9, 4], 8);
    let parts = |x: Tensor<4>| {
        let part = |at: usize| x.clone().narrow(2, at * 3, 3).swap_dims(1, 2);
        [part(0), part(1), part(2)]
    };
    for fused in [fused.clone(), numbers([2, 40, 9, 33], 8)] {
        check(
            "attention of views",
            [fused],
            |[x]| {
                let [q, k, v] = parts(x);
                ops::attention(q, k, v, None, 0.5, 0.0)
            },
            |[x]| {
                let [q, k, v] = parts(x);
                ops::attention_plain(q, k, v, None, 0.5, None, 0.0)
            },
        );
    }
    // Values of one: the output is the sum of the weights that were kept, and a value's gradient what it was weighted by.
    let [q, k, _] = parts(fused);
    let ones = Tensor::<4>::ones([2, 3, 6, 4], &device()).autodiff().require_grad();
    let output = ops::attention(q, k, ones.clone(), None, 0.5, 0.5);
    let grads = output.clone().sum().backward();
    let output = values(output.inner());
    assert!(output.iter().any(|it| (it - 1.0).abs() > 0.1));
    let given: f32 = output.iter().sum();
    let taken: f32 = values(ones.grad(&grads).expect("a gradient")).iter().sum();
    assert!((given - taken).abs() < 1e-3, "{given} {taken}");
}

#[test]
fn the_loss_of_a_head_is_its_composition() {
    // The last one is cut into chunks.
    for (rows, classes, d_model) in [(1, 2, 3), (7, 101, 16), (50, 101, 4)] {
        let all = |row: usize| (row * 37 % classes) as i64;
        let some = |row: usize| if row % 3 == 1 { ops::IGNORE_INDEX } else { all(row) };
        for (labels, smoothing) in [(&all as &dyn Fn(usize) -> i64, 0.0), (&some, 0.0), (&some, 0.1)] {
            let labels: Vec<i64> = (0..rows).map(labels).collect();
            let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [rows]), &device());
            let inputs = [numbers([rows, d_model], 1), numbers([classes, d_model], 2)];
            let plain = |[h, w]: [Tensor<2>; 2]| {
                plain::cross_entropy(h.matmul(w.transpose()), labels.clone(), smoothing).unsqueeze::<2>()
            };
            let fused =
                |[h, w]: [Tensor<2>; 2]| ops::linear_cross_entropy(h, w, labels.clone(), smoothing).unsqueeze::<2>();
            check("linear_cross_entropy", inputs, fused, plain);
        }
    }
}

/// A card does not wait until somebody has looked at the labels.
#[test]
fn a_label_that_is_no_class_does_not_pass() {
    if is_on_flex() || !ops::has_adamw_step(&numbers([1], 1)) {
        return;
    }
    for label in [5, -1] {
        let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![1, label], [2]), &device());
        let loss = ops::linear_cross_entropy(numbers([2, 3], 1), numbers([5, 3], 2), labels, 0.0);
        assert!(values(loss)[0].is_nan());
    }
}

#[test]
fn a_loss_of_nothing_is_not_a_number() {
    let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![ops::IGNORE_INDEX; 2], [2]), &device());
    let loss = ops::linear_cross_entropy(numbers([2, 3], 1), numbers([5, 3], 2), labels, 0.0);
    assert!(values(loss)[0].is_nan());
}

/// Rounded to bf16 by another's code.
fn rounded<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    values(tensor).into_iter().map(|x| half::bf16::from_f32(x).to_f64()).collect()
}

/// `left · right` in double precision, `right` as `[inner, columns]`.
fn exact(left: &[f64], right: &[f64], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
    let mut product = vec![0.0; rows * columns];
    for row in 0..rows {
        for term in 0..inner {
            for column in 0..columns {
                product[row * columns + column] += left[row * inner + term] * right[term * columns + column];
            }
        }
    }
    product
}

fn flipped(numbers: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| numbers[row * columns + column])).collect()
}

fn assert_near(name: &str, ours: &[f32], exact: &[f64]) {
    assert_eq!(ours.len(), exact.len(), "{name}");
    let largest = exact.iter().fold(0.5f64, |largest, x| largest.max(x.abs()));
    for (at, (a, b)) in ours.iter().zip(exact).enumerate() {
        assert!((f64::from(*a) - b).abs() <= 1e-5 * largest, "{name}: {a} is not {b} at {at} (largest {largest})");
    }
}

#[test]
fn products_in_bf16() {
    let device = device();
    if ops::check_bf16(&device).is_err() {
        let error = ops::within_bf16(&device, || ()).expect_err("a processor without the instruction");
        assert!(error.to_string().contains(if is_on_flex() { "AVX512_BF16" } else { "bf16" }), "{error}");
        return;
    }
    // Whole and ragged tiles, an odd number of terms, several runs of them, several tasks.
    for [rows, inner, columns] in [[8, 2, 48], [9, 7, 50], [31, 129, 33], [130, 64, 290], [17, 3301, 61], [700, 40, 96]]
    {
        for layout in [Layout::OutIn, Layout::InOut] {
            let name = format!("{rows} x {inner} x {columns}, {layout:?}");
            let stored = if layout == Layout::OutIn { [columns, inner] } else { [inner, columns] };
            let (input, weight, bias) = (numbers([rows, inner], 1), numbers(stored, 2), numbers([columns], 3));
            let right = rounded(weight.clone());
            let right = if layout == Layout::OutIn { flipped(&right, [columns, inner]) } else { right };
            let product = exact(&rounded(input.clone()), &right, [rows, inner, columns]);

            let plain = ops::within_bf16(&device, || ops::linear(input.clone(), weight.clone(), None, layout));
            assert_near(&name, &values(plain.expect("bf16")), &product);

            let tracked = Tensor::from_inner(input.clone()).require_grad();
            let lift = |tensor: Tensor<2>| Tensor::<2>::from_inner(tensor);
            let bias = Tensor::<1>::from_inner(bias);
            let (a, b) = (lift(numbers([4, inner], 4)), lift(numbers([columns, 4], 5)));
            let slopes: Tensor<2> = numbers([rows, columns], 6);
            let loss = |bf16: bool| {
                let update = LowRank { a: a.clone(), b: b.clone(), scale: 0.7, dropout: 0.0 };
                let run = || {
                    let weight = lift(weight.clone());
                    ops::linear_low_rank(tracked.clone(), weight, Some(bias.clone()), layout, update)
                };
                let output = if bf16 { ops::within_bf16(&device, run).expect("bf16") } else { run() };
                // The backward pass knows by itself how the forward was.
                let grads = (output.clone() * lift(slopes.clone())).sum().backward();
                (values(output.inner()), values(tracked.grad(&grads).expect("a gradient")))
            };
            let ((output, grad), (to_f32, single_grad)) = (loss(true), loss(false));
            // What is beside the product with the weight is in single precision: it is the same in both.
            let difference =
                |ours: &[f32], theirs: &[f32]| ours.iter().zip(theirs).map(|(x, y)| x - y).collect::<Vec<_>>();
            let double = |tensor: Tensor<2>| values(tensor).into_iter().map(f64::from).collect::<Vec<_>>();
            let whole = double(weight.clone());
            let whole = if layout == Layout::OutIn { flipped(&whole, [columns, inner]) } else { whole };
            let minus = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).map(|(x, y)| x - y).collect::<Vec<f64>>();
            let expected = minus(product, exact(&double(input.clone()), &whole, [rows, inner, columns]));
            let scale = 1e-5 * to_f32.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
            for (x, y) in difference(&output, &to_f32).iter().zip(&expected) {
                assert!((f64::from(*x) - y).abs() <= f64::from(scale), "{name}: off by {x}, not {y}");
            }
            if inner < 32 && is_on_flex() {
                // Too few columns for a tile of the gradient.
                assert_eq!(grad, single_grad, "gradient of {name}");
                continue;
            }
            let back = [rows, columns, inner];
            let sides = [inner, columns];
            let expected = minus(
                exact(&rounded(slopes.clone()), &flipped(&right, sides), back),
                exact(&double(slopes.clone()), &flipped(&whole, sides), back),
            );
            let scale = 1e-5 * single_grad.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
            assert!(expected.iter().any(|it| it.abs() > 10.0 * f64::from(scale)), "{name}: rounding shows");
            for (x, y) in difference(&grad, &single_grad).iter().zip(&expected) {
                assert!((f64::from(*x) - y).abs() <= f64::from(scale), "gradient of {name}: off by {x}, not {y}");
            }
        }
    }
    // What cannot be rounded to a number, and what is off again outside.
    let odd = |x: f32| {
        let input = Tensor::<2>::full([8, 2], x, &device);
        let weight = Tensor::<2>::full([2, 48], 1.0, &device);
        let run = || ops::linear(input.clone(), weight.clone(), None, Layout::InOut);
        (values(ops::within_bf16(&device, run).expect("bf16"))[0], values(run())[0])
    };
    assert!(odd(f32::NAN).0.is_nan() && odd(f32::from_bits(0x7fff_ffff)).0.is_nan());
    assert_eq!(odd(f32::INFINITY).0, f32::INFINITY);
    assert_eq!(odd(1.001), (2.0, 2.002));
}

/// The bits of all that products with a weight give, forward and backward.
fn products_with(w: &Tensor<2>, layout: Layout, dims: [usize; 3]) -> Vec<u32> {
    let [rows, d_in, d_out] = dims;
    let tracked = |it: Tensor<2>| Tensor::from_inner(it).require_grad();
    let [x, a, b] = [([rows, d_in], 1), ([2, d_in], 3), ([d_out, 2], 4)].map(|it| tracked(numbers(it.0, it.1)));
    let w = Tensor::from_inner(w.clone());
    let bias = || Some(Tensor::from_inner(numbers([d_out], 5)));
    let update = || LowRank { a: a.clone(), b: b.clone(), scale: 0.7, dropout: 0.0 };
    let mut losses = vec![ops::linear(x.clone(), w.clone(), None, layout)];
    losses.push(ops::linear(x.clone(), w.clone(), bias(), layout));
    losses.push(ops::linear_low_rank(x.clone(), w.clone(), None, layout, update()));
    losses.push(ops::linear_low_rank(x.clone(), w.clone(), bias(), layout, update()));
    if layout == Layout::OutIn {
        let labels: Vec<i64> = (0..rows as i64).map(|it| it * 7 % d_out as i64).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [rows]), &device());
        losses.push(ops::linear_cross_entropy(x.clone(), w.clone(), labels, 0.1).unsqueeze());
    }
    let each = losses.into_iter().flat_map(|output| {
        let grads = (output.clone() * output.clone()).sum().backward();
        let slopes = [&x, &a, &b].map(|it| it.grad(&grads).map(values).unwrap_or_default());
        [vec![values(output.inner())], slopes.to_vec()].concat()
    });
    each.flatten().map(f32::to_bits).collect::<Vec<u32>>()
}

#[test]
fn a_weight_in_half_precision_gives_the_bits_of_the_same_numbers() {
    for dtype in [DType::BF16, DType::F16] {
        // One row as in a step of decoding, a few as in a beam, and many.
        for dims in [[1, 100, 40], [3, 5, 7], [9, 130, 50], [33, 34, 35], [70, 800, 49]] {
            let [_, d_in, d_out] = dims;
            for (layout, shape) in [(Layout::OutIn, [d_out, d_in]), (Layout::InOut, [d_in, d_out])] {
                // As it lies in a file, and a part of something larger.
                let [rows, columns] = shape;
                let large = numbers([rows + 3, columns + 2], 2).cast(dtype);
                let whole = numbers(shape, 2).cast(dtype);
                for half in [whole.clone(), large.clone().narrow(0, 1, rows).narrow(1, 2, columns)] {
                    let to_f32 = half.clone().cast(DType::F32);
                    assert_eq!(to_f32.dtype(), DType::F32);
                    let same = products_with(&half, layout, dims) == products_with(&to_f32, layout, dims);
                    assert!(same, "{dims:?} {layout:?} {dtype:?}");
                }
            }
        }
        // Rows of a table.
        let table = numbers([11, 6], 8).cast(dtype);
        let ids: Tensor<2, Int> = Tensor::from_data(TensorData::from([[3i64, 10, 0], [1, 3, 7]]), &device());
        let rows = ops::embedding(ids.clone(), table.clone());
        assert_eq!(values(rows), values(ops::embedding(ids, table.cast(DType::F32))));
    }
}

#[test]
fn a_weight_in_few_bits_gives_the_bits_of_the_numbers_that_it_means() {
    on_flex(weights_in_few_bits);
}

fn weights_in_few_bits() {
    for (format, double, rounding) in [
        (QuantFormat::FourBit(FourBit::Nf4), false, Rounding::Single),
        (QuantFormat::FourBit(FourBit::Nf4), true, Rounding::Bf16),
        (QuantFormat::FourBit(FourBit::Fp4), true, Rounding::F16),
        (QuantFormat::Int8, false, Rounding::Single),
    ] {
        // Lines of odd length, blocks across lines, one row and many.
        for dims in [[1, 5, 37], [3, 64, 40], [33, 35, 34], [70, 800, 49], [20, 130, 200]] {
            let [_, d_in, d_out] = dims;
            for (layout, shape) in [(Layout::OutIn, [d_out, d_in]), (Layout::InOut, [d_in, d_out])] {
                let packed = quant::quantized(&numbers(shape, 2), format, double, rounding).expect("packed on flex");
                let meant = ops::to_f32(packed.clone());
                assert_eq!((meant.dtype(), meant.dims(), packed.dims()), (DType::F32, shape, shape));
                let name = format!("{format:?} {double} {rounding:?} {dims:?} {layout:?}");
                assert!(products_with(&packed, layout, dims) == products_with(&meant, layout, dims), "{name}");
                // As its transpose is seen, too.
                let turned = values(ops::to_f32(packed.transpose()).transpose());
                assert_eq!(turned, values(meant), "{name}");
            }
        }
    }
}

#[test]
fn a_weight_in_groups_gives_the_bits_of_the_numbers_that_it_means() {
    on_flex(weights_in_groups);
}

fn weights_in_groups() {
    for sorted in [false, true] {
        for dims in [[1, 64, 40], [33, 96, 48], [70, 800, 56], [20, 128, 200]] {
            let [_, d_in, d_out] = dims;
            let (matrix, wanted) = quant::tests::grouped([d_out, d_in], sorted);
            let packed = quant::packed_tensor(&matrix.view(), &device()).expect("packed on flex");
            let meant = ops::to_f32(packed.clone());
            assert_eq!(meant.to_data(), TensorData::new(wanted, [d_out, d_in]));
            let name = format!("{dims:?} {sorted}");
            let same = products_with(&packed, Layout::OutIn, dims) == products_with(&meant, Layout::OutIn, dims);
            assert!(same, "{name}");
            // As the layers of GPT-2 see it.
            let (packed, meant) = (packed.transpose(), meant.transpose());
            assert!(
                products_with(&packed, Layout::InOut, dims) == products_with(&meant, Layout::InOut, dims),
                "{name}"
            );
        }
    }
}
