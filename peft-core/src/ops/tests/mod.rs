//! Every fused operation against its plain composition, and against finite differences.

mod activation;
mod adamw;
mod attention;
mod codes;
mod conv;
mod cross_entropy;
mod dropout;
mod every;
mod linear;
mod low_rank;
mod norm;
mod rotary;
mod split;
mod squares;

use std::cell::Cell;

use burn::tensor::{DType, Device, Tensor, TensorData};

thread_local! {
    static ON_FLEX: Cell<bool> = const { Cell::new(false) };
}

/// The device that operations are tested on: flex, or what `PEFT_TEST_DEVICE` names.
#[allow(deprecated, reason = "burn-tch is deprecated in Burn 0.22.1, and is the only way to libtorch")]
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
    let before = ON_FLEX.replace(true);
    test();
    ON_FLEX.set(before);
}

fn is_libtorch() -> bool {
    std::env::var("PEFT_TEST_DEVICE").is_ok_and(|it| it.starts_with("tch"))
}

/// The half precisions in which the device computes.
fn halves() -> Vec<DType> {
    let device = device();
    let known = [DType::F16, DType::BF16].into_iter().filter(|it| device.supports_dtype(*it));
    #[cfg(feature = "cube")]
    let known = known.filter(|it| *it == DType::F16 || crate::device::rounds_to_bf16(&device));
    known.collect()
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
