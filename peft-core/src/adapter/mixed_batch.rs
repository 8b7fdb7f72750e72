//! A batch whose rows use different adapters, and none: which row uses which.
//!
//! The choice is made once for a forward and concerns every layer, so it travels beside the model, in a thread-local that
//! [`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names) sets and clears. A layer computes [`each`] group of rows for itself;
//! while it does, only the rows of the group are there, and whoever reads a parameter gets it through their adapter
//! ([`acting`]). A parameter that is read while rows differ cannot tell them apart, which is noted.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::adapter::{AdapterSet, AnyAdapter};

thread_local! {
    static ROWS: RefCell<Option<Rows>> = const { RefCell::new(None) };
}

struct Rows {
    names: Vec<Name>,
    misused: Option<Misuse>,
}

/// `None` is the row that uses the base alone.
type Name = Option<Arc<str>>;

/// What keeps rows from having adapters of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// A parameter that is read for all rows at once.
    Parameter(String),
    /// A parameter whose layer sees so many rows, which are no multiple of the names.
    Count(String, usize),
}

/// Runs a forward with an adapter for each row, and says which parameter could not tell rows apart.
pub(crate) fn with<R>(names: &[Option<&str>], run: impl FnOnce() -> R) -> Result<R, Misuse> {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            ROWS.set(None);
        }
    }
    let names = names.iter().map(|it| it.map(Arc::from)).collect();
    ROWS.set(Some(Rows { names, misused: None }));
    let clear = Clear;
    let result = run();
    let misused = ROWS.with_borrow_mut(|it| it.as_mut().and_then(|it| it.misused.take()));
    drop(clear);
    misused.map_or(Ok(result), Err)
}

/// Which row uses which adapter now; `None` if rows are not told apart.
pub(crate) struct Assignment(Option<Vec<Name>>);

/// What to hand to [`within`] later.
pub(crate) fn assignment() -> Assignment {
    Assignment(ROWS.with_borrow(|it| it.as_ref().map(|it| it.names.clone())))
}

/// Runs something with the rows of before, and those of now again afterwards. What is wrong with them was noted then.
pub(crate) fn within<R>(Assignment(names): Assignment, run: impl FnOnce() -> R) -> R {
    struct Restore(Option<Rows>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ROWS.set(self.0.take());
        }
    }
    let _restore = Restore(ROWS.replace(names.map(|names| Rows { names, misused: None })));
    run()
}

fn note(misuse: Misuse) {
    ROWS.with_borrow_mut(|it| {
        if let Some(it) = it {
            it.misused.get_or_insert(misuse);
        }
    });
}

/// The names that rows have, each once; `None` if rows are not told apart.
fn different() -> Option<Vec<Name>> {
    ROWS.with_borrow(|rows| {
        let mut different: Vec<Name> = Vec::new();
        for name in &rows.as_ref()?.names {
            if !different.contains(name) {
                different.push(name.clone());
            }
        }
        Some(different)
    })
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
    names: Vec<Name>,
}

/// The groups of an input with this many rows; `None` if there is nothing to tell apart. Adapters that the layer does not
/// have count as none, and so no row costs more than its own adapter.
fn groups(sets: &[Option<&AdapterSet>], count: usize) -> Option<Vec<Group>> {
    let names = ROWS.with_borrow(|rows| Some(rows.as_ref()?.names.clone()))?;
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
        let all = exchange(group.names);
        let part = compute(rows);
        exchange(all);
        part
    });
    Tensor::cat(parts.collect(), 0).select(0, indices(back, &device))
}

/// Puts other rows in the place of those that are there.
fn exchange(names: Vec<Name>) -> Vec<Name> {
    ROWS.with_borrow_mut(|it| match it {
        Some(it) => std::mem::replace(&mut it.names, names),
        None => names,
    })
}

/// Says that the rows of the batch are these of before from now on: what generation repeats, reorders and drops.
pub(crate) fn select(rows: &[usize]) {
    ROWS.with_borrow_mut(|it| {
        if let Some(it) = it {
            it.names = rows.iter().map(|row| it.names.get(*row).cloned().flatten()).collect();
        }
    });
}

/// How many rows were given adapters, if any were.
pub(crate) fn count() -> Option<usize> {
    ROWS.with_borrow(|rows| rows.as_ref().map(|it| it.names.len()))
}

fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
