//! How often an operation reads and writes the numbers that it works on, forward and backward.
//!
//! Burn's joining of operations sees each of them on its way to the card, with the tensors that it reads and writes. Where
//! `BURN_FUSION_MAX_EXPLORATIONS=0` forbids it to join, each goes there as it is. What is read and written within one of our
//! operations it does not see: only those of ours are printed that are one kernel.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Distribution, Tensor};
use burn_fusion::observer::{BlockOperations, FusionObservation, FusionObserver};
use burn_ir::{BaseOperationIr, FloatOperationIr, OperationIr, TensorId, TensorIr, TensorStatus};
use peft_core::ops::plain;

use crate::operations::{Operation, WIDE, operations};

/// Prints a table.
pub(crate) fn print(device: &Device) {
    println!(
        "| operation | passes of Burn's, forward | backward | of ours, forward | backward |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for (name, operation) in operations(device, WIDE) {
        let passes = |bytes: usize| format!("{:.1}", bytes as f64 / (WIDE.numbers(name) * size_of::<f32>()) as f64);
        let composed = plain::only(|| moved(device, &operation)).map(passes);
        let several = ["attention, causal", "linear_cross_entropy", "linear_low_rank"].contains(&name);
        let ours = if several { Default::default() } else { moved(device, &operation).map(passes) };
        println!("| `{name}` | {} | {} | {} | {} |", composed[0], composed[1], ours[0], ours[1]);
    }
    println!();
}

/// Bytes that are read and written outside of products, forward and backward.
fn moved(device: &Device, operation: &Operation) -> [usize; 2] {
    // What is made once, such as the vectors of a mask, is made here.
    let shape = operation().dims();
    let auto = device.clone().autodiff();
    let slopes = Tensor::<3>::random(shape, Distribution::Default, &auto);
    let leaf = Tensor::<3>::random(shape, Distribution::Default, &auto).require_grad();
    let watch = Arc::new(Watch::default());
    let sum = |output: Tensor<3>| (output * slopes.clone()).sum();
    let outside = sum(leaf);
    let device = device.clone().without_autodiff();
    // A backward pass looks at views that its forward made.
    let bytes = |run: &mut dyn FnMut()| {
        device.sync().expect("the device works");
        let before = watch.bytes();
        run();
        device.sync().expect("the device works");
        watch.bytes() - before
    };
    device.sync().expect("the device works");
    let _observation = FusionObservation::new(watch.clone());
    let mut output = None;
    let forward = bytes(&mut || output = Some(operation()));
    let inside = sum(output.expect("it has run"));
    // What leads from the sum to the slopes of the output is no part of the operation.
    let outside = bytes(&mut || drop(outside.backward()));
    [forward, bytes(&mut || drop(inside.backward())) - outside]
}

#[derive(Default)]
struct Watch(Mutex<Traffic>);

impl Watch {
    fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl FusionObserver for Watch {
    fn registered(&self, _operation: &OperationIr) {}

    fn block_starts(&self, block: BlockOperations<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(block);
    }

    fn block_ran(&self) {}
}

#[derive(Default)]
struct Traffic {
    bytes: usize,
    /// Of tensors that are views of another one: how much lies in memory, which may be less than their shape says.
    stored: HashMap<TensorId, usize>,
}

impl Traffic {
    /// Adds what becomes one kernel: it reads what comes from outside, and writes what somebody looks at later.
    fn add(&mut self, block: BlockOperations<'_>) {
        let mut written: HashMap<TensorId, usize> = HashMap::new();
        let mut read = HashSet::new();
        for operation in block.iter() {
            match operation {
                OperationIr::Init(_) => {}
                OperationIr::Drop(tensor) => drop(written.remove(&tensor.id)),
                OperationIr::BaseFloat(view) | OperationIr::BaseInt(view) | OperationIr::BaseBool(view)
                    if is_view(view) =>
                {
                    let read = operation.inputs().map(|it| self.bytes_of(it)).sum();
                    self.stored.extend(operation.outputs().map(|it| (it.id, read)));
                }
                OperationIr::Float(_, FloatOperationIr::Matmul(_)) => {}
                _ => {
                    for tensor in operation.inputs() {
                        match written.contains_key(&tensor.id) {
                            true if tensor.status == TensorStatus::ReadWrite => drop(written.remove(&tensor.id)),
                            false if read.insert(tensor.id) => self.bytes += self.bytes_of(tensor),
                            _ => {}
                        }
                    }
                    written.extend(operation.outputs().map(|it| (it.id, self.bytes_of(it))));
                }
            }
        }
        self.bytes += written.values().sum::<usize>();
    }

    fn bytes_of(&self, tensor: &TensorIr) -> usize {
        let whole = tensor.shape.num_elements() * tensor.dtype.size();
        self.stored.get(&tensor.id).map_or(whole, |it| whole.min(*it))
    }
}

/// Whether nothing is copied, as Burn's backend for cards has it.
fn is_view(operation: &BaseOperationIr) -> bool {
    use BaseOperationIr::{Expand, Permute, Reshape, Slice, SwapDims};
    matches!(operation, Expand(_) | Permute(_) | Reshape(_) | Slice(_) | SwapDims(_))
}
