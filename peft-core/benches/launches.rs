//! How many kernels an operation launches on a card, forward and backward: with ours, and composed of Burn's.
//!
//! `PEFT_TEST_DEVICE=cube-cpu cargo bench -p peft-core --features cube-cpu --bench launches`

// It prints a table.
#![allow(clippy::print_stdout)]

use burn::tensor::{Device, Distribution, Int, Tensor};
use peft_core::launches::LaunchCounter;
use peft_core::ops::{self, AttentionMask, Layout, LowRank, Pairing, RotaryTable, Visibility, linear_low_rank, plain};

fn device() -> Option<Device> {
    match std::env::var("PEFT_TEST_DEVICE").unwrap_or_default().as_str() {
        #[cfg(feature = "cube-cpu")]
        "cube-cpu" => Some(Device::cpu()),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(0)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        _ => None,
    }
}

type Operation = Box<dyn Fn() -> Tensor<3>>;

/// Launches of a forward, and of the backward behind it.
fn count(device: &Device, operation: &Operation) -> [usize; 2] {
    // What is made once, such as the vectors of a mask, is made here.
    operation().sum().backward();
    let sum = |counter: LaunchCounter| counter.finish().expect("the device works").values().sum();
    let counter = LaunchCounter::start(device).expect("a card");
    let output = operation();
    let forward = sum(counter);
    let slopes = output.sum();
    let counter = LaunchCounter::start(device).expect("a card");
    slopes.backward();
    [forward, sum(counter)]
}

fn main() {
    let Some(device) = device() else {
        println!("name a card in PEFT_TEST_DEVICE, and build with its feature");
        return;
    };
    let auto = device.clone().autodiff();
    let numbers = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, &auto).require_grad();
    let vector = |width: usize| Tensor::<1>::random([width], Distribution::Default, &auto);
    let matrix = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &auto);
    let (x, y) = (numbers([2, 16, 64]), numbers([2, 16, 64]));
    let heads = |x: &Tensor<3>| x.clone().reshape([2, 16, 4, 16]).swap_dims(1, 2);
    let flat = |x: Tensor<4>| x.swap_dims(1, 2).reshape([2, 16, 64]);
    let (weight, bias) = (vector(64), vector(64));
    let (head, labels) = (matrix([101, 64]), Tensor::<1, Int>::arange(0..32, &device));
    let (frozen, a, b) = (matrix([64, 64]), matrix([8, 64]).require_grad(), matrix([64, 8]).require_grad());
    let positions = Tensor::<1, Int>::arange(0..16, &device).reshape([1, 16]);
    let table = RotaryTable::new(positions, &[1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01], 1.0, Pairing::HalfSplit);
    let mask = AttentionMask::new(Visibility::around(0..16, None, 0, &device), false);

    let operations: Vec<(&str, Operation)> = vec![
        (
            "gelu_tanh",
            Box::new({
                let x = x.clone();
                move || ops::gelu_tanh(x.clone())
            }),
        ),
        (
            "silu_mul",
            Box::new({
                let (x, y) = (x.clone(), y.clone());
                move || ops::silu_mul(x.clone(), y.clone())
            }),
        ),
        (
            "rms_norm",
            Box::new({
                let (x, weight) = (x.clone(), weight.clone());
                move || ops::rms_norm(x.clone(), weight.clone(), 1e-6)
            }),
        ),
        (
            "layer_norm",
            Box::new({
                let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
                move || ops::layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5)
            }),
        ),
        (
            "rotate",
            Box::new({
                let x = x.clone();
                move || flat(table.rotate(heads(&x)))
            }),
        ),
        (
            "dropout",
            Box::new({
                let x = x.clone();
                move || ops::dropout(x.clone(), 0.1)
            }),
        ),
        (
            "attention, causal",
            Box::new({
                let (x, y) = (x.clone(), y.clone());
                move || flat(ops::attention(heads(&x), heads(&y), heads(&y), Some(&mask), 0.25, 0.0))
            }),
        ),
        (
            "linear_cross_entropy",
            Box::new({
                let x = x.clone();
                move || {
                    let hidden = x.clone().reshape([32, 64]);
                    ops::linear_cross_entropy(hidden, head.clone(), labels.clone(), 0.0).unsqueeze()
                }
            }),
        ),
        (
            "linear_low_rank",
            Box::new({
                let x = x.clone();
                move || {
                    let update = LowRank { a: a.clone(), b: b.clone(), scale: 2.0, dropout: 0.0 };
                    linear_low_rank(x.clone().reshape([32, 64]), frozen.clone(), None, Layout::OutIn, update)
                        .unsqueeze()
                }
            }),
        ),
    ];
    println!(
        "| operation | ours, forward | backward | Burn's only, forward | backward |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for (name, operation) in operations {
        let ours = count(&device, &operation);
        let composed = plain::only(|| count(&device, &operation));
        println!("| `{name}` | {} | {} | {} | {} |", ours[0], ours[1], composed[0], composed[1]);
    }
}
