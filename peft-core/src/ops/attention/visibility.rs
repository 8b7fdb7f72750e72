//! Who sees whom, in vectors that are linear in length.

use std::ops::Range;

use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Device, Int, Tensor};

/// Which keys a query may see: those of its range that belong to its document.
///
/// What is not said hides nothing, so that the default lets everyone see everything. Ranges and documents are vectors, so
/// that a long text needs no table of its queries and keys; what they cannot say is said by [`Visibility::dense`].
#[derive(Debug, Clone, Default)]
pub struct Visibility {
    /// The first key, and the one after the last; `[batch or 1, q_len or 1]`.
    pub(super) ranges: Option<[Tensor<2, Int>; 2]>,
    /// Of queries, `[batch or 1, q_len or 1]`, and of keys, `[batch or 1, kv_len]`.
    pub(super) documents: Option<[Tensor<2, Int>; 2]>,
    /// `true` hides the key; `[batch or 1, 1, q_len or 1, kv_len]`.
    pub(super) dense: Option<Tensor<4, Bool>>,
}

impl Visibility {
    /// The document of a key that every query sees.
    pub const EVERYONE: i64 = -1;
    /// The document of a key that no query sees, such as padding.
    pub const NOBODY: i64 = -2;
    /// The document of a query that sees the keys of all documents, and those of none.
    pub const EVERYTHING: i64 = -3;

    /// A query sees the keys from `begin` on that stand before `end`.
    ///
    /// # Shapes
    /// - begin, end: `[batch or 1, q_len or 1]`
    pub fn between(begin: Tensor<2, Int>, end: Tensor<2, Int>) -> Self {
        Self { ranges: Some([begin, end]), ..Self::default() }
    }

    /// Queries that stand at these places among the keys see `ahead` keys behind their own one, and no more than `window`
    /// keys up to and including it: a causal mask looks 0 ahead.
    pub fn around(queries: Range<usize>, window: Option<usize>, ahead: usize, device: &Device) -> Self {
        let place = Tensor::<1, Int>::arange(queries.start as i64..queries.end as i64, device).unsqueeze::<2>();
        let end = place.clone().add_scalar(1 + ahead as i64);
        let begin = match window {
            Some(window) => place.add_scalar(1 - window as i64).clamp_min(0),
            None => place.zeros_like(),
        };
        Self::between(begin, end)
    }

    /// What a tensor hides, where it is `true`; `[batch or 1, 1, q_len or 1, kv_len]`. It is as large as the scores of a
    /// head: for what cannot be said otherwise.
    pub fn dense(hidden: Tensor<4, Bool>) -> Self {
        Self { dense: Some(hidden), ..Self::default() }
    }

    /// And no key of another document. A key may belong to [`EVERYONE`](Self::EVERYONE) or to
    /// [`NOBODY`](Self::NOBODY), and a query may see [`EVERYTHING`](Self::EVERYTHING) in its range.
    ///
    /// # Shapes
    /// - queries: `[batch or 1, q_len or 1]`
    /// - keys: `[batch or 1, kv_len]`
    pub fn within(mut self, queries: Tensor<2, Int>, keys: Tensor<2, Int>) -> Self {
        self.documents = Some([queries, keys]);
        self
    }

    pub(super) fn of_queries(&self, queries: &Range<usize>) -> Self {
        Self {
            ranges: self.ranges.as_ref().map(|it| it.each_ref().map(|it| rows(it, 1, queries))),
            documents: self.documents.as_ref().map(|[of, keys]| [rows(of, 1, queries), keys.clone()]),
            dense: self.dense.as_ref().map(|it| rows(it, 2, queries)),
        }
    }

    /// True where a query may not see a key, `[batch or 1, 1, q_len or 1, kv_len]`; none if nothing is hidden.
    pub(super) fn hidden(&self, keys: usize) -> Option<Tensor<4, Bool>> {
        let query = |it: &Tensor<2, Int>| {
            let [batch, queries] = it.dims();
            it.clone().reshape([batch, 1, queries, 1])
        };
        let ranges = self.ranges.as_ref().map(|[begin, end]| {
            let key = Tensor::<1, Int>::arange(0..keys as i64, &begin.device()).reshape([1, 1, 1, keys]);
            let [key, begin, end] = alike([key, query(begin), query(end)]);
            key.clone().lower(begin).bool_or(key.greater_equal(end))
        });
        let documents = self.documents.as_ref().map(|[queries, keys]| {
            let [batch, count] = keys.dims();
            let [own, key] = alike([query(queries), keys.clone().reshape([batch, 1, 1, count])]);
            let other = own.clone().not_equal(key.clone()).bool_and(key.not_equal_elem(Self::EVERYONE));
            other.bool_and(own.not_equal_elem(Self::EVERYTHING))
        });
        [ranges, documents, self.dense.clone()].into_iter().flatten().reduce(|a, b| {
            let [a, b] = alike([a, b]);
            a.bool_or(b)
        })
    }
}

/// Some of the rows along an axis; what is the same for all queries has one row.
pub(super) fn rows<const D: usize, K: Basic>(all: &Tensor<D, K>, axis: usize, queries: &Range<usize>) -> Tensor<D, K> {
    if all.dims()[axis] == 1 { all.clone() } else { all.clone().narrow(axis, queries.start, queries.len()) }
}

/// Tensors expanded to the shape that they have in common.
fn alike<const N: usize, K: Basic>(tensors: [Tensor<4, K>; N]) -> [Tensor<4, K>; N] {
    let shape: [usize; 4] = std::array::from_fn(|axis| {
        let sizes = tensors.iter().map(|it| it.dims()[axis]);
        // One, unless some tensor has another size.
        sizes.fold(1, |common, size| if size == 1 { common } else { size })
    });
    tensors.map(|it| it.expand(shape))
}
