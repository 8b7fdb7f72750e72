//! Scaled dot-product attention.

use burn::tensor::{Bool, Tensor, activation};

use crate::nn::Dropout;

/// Which keys a query may see.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    /// `true` hides the key; `[batch or 1, 1, q_len, kv_len]`.
    hidden: Tensor<4, Bool>,
    /// `true` marks a query that may see nothing at all, `[batch or 1, 1, q_len, 1]`: its output is zero.
    blind: Option<Tensor<4, Bool>>,
}

impl AttentionMask {
    /// A mask from its `true = hidden` form, `[batch or 1, 1, q_len, kv_len]`.
    ///
    /// `may_be_blind` says that some query may see no key, as with padding on the left.
    pub fn new(hidden: Tensor<4, Bool>, may_be_blind: bool) -> Self {
        let blind = may_be_blind.then(|| hidden.clone().all_dim(3));
        Self { hidden, blind }
    }
}

/// `softmax(scale · q kᵀ) v`, with fewer key than query heads where the model groups them.
///
/// A query that may see no key gives zero, as torch's scaled dot-product attention does. Dropout acts on the weights.
///
/// # Shapes
/// - query: `[batch, heads, q_len, d_head]`
/// - key, value: `[batch, kv_heads, kv_len, d_head]`, `heads` a multiple of `kv_heads`
/// - output: `[batch, heads, q_len, d_head]`
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    dropout: &Dropout,
) -> Tensor<4> {
    let groups = query.dims()[1] / key.dims()[1];
    let (key, value) = (repeat_heads(key, groups), repeat_heads(value, groups));
    let mut scores = query.mul_scalar(scale).matmul(key.swap_dims(2, 3));
    if let Some(mask) = mask {
        let shape = scores.dims();
        // The lowest finite number, not −∞: a row of −∞ has no softmax.
        scores = scores.mask_fill(mask.hidden.clone().expand(shape), f32::MIN);
    }
    let mut weights = activation::softmax(scores, 3);
    if let Some(blind) = mask.and_then(|it| it.blind.clone()) {
        let shape = weights.dims();
        weights = weights.mask_fill(blind.expand(shape), 0.0);
    }
    dropout.forward(weights).matmul(value)
}

/// Each key head once for every query head of its group: `[b, kv, s, d]` to `[b, kv · groups, s, d]`.
fn repeat_heads(tensor: Tensor<4>, groups: usize) -> Tensor<4> {
    if groups == 1 {
        return tensor;
    }
    let [batch, heads, seq, d_head] = tensor.dims();
    tensor.unsqueeze_dim::<5>(2).expand([batch, heads, groups, seq, d_head]).reshape([
        batch,
        heads * groups,
        seq,
        d_head,
    ])
}
