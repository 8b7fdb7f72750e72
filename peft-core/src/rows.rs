//! A batch whose rows use different adapters, and none: which row uses which.
//!
//! The choice is made once for a forward and concerns every layer, so it travels beside the model, in a thread-local that
//! [`PeftModel::with_rows`](crate::PeftModel::with_rows) sets and clears. Layers ask for it through [`groups`].

use std::cell::RefCell;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::adapter::{AdapterSet, AnyAdapter};

thread_local! {
    static ROWS: RefCell<Option<Rows>> = const { RefCell::new(None) };
}

struct Rows {
    names: Vec<Option<String>>,
    misused: Option<Misuse>,
}

/// What keeps rows from having adapters of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// A parameter that only knows the adapters that are active for all rows.
    Parameter(String),
    /// A layer that sees so many rows, which are no multiple of the names.
    Count(usize),
}

/// Runs a forward with an adapter for each row, and says which parameter could not tell rows apart.
pub(crate) fn with<R>(names: Vec<Option<String>>, run: impl FnOnce() -> R) -> Result<R, Misuse> {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            ROWS.set(None);
        }
    }
    ROWS.set(Some(Rows { names, misused: None }));
    let clear = Clear;
    let result = run();
    let misused = ROWS.with_borrow_mut(|it| it.as_mut().and_then(|it| it.misused.take()));
    drop(clear);
    misused.map_or(Ok(result), Err)
}

/// Called where a dense weight is composed, which cannot be done row by row: true if rows are told apart now.
pub(crate) fn forbid(set: &AdapterSet) -> bool {
    ROWS.with_borrow_mut(|rows| match rows {
        Some(rows) => {
            if rows.names.iter().flatten().any(|name| set.get(name).is_some()) {
                rows.misused.get_or_insert_with(|| Misuse::Parameter(set.site().path()));
            }
            true
        }
        None => false,
    })
}

/// Rows of one layer's input that use the same adapter.
pub(crate) struct Group<'a> {
    pub(crate) adapter: Option<&'a AnyAdapter>,
    pub(crate) rows: Vec<i64>,
}

/// The groups of an input with this many rows; `None` if rows are not told apart. Adapters that the layer does not have
/// count as none, and so no row costs more than its own adapter.
pub(crate) fn groups(set: Option<&AdapterSet>, count: usize) -> Option<Vec<Group<'_>>> {
    ROWS.with_borrow_mut(|rows| {
        let Rows { names, misused } = rows.as_mut()?;
        let repeat = count / names.len().max(1);
        if repeat * names.len() != count {
            // A table without these adapters may be looked up by anything, such as distances.
            if names.iter().flatten().any(|name| set.is_some_and(|set| set.get(name).is_some())) {
                misused.get_or_insert(Misuse::Count(count));
            }
            return Some(vec![Group { adapter: None, rows: (0..count as i64).collect() }]);
        }
        let mut groups: Vec<(Option<&str>, Group<'_>)> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let adapter = name.as_deref().and_then(|name| set?.get(name));
            let name = adapter.and(name.as_deref());
            let rows = (at * repeat..(at + 1) * repeat).map(|it| it as i64);
            match groups.iter_mut().find(|(it, _)| *it == name) {
                Some((_, group)) => group.rows.extend(rows),
                None => groups.push((name, Group { adapter, rows: rows.collect() })),
            }
        }
        Some(groups.into_iter().map(|(_, group)| group).collect())
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

/// Computes each group for itself and puts the rows back into their order. Leading axis: rows.
/// `select` picks rows of the input.
pub(crate) fn by_group<I: Clone, const E: usize>(
    input: I,
    device: &Device,
    groups: &[Group<'_>],
    select: impl Fn(I, Tensor<1, Int>) -> I,
    compute: impl Fn(I, &[&AnyAdapter]) -> Tensor<E>,
) -> Tensor<E> {
    let of = |group: &Group<'_>, input: I| match group.adapter {
        Some(adapter) => compute(input, &[adapter]),
        None => compute(input, &[]),
    };
    if let [group] = groups {
        return of(group, input);
    }
    let order: Vec<i64> = groups.iter().flat_map(|it| it.rows.iter().copied()).collect();
    let mut back = vec![0i64; order.len()];
    for (at, row) in order.iter().enumerate() {
        back[*row as usize] = at as i64;
    }
    let parts = groups.iter().map(|it| of(it, select(input.clone(), indices(it.rows.clone(), device)))).collect();
    Tensor::cat(parts, 0).select(0, indices(back, device))
}

fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
