//! `softmax(scale · q kᵀ + bias) v`, fused or composed.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "flex")]
use super::fused;
use super::mask::AttentionMask;
#[cfg(feature = "cube")]
use super::tiled;
#[cfg(feature = "flex")]
use crate::ops::dropout::Seed;
use crate::ops::dropout::dropout as drop;
#[cfg(feature = "flex")]
use crate::ops::kernel;

/// `softmax(scale · q kᵀ + bias) v`, with fewer key than query heads where the model groups them.
///
/// A query that may see no key gives zero, as torch's scaled dot-product attention does, or the mean of all values: see
/// [`AttentionMask::added`]. `dropout` is the share of
/// weights that are dropped, or the [`Dropout`](crate::nn::Dropout) that says it; 0 is none.
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
    dropout: impl Into<f64>,
) -> Tensor<4> {
    fused_or_composed([query, key, value], mask, scale, None, dropout.into())
}

/// [`attention`] whose scores are bent into (−cap, cap) by a hyperbolic tangent before they are masked: Gemma 2's.
pub fn attention_capped(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: f64,
    dropout: impl Into<f64>,
) -> Tensor<4> {
    fused_or_composed([query, key, value], mask, scale, Some(cap), dropout.into())
}

fn fused_or_composed(
    [query, key, value]: [Tensor<4>; 3],
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
    dropout: f64,
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    {
        let bias = mask.and_then(|it| it.bias.as_ref());
        if [Some(&query), Some(&key), Some(&value), bias].into_iter().flatten().all(kernel::fits) {
            let device = query.device().without_autodiff();
            let settings = fused::Settings {
                scale: scale as f32,
                cap: cap.map(|it| it as f32),
                fully_masked_is_zero: mask.is_some_and(AttentionMask::fully_masked_is_zero),
                seed: (dropout > 0.0).then(|| Seed::draw(&device, dropout)),
            };
            return fused::attention(query, key, value, mask, settings);
        }
    }
    #[cfg(feature = "cube")]
    if tiled::fits([&query, &key, &value], mask, cap) {
        return tiled::attention([query, key, value], mask, scale, cap, dropout);
    }
    attention_plain(query, key, value, mask, scale, cap, dropout)
}

/// [`attention`], or [`attention_capped`] where there is a cap, composed of Burn's own operations.
#[doc(hidden)]
pub fn attention_plain(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
    dropout: f64,
) -> Tensor<4> {
    let groups = query.dims()[1] / key.dims()[1];
    let (key, value) = (repeat_heads(key, groups), repeat_heads(value, groups));
    let mut scores = query.mul_scalar(scale).matmul(key.swap_dims(2, 3));
    let shape = scores.dims();
    let tables = mask.map(|it| it.dense(shape[3]).clone()).unwrap_or_default();
    if let Some(cap) = cap {
        scores = soft_cap(scores, cap);
    }
    if let Some(bias) = mask.and_then(|it| it.bias.clone()) {
        scores = scores + bias.expand(shape);
    }
    if let Some(set) = tables.set {
        // The lowest finite number, not −∞: a row of −∞ has no softmax.
        scores = scores.mask_fill(set.expand(shape), f32::MIN);
    }
    if let Some(added) = tables.added {
        scores = scores + added.expand(shape);
    }
    let mut weights = activation::softmax(scores, 3);
    if let Some(blind) = tables.blind {
        weights = weights.mask_fill(blind.expand(shape), 0.0);
    }
    drop(weights, dropout).matmul(value)
}

/// `cap · tanh(x / cap)`: small numbers stay, great ones come no further than ±cap.
pub fn soft_cap<const D: usize>(input: Tensor<D>, cap: f64) -> Tensor<D> {
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
