//! What an operation leaves in the memory of a card for its backward pass.

use burn::tensor::Device;
use peft_core::ops::plain;

use crate::operations::{Operation, WIDE, operations};

/// Prints a table.
pub(crate) fn print(device: &Device) {
    println!("| operation | kept by ours | by Burn's |\n| --- | ---: | ---: |");
    for (name, operation) in operations(device, WIDE) {
        let shares = |bytes: u64| bytes as f64 / (WIDE.numbers(name) * size_of::<f32>()) as f64;
        let ours = shares(kept(device, &operation));
        println!("| `{name}` | {ours:.2} | {:.2} |", shares(plain::only(|| kept(device, &operation))));
    }
    println!();
}

/// Bytes beside the output.
fn kept(device: &Device, operation: &Operation) -> u64 {
    // What is made once, such as the vectors of a mask, is made here.
    drop(operation());
    let device = device.clone().without_autodiff();
    let in_use = || {
        device.sync().expect("the device works");
        device.memory_pool_usage().expect("a card has a pool").bytes_in_use
    };
    let before = in_use();
    let output = operation();
    let after = in_use();
    after - before - (output.shape().num_elements() * size_of::<f32>()) as u64
}
