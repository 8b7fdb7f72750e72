//! What an adapter sees of its layer: the frozen one, with the adapters that apply before it.

use std::cell::OnceCell;

use burn::tensor::{Int, Tensor};

use crate::adapter::any::AnyAdapter;
use crate::ops::{self, Layout, LowRank};
use crate::spec::ParamSpec;

/// A frozen weight, read in single precision at most once.
pub(crate) struct Frozen {
    /// As it is stored, perhaps in half precision.
    pub(crate) stored: Tensor<2>,
    to_f32: OnceCell<Tensor<2>>,
}

impl Frozen {
    pub(crate) fn new(stored: Tensor<2>) -> Self {
        Self { stored, to_f32: OnceCell::new() }
    }

    fn to_f32(&self) -> &Tensor<2> {
        self.to_f32.get_or_init(|| ops::to_f32(self.stored.clone()))
    }
}

/// The linear layer below an adapter: the frozen one, with the adapters that apply before.
pub struct LinearBelow<'a> {
    pub(crate) base: &'a Frozen,
    pub(crate) bias: Option<&'a Tensor<1>>,
    pub(crate) layout: Layout,
    pub(crate) param: &'a ParamSpec,
    pub(crate) adapters: &'a [&'a AnyAdapter],
}

impl LinearBelow<'_> {
    /// The layer's output, `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        match self.adapters.split_last() {
            None => ops::linear(input, self.frozen().clone(), self.bias.cloned(), self.layout),
            Some((top, rest)) => top.linear(input, &LinearBelow { adapters: rest, ..*self }),
        }
    }

    /// Whether this is the frozen layer itself, without adapters that apply before.
    pub fn is_frozen(&self) -> bool {
        self.adapters.is_empty()
    }

    /// The layer's output with a low-rank update, `[rows, in]` to `[rows, out]`.
    pub fn with_low_rank(&self, input: Tensor<2>, update: LowRank) -> Tensor<2> {
        if self.is_frozen() {
            return ops::linear_low_rank(input, self.frozen().clone(), self.bias.cloned(), self.layout, update);
        }
        ops::low_rank_update(self.forward(input.clone()), input, update)
    }

    /// The layer's weight, composed; it lies as [`LinearBelow::layout`] says.
    pub fn weight(&self) -> Tensor<2> {
        self.adapters.iter().fold(self.base().clone(), |weight, it| it.weight(weight, self.base(), self.param))
    }

    /// The layer's bias.
    pub fn bias(&self) -> Option<Tensor<1>> {
        self.bias.map(|bias| self.adapters.iter().fold(bias.clone(), |bias, it| it.bias(bias)))
    }

    /// The frozen weight, in single precision.
    pub fn base(&self) -> &Tensor<2> {
        self.base.to_f32()
    }

    /// The frozen weight as it is stored, perhaps in half precision: for products, as of [`LinearBelow::apply`].
    pub fn frozen(&self) -> &Tensor<2> {
        &self.base.stored
    }

    /// How weights lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The parameter that is adapted.
    pub fn param(&self) -> &ParamSpec {
        self.param
    }

    /// `x W + b` for any weight that lies as [`LinearBelow::layout`] says, the [`frozen`](LinearBelow::frozen) one too.
    pub fn apply(&self, input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        ops::linear(input, weight, bias, self.layout)
    }
}

/// The embedding below an adapter: the frozen one, with the adapters that apply before.
pub struct EmbeddingBelow<'a> {
    pub(crate) base: &'a Frozen,
    pub(crate) padding: Option<usize>,
    pub(crate) param: &'a ParamSpec,
    pub(crate) adapters: &'a [&'a AnyAdapter],
}

impl EmbeddingBelow<'_> {
    /// The rows, `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match self.adapters.split_last() {
            None => self.look_up_frozen(ids),
            Some((top, rest)) => top.embedding(ids, &EmbeddingBelow { adapters: rest, ..*self }),
        }
    }

    /// Rows of the frozen table itself, `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn look_up_frozen(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        ops::embedding(ids, self.base.stored.clone())
    }

    /// Rows of any table, `[rows, d]`, where the padding row gets no gradient.
    pub fn look_up(&self, ids: Tensor<2, Int>, table: Tensor<2>) -> Tensor<3> {
        let rows = burn::tensor::module::embedding(table, ids.clone());
        self.shield(&ids, rows)
    }

    /// Rows that were looked up, `[batch, seq, d]`: those of padding get no gradient.
    pub fn shield(&self, ids: &Tensor<2, Int>, rows: Tensor<3>) -> Tensor<3> {
        match self.padding {
            Some(padding) => {
                let mask = ids.clone().equal_elem(padding as i64).unsqueeze_dim::<3>(2).expand(rows.dims());
                rows.clone().mask_where(mask, rows.detach())
            }
            None => rows,
        }
    }

    /// The table, composed, `[rows, d_model]`.
    pub fn weight(&self) -> Tensor<2> {
        self.adapters.iter().fold(self.base().clone(), |weight, it| it.weight(weight, self.base(), self.param))
    }

    /// The frozen table, in single precision.
    pub fn base(&self) -> &Tensor<2> {
        self.base.to_f32()
    }

    /// The parameter that is adapted.
    pub fn param(&self) -> &ParamSpec {
        self.param
    }
}
