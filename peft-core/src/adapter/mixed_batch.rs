//! A batch whose rows use different adapters, and none.
//!
//! The choice is made once for a forward and concerns every layer, so it is part of the [context](crate::context), where
//! [`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names) puts it. A layer computes [`each`] group of
//! rows for itself; while it does, only the rows of the group are there, and whoever reads a parameter gets it through
//! their adapter ([`acting`]). A parameter that is read while rows differ cannot tell them apart, which is noted.

use std::rc::Rc;
use std::sync::Arc;

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::adapter::{AdapterSet, AnyAdapter};
use crate::context::{self, Misuse, Name, Rows};

/// Runs a forward with an adapter for each row, and says which parameter could not tell rows apart.
pub(crate) fn with<R>(names: &[Option<&str>], run: impl FnOnce() -> R) -> Result<R, Misuse> {
    let rows = Rc::new(Rows::new(names.iter().map(|it| it.map(Arc::from)).collect()));
    let guard = context::enter(|it| it.rows = Some(rows.clone()));
    let result = run();
    drop(guard);
    rows.take_misuse().map_or(Ok(result), Err)
}

fn rows() -> Option<Rc<Rows>> {
    context::read(|it| it.rows.clone())
}

fn note(misuse: Misuse) {
    if let Some(rows) = rows() {
        rows.note(misuse);
    }
}

/// The names that rows have, each once; `None` if rows are not told apart.
fn different() -> Option<Vec<Name>> {
    rows().map(|it| it.different())
}

/// The adapters of a parameter that act for any row at all.
pub(crate) fn any(set: &AdapterSet) -> Vec<&AnyAdapter> {
    match different() {
        Some(names) => names.iter().flatten().filter_map(|name| set.get(name)).collect(),
        None => set.active().collect(),
    }
}

/// The adapters of a parameter that act for all rows: those that are active, or the one that all rows have.
pub(crate) fn acting(set: &AdapterSet) -> Vec<&AnyAdapter> {
    acting_as(set, |_| true)
}

/// The same where only adapters of some kind take part, so that rows may differ in others.
pub(crate) fn acting_as(set: &AdapterSet, is_meant: impl Fn(&AnyAdapter) -> bool) -> Vec<&AnyAdapter> {
    let mut adapters = any(set);
    adapters.retain(|it| is_meant(it));
    if !adapters.is_empty() && different().is_some_and(|names| names.len() > 1) {
        note(Misuse::Parameter(set.param().path()));
        adapters.clear();
    }
    adapters
}

/// Rows of one layer's input that use the same adapter, and the names that they have.
#[derive(Default)]
struct Group {
    rows: Vec<i64>,
    /// Which of the names they are.
    places: Vec<usize>,
    names: Vec<Name>,
}

/// The groups of an input with this many rows; `None` if there is nothing to tell apart. Adapters that the layer does not
/// have count as none, and so no row costs more than its own adapter.
fn groups(sets: &[Option<&AdapterSet>], count: usize) -> Option<Vec<Group>> {
    let names = rows()?.names();
    let owner = |name: &str| sets.iter().flatten().find(|set| set.get(name).is_some());
    let repeat = count / names.len().max(1);
    if repeat * names.len() != count {
        // A table without these adapters may be looked up by anything, such as distances.
        if let Some(set) = names.iter().flatten().find_map(|name| owner(name)) {
            note(Misuse::Count(set.param().path(), count));
        }
        return None;
    }
    let mut groups: Vec<(Name, Group)> = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        let here = name.clone().filter(|name| owner(name).is_some());
        let place = groups.iter().position(|(it, _)| *it == here).unwrap_or(groups.len());
        if place == groups.len() {
            groups.push((here, Group::default()));
        }
        let group = &mut groups[place].1;
        group.rows.extend((at * repeat..(at + 1) * repeat).map(|it| it as i64));
        group.places.push(at);
        group.names.push(name);
    }
    (groups.len() > 1).then(|| groups.into_iter().map(|(_, group)| group).collect())
}

/// Computes a layer for each group of rows that use the same adapters of its parameters, and puts the rows back into their
/// order. Leading axis of input and output: rows.
pub(crate) fn each<const D: usize, const E: usize, K: Basic>(
    sets: &[Option<&AdapterSet>],
    input: Tensor<D, K>,
    compute: impl Fn(Tensor<D, K>) -> Tensor<E>,
) -> Tensor<E> {
    let Some(groups) = groups(sets, input.dims()[0]) else {
        return compute(input);
    };
    let device = input.device();
    let order: Vec<i64> = groups.iter().flat_map(|it| it.rows.iter().copied()).collect();
    let mut back = vec![0i64; order.len()];
    for (at, row) in order.iter().enumerate() {
        back[*row as usize] = at as i64;
    }
    let parts = groups.into_iter().map(|group| {
        let rows = input.clone().select(0, indices(group.rows, &device));
        let _group = context::enter(|it| {
            it.rows = it.rows.take().map(|all| Rc::new(all.group(group.names)));
            it.text = it.text.take().map(|all| all.group(&group.places));
        });
        compute(rows)
    });
    Tensor::cat(parts.collect(), 0).select(0, indices(back, &device))
}

/// Says that the rows of the batch are these of before from now on: what generation repeats, reorders and drops.
pub(crate) fn select(rows: &[usize]) {
    if let Some(all) = self::rows() {
        all.reorder(rows);
    }
}

/// How many rows were given adapters, if any were.
pub(crate) fn count() -> Option<usize> {
    rows().map(|it| it.count())
}

fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
