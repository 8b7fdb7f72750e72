//! A mask as the vectors that a kernel on a card reads.

use burn::tensor::{DType, Device, Int, Tensor};

use super::visibility::Visibility;

/// Numbers of a query for each of the two parts of a mask: begin and end of its range, and its document.
const OF_QUERY: usize = 3;

/// What hides keys: by setting scores, and by adding to them.
#[derive(Debug, Clone)]
pub(super) struct Vectors {
    pub(super) set: bool,
    pub(super) added: bool,
    pub(super) has_dense: bool,
    /// `[batch or 1, q_len or 1, 6]`, of both parts
    pub(super) queries: Tensor<3, Int>,
    /// Documents, `[batch or 1, kv_len or 1, 2]`, of both parts
    pub(super) keys: Tensor<3, Int>,
    /// 1 where a score is set, 2 where it is added to, 3 where both; `[batch or 1, 1, q_len or 1, kv_len or 1]`
    pub(super) dense: Tensor<4, Int>,
}

impl Vectors {
    /// Nothing is hidden: a kernel that was told so looks at none of these numbers.
    pub(super) fn of_everything(device: &Device) -> Self {
        let any = |shape: [usize; 3]| Tensor::<3, Int>::empty(shape, (device, DType::I32));
        Self {
            set: false,
            added: false,
            has_dense: false,
            queries: any([1, 1, 2 * OF_QUERY]),
            keys: any([1, 1, 2]),
            dense: any([1, 1, 1]).unsqueeze(),
        }
    }

    /// For so many keys.
    pub(super) fn new(set: Option<&Visibility>, added: Option<&Visibility>, keys: i64, device: &Device) -> Self {
        let number = |it: i64| Tensor::<1, Int>::from_data([it], (device, DType::I32)).reshape([1, 1]);
        let parts = [set, added];
        let mut queries = Vec::new();
        let mut documents = Vec::new();
        for part in parts {
            let part = part.cloned().unwrap_or_default();
            let [begin, end] = part.ranges.unwrap_or_else(|| [number(0), number(keys)]);
            let [of, key] =
                part.documents.unwrap_or_else(|| [number(Visibility::EVERYTHING), number(Visibility::EVERYONE)]);
            queries.extend([begin, end, of]);
            documents.push(key);
        }
        debug_assert_eq!(queries.len(), 2 * OF_QUERY);
        let tables = [(1, set), (2, added)];
        let tables = tables.into_iter().filter_map(|(bit, part)| Some((bit, part?.dense.clone()?)));
        let dense = tables.map(|(bit, table)| table.int().cast(DType::I32).mul_scalar(bit)).reduce(|a, b| a + b);
        Self {
            set: set.is_some(),
            added: added.is_some(),
            has_dense: dense.is_some(),
            queries: side_by_side(queries),
            keys: side_by_side(documents),
            dense: dense.unwrap_or_else(|| number(0).reshape([1, 1, 1, 1])),
        }
    }
}

/// Tables of numbers, each `[batch or 1, length or 1]`, as the last axis of one.
fn side_by_side(tables: Vec<Tensor<2, Int>>) -> Tensor<3, Int> {
    let shape = tables.iter().fold([1, 1], |[a, b], it| {
        let [c, d] = it.dims();
        [if a == 1 { c } else { a }, if b == 1 { d } else { b }]
    });
    let tables = tables.into_iter().map(|it| it.cast(DType::I32).expand(shape).unsqueeze_dim::<3>(2));
    Tensor::cat(tables.collect(), 2)
}
