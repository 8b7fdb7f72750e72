//! How often Burn's operations read and write the numbers that an operation works on, forward.
//!
//! Its composed form is recorded, not computed, by Burn's capture of graphs, so that sizes may be those of a model. A capture takes
//! no backward pass.

use std::collections::HashMap;

use burn::tensor::Device;
use burn_ir::{BaseOperationIr, FloatOperationIr, OperationIr, TensorIr};

use crate::operations::{Size, operations};

/// GPT-2 with 124 million parameters, four rows.
const SIZE: Size = Size { batch: 4, length: 512, heads: 12, width: 64, vocabulary: 50257, rank: 8 };

/// Prints a table.
pub(crate) fn print() {
    let [batch, length, heads, all] = [SIZE.batch, SIZE.length, SIZE.heads, SIZE.heads * SIZE.width];
    println!("| operation | of a tensor of | Burn's passes, forward |\n| --- | ---: | ---: |");
    let (names, before) = recorded(None);
    for (at, name) in names.into_iter().enumerate() {
        let unit = match name {
            "attention, causal" => batch * heads * length * length,
            "linear_cross_entropy" => batch * length * SIZE.vocabulary,
            _ => batch * length * all,
        };
        let passes = (recorded(Some(at)).1 - before) as f64 / (unit * size_of::<f32>()) as f64;
        println!("| `{name}` | {unit} | {passes:.1} |");
    }
    println!();
}

/// Names of the operations, and bytes that are read and written outside of products: by what they work on, and by one of them.
fn recorded(run: Option<usize>) -> (Vec<&'static str>, usize) {
    let device = Device::capture();
    let mut names = Vec::new();
    let captured = device.capture_scope(|scope| {
        let operations = operations(&device, SIZE);
        names = operations.iter().map(|it| it.0).collect();
        if let Some(at) = run {
            drop(operations[at].1());
        }
        scope.complete([], [])
    });
    (names, moved(&captured.expect("a capture").graph.operations))
}

fn moved(operations: &[OperationIr]) -> usize {
    // Where a tensor is a view of another one, less lies in memory than its shape says.
    let mut stored: HashMap<_, usize> = HashMap::new();
    let mut sum = 0;
    for operation in operations {
        let of = |stored: &HashMap<_, usize>, tensor: &TensorIr| {
            let whole = tensor.shape.num_elements() * tensor.dtype.size();
            stored.get(&tensor.id).map_or(whole, |it| whole.min(*it))
        };
        match operation {
            OperationIr::Init(_) | OperationIr::Drop(_) => {}
            OperationIr::BaseFloat(view) | OperationIr::BaseInt(view) | OperationIr::BaseBool(view)
                if is_view(view) =>
            {
                let read = operation.inputs().map(|it| of(&stored, it)).sum();
                stored.extend(operation.outputs().map(|it| (it.id, read)));
            }
            OperationIr::Float(_, FloatOperationIr::Matmul(_)) => {}
            _ => sum += operation.nodes().into_iter().map(|it| of(&stored, it)).sum::<usize>(),
        }
    }
    sum
}

/// Whether nothing is copied, as Burn's backend for cards has it.
fn is_view(operation: &BaseOperationIr) -> bool {
    use BaseOperationIr::{Expand, Permute, Reshape, Slice, SwapDims};
    matches!(operation, Expand(_) | Permute(_) | Reshape(_) | Slice(_) | SwapDims(_))
}
