//! Scaled dot-product attention.

use std::ops::Range;

use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Tensor, activation};

#[cfg(feature = "flex")]
use super::kernel;
use crate::nn::Dropout;

#[cfg(feature = "flex")]
mod fused;

/// Which keys a query may see, and what is added to the scores of those.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    /// `true` hides the key; `[batch or 1, 1, q_len, kv_len]`.
    hidden: Option<Tensor<4, Bool>>,
    /// `true` marks a query that may see nothing at all, `[batch or 1, 1, q_len, 1]`: its output is zero.
    blind: Option<Tensor<4, Bool>>,
    added: bool,
    /// Added to the scores when those of hidden keys are set already.
    then: Option<Tensor<4>>,
    /// Added to the scaled scores; `[batch or 1, heads, q_len or 1, kv_len]`.
    bias: Option<Tensor<4>>,
}

impl AttentionMask {
    /// A mask from its `true = hidden` form, `[batch or 1, 1, q_len, kv_len]`.
    ///
    /// `may_be_blind` says that some query may see no key, as with padding on the left: it gives zero.
    pub fn new(hidden: Tensor<4, Bool>, may_be_blind: bool) -> Self {
        let blind = may_be_blind.then(|| hidden.clone().all_dim(3));
        Self { hidden: Some(hidden), blind, ..Self::default() }
    }

    /// A mask that hides by adding the lowest number to a score.
    ///
    /// It differs for a query that may see no key: the scores of that one are all equal then, it gives the mean of all
    /// values, and its gradient goes through every score. So do models that the reference computes without torch's
    /// fused attention.
    pub fn added(hidden: Tensor<4, Bool>) -> Self {
        Self { hidden: Some(hidden), added: true, ..Self::default() }
    }

    /// A mask of which one part hides by setting a score to the lowest number, and the other then adds that number.
    ///
    /// Hidden by both is lower than hidden by one, which shows where a query may see no key: it gives the mean of the
    /// values that only one part hides. No gradient goes through a score that was set.
    pub fn added_twice(first: Tensor<4, Bool>, then: Tensor<4, Bool>) -> Self {
        // Twice the lowest number is −∞.
        Self { hidden: Some(first), then: Some(then.float().mul_scalar(f32::MIN)), ..Self::default() }
    }

    /// With a term for the scores, such as ALiBi or relative positions; `[batch or 1, heads, q_len or 1, kv_len]`.
    ///
    /// A mask that hides nothing is the default one.
    pub fn with_bias(mut self, bias: Tensor<4>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// With another term for the scores, if there is one: nothing else of a mask has gradients.
    pub(crate) fn with_bias_exchanged(self, exchange: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        Self { bias: self.bias.map(exchange), ..self }
    }
}

/// `softmax(scale · q kᵀ + bias) v`, with fewer key than query heads where the model groups them.
///
/// A query that may see no key gives zero, as torch's scaled dot-product attention does, or the mean of all values: see
/// [`AttentionMask::added`]. Dropout acts on the weights.
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
    #[cfg(feature = "flex")]
    {
        let bias = mask.and_then(|it| it.bias.as_ref());
        let added = mask.is_some_and(|it| it.added || it.then.is_some());
        if !added && [Some(&query), Some(&key), Some(&value), bias].into_iter().flatten().all(kernel::fits) {
            let device = query.device().without_autodiff();
            let settings = fused::Settings {
                scale: scale as f32,
                blind_is_zero: mask.is_some_and(|it| it.blind.is_some()),
                seed: dropout.is_active().then(|| super::dropout::Seed::draw(&device, dropout.probability())),
            };
            return fused::attention(query, key, value, mask, settings);
        }
    }
    attention_plain(query, key, value, mask, scale, dropout)
}

/// [`attention`] whose scores are bent into (−cap, cap) by a hyperbolic tangent before they are masked: Gemma 2's.
///
/// Composed of Burn's operations on every backend.
pub fn attention_capped(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: f64,
    dropout: &Dropout,
) -> Tensor<4> {
    composed([query, key, value], mask, scale, Some(cap), dropout)
}

/// [`attention`] composed of Burn's own operations.
#[doc(hidden)]
pub fn attention_plain(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    dropout: &Dropout,
) -> Tensor<4> {
    composed([query, key, value], mask, scale, None, dropout)
}

fn composed(
    [query, key, value]: [Tensor<4>; 3],
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
    dropout: &Dropout,
) -> Tensor<4> {
    let groups = query.dims()[1] / key.dims()[1];
    let (key, value) = (repeat_heads(key, groups), repeat_heads(value, groups));
    let mut scores = query.mul_scalar(scale).matmul(key.swap_dims(2, 3));
    let shape = scores.dims();
    if let Some(cap) = cap {
        scores = bend(scores, cap);
    }
    if let Some(bias) = mask.and_then(|it| it.bias.clone()) {
        scores = scores + bias.expand(shape);
    }
    // The lowest finite number, not −∞: a row of −∞ has no softmax.
    scores = match mask.and_then(|it| it.hidden.clone()) {
        Some(hidden) if mask.is_some_and(|it| it.added) => scores + hidden.float().mul_scalar(f32::MIN),
        Some(hidden) => scores.mask_fill(hidden.expand(shape), f32::MIN),
        None => scores,
    };
    if let Some(then) = mask.and_then(|it| it.then.clone()) {
        scores = scores + then.expand(shape);
    }
    let mut weights = activation::softmax(scores, 3);
    if let Some(blind) = mask.and_then(|it| it.blind.clone()) {
        weights = weights.mask_fill(blind.expand(shape), 0.0);
    }
    dropout.forward(weights).matmul(value)
}

/// `cap · tanh(x / cap)`: small numbers stay, great ones come no further than ±cap.
pub fn bend<const D: usize>(input: Tensor<D>, cap: f64) -> Tensor<D> {
    input.div_scalar(cap).tanh().mul_scalar(cap)
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

impl AttentionMask {
    /// The mask of some of the queries.
    pub fn of_queries(&self, queries: Range<usize>) -> Self {
        fn rows<K: Basic>(all: &Tensor<4, K>, queries: &Range<usize>) -> Tensor<4, K> {
            // What is the same for all queries has one row.
            if all.dims()[2] == 1 { all.clone() } else { all.clone().narrow(2, queries.start, queries.len()) }
        }
        Self {
            hidden: self.hidden.as_ref().map(|it| rows(it, &queries)),
            blind: self.blind.as_ref().map(|it| rows(it, &queries)),
            added: self.added,
            then: self.then.as_ref().map(|it| rows(it, &queries)),
            bias: self.bias.as_ref().map(|it| rows(it, &queries)),
        }
    }

    /// The same mask, except that a query that may see no key gives the mean of all values.
    pub fn never_blind(self) -> Self {
        Self { blind: None, ..self }
    }
}
