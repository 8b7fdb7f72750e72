//! Layers of a batch whose rows use adapters of their own.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::kind::Basic;

use crate::adapter::{AdapterSet, mixed_batch, slots};

/// Computes a layer so that rows of the batch may use adapters of their own, as
/// [`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names) gives them: once for each group of rows with the same ones.
///
/// For layers that read whole parameters, `weight.val()`: norms, biases, convolutions, also those of `burn::nn`. Otherwise
/// it is `forward(layer, input)`.
///
/// # Shapes
/// - input, output: `[rows, ..]`
pub fn by_rows<L: Module, const D: usize, const E: usize, K: Basic>(
    layer: &L,
    input: Tensor<D, K>,
    forward: impl Fn(&L, Tensor<D, K>) -> Tensor<E>,
) -> Tensor<E> {
    if mixed_batch::count().is_none() {
        return forward(layer, input);
    }
    let sets = slots::collect(layer);
    let sets: Vec<Option<&AdapterSet>> = sets.iter().map(Some).collect();
    mixed_batch::each(&sets, input, |input| forward(layer, input))
}

/// A tensor that a model computes once for all rows of the batch: once for each, if rows use adapters of their own and
/// layers that come behind must tell rows apart.
///
/// # Shapes
/// - shared: `[1, ..]`
/// - output: `[1 or rows, ..]`
pub fn for_each_row<const D: usize, K: Basic>(shared: Tensor<D, K>) -> Tensor<D, K> {
    let mut dims = shared.dims();
    match mixed_batch::count() {
        Some(count) if dims[0] == 1 => {
            dims[0] = count;
            shared.expand(dims)
        }
        _ => shared,
    }
}

/// Says that the rows of the batch are these of before from now on, so that each keeps the adapter that
/// [`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names) gave it. Generation calls this when it repeats, reorders or drops
/// rows; without such adapters it does nothing.
pub fn reorder_batch(rows: &[usize]) {
    mixed_batch::select(rows);
}
