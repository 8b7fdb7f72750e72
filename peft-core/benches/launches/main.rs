//! How many kernels an operation launches on a card, forward and backward: with ours, and composed of Burn's.
//!
//! `PEFT_TEST_DEVICE=cube-cpu cargo bench -p peft-core --features cube-cpu --bench launches`; with `-- --names` it names them, too.

// It prints a table.
#![allow(clippy::print_stdout)]

use burn::tensor::{Device, Distribution, Int, Tensor};
use peft_core::launches::{LaunchCounter, Launches};
use peft_core::ops::{
    self, AdamWStep, AttentionMask, Layout, LowRank, Pairing, RotaryTable, Visibility, adamw_step, linear_low_rank,
    plain, together,
};
use peft_core::quant::{FourBit, QuantFormat, Rounding, quantized};

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
fn count(device: &Device, operation: &Operation) -> [Launches; 2] {
    // What is made once, such as the vectors of a mask, is made here.
    operation().sum().backward();
    let counter = LaunchCounter::start(device).expect("a card");
    let output = operation();
    let forward = counter.finish().expect("the device works");
    let slopes = output.sum();
    let counter = LaunchCounter::start(device).expect("a card");
    slopes.backward();
    [forward, counter.finish().expect("the device works")]
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
                move || table.rotate(heads(&x)).reshape([8, 16, 16])
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
    let codes = |x: &Tensor<3>, rows: usize| -> Operation {
        let format = QuantFormat::FourBit(FourBit::Nf4);
        let matrix = Tensor::<2>::random([64, 64], Distribution::Default, &device);
        let packed = Tensor::from_inner(quantized(&matrix, format, true, Rounding::Single).expect("codes"));
        let x = x.clone();
        Box::new(move || {
            let x = x.clone().reshape([32, 64]).narrow(0, 0, rows);
            ops::linear(x, packed.clone(), None, Layout::OutIn).unsqueeze()
        })
    };
    let operations = [operations, vec![("linear, NF4", codes(&x, 32)), ("linear, NF4, 4 rows", codes(&x, 4))]];
    let names = std::env::args().any(|it| it == "--names");
    println!(
        "| operation | ours, forward | backward | Burn's only, forward | backward |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for (name, operation) in operations.into_iter().flatten() {
        let ours = count(&device, &operation);
        let composed = plain::only(|| count(&device, &operation));
        let sums = [&ours[0], &ours[1], &composed[0], &composed[1]].map(|it| it.values().sum::<usize>());
        println!("| `{name}` | {} | {} | {} | {} |", sums[0], sums[1], sums[2], sums[3]);
        for (pass, launches) in ["forward", "backward"].into_iter().zip(ours).filter(|_| names) {
            launches.iter().for_each(|(kernel, count)| println!("    {pass}: {count} x {kernel}"));
        }
    }
    // The norm of the gradients and a step of AdamW, for the matrices of 48 adapted layers.
    let shapes = (0..96).map(|at| if at % 2 == 0 { [8, 64] } else { [64, 8] });
    let parameters: Vec<Tensor<2>> = shapes.map(|it| Tensor::random(it, Distribution::Default, &device)).collect();
    let step = || {
        let mut squares = Vec::new();
        parameters.iter().for_each(|it| ops::squares_onto(&mut squares, it.clone()));
        let step = AdamWStep { rate: 1e-3, betas: [0.9, 0.999], epsilon: 1e-8, decay: 0.01, time: 1 };
        let moved = |it: &Tensor<2>| adamw_step(it.clone(), it.clone(), [it.zeros_like(), it.zeros_like()], step).0;
        (squares, parameters.iter().map(moved).collect::<Vec<_>>())
    };
    let launched = |run: &dyn Fn()| {
        let counter = LaunchCounter::start(&device).expect("a card");
        run();
        counter.finish().expect("the device works").values().sum::<usize>()
    };
    // Zeros for 192 moments are launches that a later step has not.
    let zeros = launched(&|| drop(parameters.iter().map(Tensor::zeros_like).collect::<Vec<_>>())) * 2;
    let (alone, together) = (launched(&|| drop(step())), launched(&|| drop(together(step))));
    println!("\nAdamW and the norm of 96 matrices: {} together, {} one by one", together - zeros, alone - zeros);
}
