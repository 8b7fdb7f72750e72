//! How many kernels an operation launches on a card, forward and backward: with ours, and composed of Burn's.
//!
//! `PEFT_TEST_DEVICE=cube-cpu cargo bench -p peft-core --features cube-cpu --bench launches`; with `-- --names` it names them, too.
//! Then what a forward leaves in memory for its backward pass.
//! With the feature `watch` beside that of the card: how often what an operation works on is read and written, too.

// It prints a table.
#![allow(clippy::print_stdout)]

#[path = "../support/device.rs"]
mod device;
mod kept;
mod operations;
#[cfg(feature = "watch")]
mod passes;

use burn::tensor::{Device, Distribution, Tensor};
use peft_core::launches::{LaunchCounter, Launches};
use peft_core::ops::{self, AdamWStep, Layout, adamw_step, plain, together};
use peft_core::quant::{FourBit, QuantFormat, Rounding, quantized};

use operations::{Operation, Size, operations};

/// Small: launches of the products and of kernels number by number do not depend on it.
const SIZE: Size = Size { batch: 2, length: 16, heads: 4, width: 16, vocabulary: 101, rank: 8 };

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
    let Some(device) = device::device().filter(|it| !peft_core::is_eager(it)) else {
        println!("name a card in PEFT_TEST_DEVICE, and build with its feature");
        return;
    };
    kept::print(&device);
    #[cfg(feature = "watch")]
    passes::print(&device);
    let operations = operations(&device, SIZE);
    let (all_rows, width) = (SIZE.batch * SIZE.length, SIZE.heads * SIZE.width);
    let auto = device.clone().autodiff();
    let x = Tensor::<3>::random([SIZE.batch, SIZE.length, width], Distribution::Default, &auto).require_grad();
    let codes = |rows: usize| -> Operation {
        let format = QuantFormat::FourBit(FourBit::Nf4);
        let matrix = Tensor::<2>::random([width, width], Distribution::Default, &device);
        let packed = Tensor::from_inner(quantized(&matrix, format, true, Rounding::Single).expect("codes"));
        let x = x.clone();
        Box::new(move || {
            let x = x.clone().reshape([all_rows, width]).narrow(0, 0, rows);
            ops::linear(x, packed.clone(), None, Layout::OutIn).unsqueeze()
        })
    };
    let operations = [operations, vec![("linear, NF4", codes(all_rows)), ("linear, NF4, 4 rows", codes(4))]];
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
