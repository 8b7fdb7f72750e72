//! Embedding matrices through their adapters: looking rows up, and as a tied head.

use burn::module::Param;
use burn::tensor::{Int, Tensor};

use crate::adapter::{AdapterSet, AnyAdapter, EmbeddingBelow, Frozen, LinearBelow, mixed_batch};
use crate::forward::linear::{acting, unadapted};
use crate::forward::mixed_batch::for_each_row;
use crate::ops::{self, Layout};

/// Rows of a table, through the active adapters of `weight`.
///
/// # Shapes
/// - ids: `[batch, seq]`
/// - weight: `[rows, d_model]`
/// - output: `[batch, seq, d_model]`
///
/// `padding` is torch's `padding_idx`: its row gets no gradient.
pub fn embedding(ids: Tensor<2, Int>, weight: &Param<Tensor<2>>, padding: Option<usize>) -> Tensor<3> {
    let base = Frozen::new(unadapted(weight));
    let set = weight.reparameterization::<AdapterSet>();
    // Positions come once for all rows; with adapters of their own each row needs them.
    let ids = if set.is_some_and(|it| !mixed_batch::any(it).is_empty()) { for_each_row(ids) } else { ids };
    mixed_batch::each(&[set], ids, |ids| {
        let adapters = acting(set);
        match set {
            Some(set) if !adapters.is_empty() => {
                EmbeddingBelow { base: &base, padding, param: set.param(), adapters: &adapters }.forward(ids)
            }
            _ => ops::embedding(ids, base.stored.clone()),
        }
    })
}

/// A table read as the output layer of a tied head, through those of its adapters that move it along.
///
/// # Shapes
/// - hidden: `[.., d_model]`
/// - weight: `[rows, d_model]`
/// - output: `[.., rows]`
pub fn attend<const D: usize>(hidden: Tensor<D>, weight: &Param<Tensor<2>>) -> Tensor<D> {
    attend_through(hidden, weight, AnyAdapter::moves_tied_head)
}

/// The same for a head that looks the table up by its place in the model, so that one that is trained whole in place of
/// the table is found there too.
pub fn attend_in_place<const D: usize>(hidden: Tensor<D>, weight: &Param<Tensor<2>>) -> Tensor<D> {
    attend_through(hidden, weight, |it| it.moves_tied_head() || it.replaces_table())
}

fn attend_through<const D: usize>(
    hidden: Tensor<D>,
    weight: &Param<Tensor<2>>,
    takes_part: fn(&AnyAdapter) -> bool,
) -> Tensor<D> {
    let base = unadapted(weight);
    let is_meant = |it: &&AdapterSet| mixed_batch::any(it).into_iter().any(takes_part);
    let Some(set) = weight.reparameterization::<AdapterSet>().filter(is_meant) else {
        return ops::linear(hidden, base, None, Layout::OutIn);
    };
    let base = Frozen::new(base);
    mixed_batch::each(&[Some(set)], hidden, |hidden| {
        let mut moving = mixed_batch::acting(set);
        moving.retain(|it| takes_part(it));
        let mut dims = hidden.dims();
        let rows = dims[..D - 1].iter().product::<usize>();
        let below =
            LinearBelow { base: &base, bias: None, layout: Layout::OutIn, param: set.param(), adapters: &moving };
        let output = below.forward(hidden.reshape([rows, dims[D - 1]]));
        dims[D - 1] = output.dims()[1];
        output.reshape(dims)
    })
}

/// Whether a head that is tied to a table with these adapters goes through one of them, for any row.
pub(crate) fn moves_tied_head(set: &AdapterSet) -> bool {
    mixed_batch::any(set).into_iter().any(AnyAdapter::moves_tied_head)
}
