//! Attention masks, built once per forward and shared by all layers.

use burn::tensor::{Bool, Int, Tensor};
use peft_core::ops::AttentionMask;

use crate::input::ModelInput;
use crate::prompt::EVERYONE;

/// A query sees itself and what came before, within `window` tokens where there is one.
///
/// # Shapes
/// - covers `[batch or 1, 1, seq, past + seq]`
pub fn causal(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    let [_, seq] = input.dims();
    let total = past + seq;
    if seq == 1 && input.attention_mask.is_none() && input.segment_ids.is_none() && window.is_none_or(|it| it >= total)
    {
        return None;
    }
    let device = input.device();
    let query = Tensor::<1, Int>::arange(past as i64..total as i64, &device).reshape([1, 1, seq, 1]);
    let key = Tensor::<1, Int>::arange(0..total as i64, &device).reshape([1, 1, 1, total]);
    let (query, key) = (query.expand([1, 1, seq, total]), key.expand([1, 1, seq, total]));
    let mut hidden = key.clone().greater(query.clone());
    if let Some(window) = window {
        // Visible are `window` keys, the query's own among them.
        hidden = hidden.bool_or(key.lower_equal(query.sub_scalar(window as i64)));
    }
    if let Some(mask) = &input.attention_mask {
        hidden = either(hidden, padding(mask.clone()));
    }
    if let Some(segments) = &input.segment_ids {
        hidden = either(hidden, across_segments(segments.clone(), past));
    }
    let may_be_blind = input.attention_mask.is_some() || input.segment_ids.is_some();
    Some(AttentionMask::new(hidden, may_be_blind))
}

/// Every query sees every token that is not padding, and the prefix of `past` positions.
pub fn bidirectional(input: &ModelInput, past: usize) -> Option<AttentionMask> {
    let [_, seq] = input.dims();
    let hidden = input.attention_mask.clone().map(|mask| {
        let [batch, total] = mask.dims();
        padding(mask).expand([batch, 1, seq, total])
    });
    let apart = input.segment_ids.clone().map(|it| across_segments(it, past));
    let hidden = match (hidden, apart) {
        (Some(a), Some(b)) => Some(either(a, b)),
        (a, b) => a.or(b),
    };
    hidden.map(|it| AttentionMask::new(it, true))
}

/// Every query sees the tokens at most `reach` away that are not padding.
pub fn nearby(input: &ModelInput, reach: usize) -> Option<AttentionMask> {
    let [_, seq] = input.dims();
    let device = input.device();
    let places = Tensor::<1, Int>::arange(0..seq as i64, &device);
    let query = places.clone().reshape([1, 1, seq, 1]).expand([1, 1, seq, seq]);
    let key = places.reshape([1, 1, 1, seq]).expand([1, 1, seq, seq]);
    let mut hidden = (query - key).abs().greater_elem(reach as i64);
    if let Some(mask) = &input.attention_mask {
        hidden = either(hidden, padding(mask.clone()));
    }
    if let Some(segments) = &input.segment_ids {
        hidden = either(hidden, across_segments(segments.clone(), 0));
    }
    Some(AttentionMask::new(hidden, true))
}

/// Every query sees every token of another text that is not padding.
///
/// # Shapes
/// - attention_mask: `[batch, kv_len]` of the other text
/// - covers `[batch, 1, q_len, kv_len]`
pub fn across(attention_mask: Option<&Tensor<2, Int>>, q_len: usize) -> Option<AttentionMask> {
    attention_mask.map(|mask| {
        let [batch, kv_len] = mask.dims();
        AttentionMask::new(padding(mask.clone()).expand([batch, 1, q_len, kv_len]), true)
    })
}

/// Every token that is not padding sees every other one. Padding sees all alike: DeBERTa's rule, in which no query is
/// without a key.
pub fn mutual(input: &ModelInput) -> Option<AttentionMask> {
    let hidden = input.attention_mask.clone().map(|mask| {
        let [batch, total] = mask.dims();
        let query = mask.clone().equal_elem(0).reshape([batch, 1, total, 1]);
        either(query, padding(mask))
    });
    let apart = input.segment_ids.clone().map(|it| across_segments(it, 0));
    let hidden = match (hidden, apart) {
        (Some(a), Some(b)) => Some(either(a, b)),
        (a, b) => a.or(b),
    };
    hidden.map(|it| AttentionMask::new(it, false))
}

/// `[batch, total]` to `[batch, 1, 1, total]`, true where a key is padding.
fn padding(mask: Tensor<2, Int>) -> Tensor<4, Bool> {
    let [batch, total] = mask.dims();
    mask.equal_elem(0).reshape([batch, 1, 1, total])
}

/// `[batch, seq]` to `[batch, 1, seq, past + seq]`, true where query and key belong to different documents. The past
/// and what belongs to [`EVERYONE`] is seen by all.
fn across_segments(segments: Tensor<2, Int>, past: usize) -> Tensor<4, Bool> {
    let [batch, seq] = segments.dims();
    let total = past + seq;
    let everyone = Tensor::full([batch, past], EVERYONE, &segments.device());
    let keys = if past > 0 { Tensor::cat(vec![everyone, segments.clone()], 1) } else { segments.clone() };
    let query = segments.reshape([batch, 1, seq, 1]).expand([batch, 1, seq, total]);
    let key = keys.reshape([batch, 1, 1, total]).expand([batch, 1, seq, total]);
    query.not_equal(key.clone()).bool_and(key.not_equal_elem(EVERYONE))
}

fn either(a: Tensor<4, Bool>, b: Tensor<4, Bool>) -> Tensor<4, Bool> {
    let (left, right) = (a.dims(), b.dims());
    let shape: [usize; 4] = std::array::from_fn(|axis| left[axis].max(right[axis]));
    a.expand(shape).bool_or(b.expand(shape))
}
