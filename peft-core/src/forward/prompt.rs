//! What active prompts put before a model's input, and beside the tokens of its attention.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use crate::adapter::prompt::{GatedPrompt, Prompt};
use crate::adapter::{AdapterSet, AnyAdapter, mixed_batch, slots};
use crate::ops;

/// What active adapters put before the input of a model whose embedding matrix is `table`; the first of them in front.
///
/// `tasks` numbers the task of every row, `[batch]`. Prompts make rows longer, so all rows of a batch have the same ones.
pub fn prompt(table: &Param<Tensor<2>>, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt> {
    let set = table.reparameterization::<AdapterSet>()?;
    let adapters = mixed_batch::acting_as(set, |it| mixed_batch::count().is_none() || it.prompt(tasks).is_some());
    adapters.into_iter().filter_map(|it| it.prompt(tasks)).reduce(Prompt::and)
}

/// Between how many tasks active prompts tell; above 1 an input must name the task of every row.
pub fn tasks<M: Module>(model: &M) -> usize {
    let most = |set: &AdapterSet| mixed_batch::any(set).into_iter().map(AnyAdapter::tasks).max();
    slots::collect(model).iter().filter_map(most).max().unwrap_or(1)
}

/// How many virtual tokens active adapters put before a model's input.
pub fn virtual_tokens<M: Module>(model: &M) -> usize {
    let of = |set: &AdapterSet| mixed_batch::any(set).into_iter().map(AnyAdapter::virtual_tokens).sum::<usize>();
    slots::collect(model).iter().map(of).sum()
}

/// How many positions prefixes of active adapters take up before a model's input: keys and values that the cache starts with.
pub fn prefix_positions<M: Module>(model: &M) -> usize {
    // Prompts that tell tasks apart are virtual tokens.
    let of = |it: &AnyAdapter| if it.tasks() > 1 { 0 } else { it.prompt(None).map_or(0, |prompt| prompt.keys_len()) };
    slots::collect(model).iter().flat_map(|set| set.active().map(of).collect::<Vec<_>>()).sum()
}

/// Whether several short texts may share a row of the batch, if attention keeps them apart.
///
/// They may not where active adapters put something before each row, or where rows have adapters of their own
/// ([`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names)). Gated prompts look the same from everywhere.
pub fn can_pack<M: Module>(model: &M) -> bool {
    let in_front = |it: &AnyAdapter| it.virtual_tokens() > 0 || it.tasks() > 1 || it.prompt(None).is_some();
    mixed_batch::count().is_none() && !slots::collect(model).iter().any(|set| set.active().any(in_front))
}

/// What attention sees of the active gated prompts beside its own tokens: `gate · softmax(q kᵀ / √d_head) v`, to be
/// projected and added as the layer does with its own. `output` is the weight of the layer's output projection.
///
/// # Shapes
/// - query: `[batch, heads, q_len, d_head]`
/// - project: virtual tokens `[1, virtual, d_model]` to their key and value, `[1, kv_heads, virtual, d_head]` each
/// - output: as the query
pub fn gated(
    output: &Param<Tensor<2>>,
    query: &Tensor<4>,
    project: impl Fn(Tensor<3>) -> (Tensor<4>, Tensor<4>),
) -> Option<Tensor<4>> {
    let set = output.reparameterization::<AdapterSet>()?;
    let attend = |query: &Tensor<4>, prompt: GatedPrompt| {
        let (key, value) = project(prompt.tokens);
        // Every row of the batch attends to the same tokens: its queries stand in one long row. (Widening the keys instead
        // costs memory, and the sum over the batch behind it comes out wrong on Burn 0.22.1's CubeCL backends, whose
        // `sum_dim` misreads a tensor with swapped dimensions.)
        let [batch, heads, q_len, d_head] = query.dims();
        let rows = query.clone().swap_dims(0, 1).reshape([1, heads, batch * q_len, d_head]);
        let scale = (d_head as f64).powf(-0.5);
        let seen = ops::attention(rows, key, value, None, scale, 0.0);
        let seen = seen.reshape([heads, batch, q_len, d_head]).swap_dims(0, 1);
        seen * prompt.gate.reshape([1, 1, 1, 1])
    };
    let seen = |query: &Tensor<4>, adapters: Vec<&AnyAdapter>| {
        let prompts = adapters.into_iter().filter_map(AnyAdapter::gated);
        prompts.map(|it| attend(query, it)).reduce(|a, b| a + b)
    };
    if mixed_batch::count().is_none() {
        return seen(query, mixed_batch::acting(set));
    }
    mixed_batch::any(set).into_iter().find_map(AnyAdapter::gated)?;
    let sets = [Some(set)];
    Some(mixed_batch::each(&sets, query.clone(), |query| {
        seen(&query, mixed_batch::acting(set)).unwrap_or_else(|| query.zeros_like())
    }))
}
