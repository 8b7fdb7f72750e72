//! Attention masks, built once per forward and shared by all layers.

use std::collections::BTreeMap;

use burn::tensor::{Bool, Int, Tensor};
use peft_core::ops::AttentionMask;

use crate::input::ModelInput;
use crate::prompt::EVERYONE;

/// A query sees itself and what came before, within `window` tokens where there is one.
///
/// # Shapes
/// - covers `[batch or 1, 1, seq, past + seq]`
pub fn causal(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    let may_be_blind = input.attention_mask.is_some() || input.segment_ids.is_some();
    Some(AttentionMask::new(hidden_from_causal(input, past, window)?, may_be_blind))
}

/// As [`causal`], except for queries of padding that may see nothing: see [`AttentionMask::added`].
pub fn causal_added(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    Some(AttentionMask::added(hidden_from_causal(input, past, window)?))
}

/// What stands before `begins` is seen by all, what follows as by [`causal`]; padding sees only a prefix, and without one
/// nothing, which gives the mean of all values: the mask of the first ChatGLM.
///
/// # Shapes
/// - begins: `[batch]`, columns of `past + seq`
pub fn causal_behind(input: &ModelInput, past: usize, begins: Tensor<1, Int>) -> AttentionMask {
    let ([_, seq], [batch]) = (input.dims(), begins.dims());
    let total = past + seq;
    let shape = [batch, 1, seq, total];
    let key = Tensor::<1, Int>::arange(0..total as i64, &input.device()).reshape([1, 1, 1, total]).expand(shape);
    let written = key.clone().greater_equal(begins.reshape([batch, 1, 1, 1]).expand(shape));
    let hidden = after_or_far(input, past, None).expand(shape).bool_and(written);
    let mut hidden = and_foreign(hidden, input, past);
    if let Some(mask) = &input.attention_mask {
        let text = key.greater_equal_elem(past as i64);
        hidden = hidden.bool_or(padded_queries(mask.clone(), seq).expand(shape).bool_and(text));
    }
    AttentionMask::new(hidden, false)
}

/// As [`causal`], except that padding sees everything: the mask of the later ChatGLMs.
pub fn causal_but_padding(input: &ModelInput, past: usize) -> Option<AttentionMask> {
    let mut hidden = hidden_from_causal(input, past, None)?;
    if let Some(mask) = input.attention_mask.as_ref().filter(|_| past == 0) {
        let shape = hidden.dims();
        hidden = hidden.bool_and(padded_queries(mask.clone(), shape[2]).bool_not().expand(shape));
    }
    Some(AttentionMask::new(hidden, false))
}

/// `[batch, total]` to `[batch, 1, seq, 1]`, true where a query is padding.
fn padded_queries(mask: Tensor<2, Int>, seq: usize) -> Tensor<4, Bool> {
    let [batch, total] = mask.dims();
    mask.narrow(1, total - seq, seq).equal_elem(0).reshape([batch, 1, seq, 1])
}

/// The mask of GPT-Neo, where each layer hides what its window hides, then adds the causal mask with the padding to that.
///
/// Nothing comes of hiding a key twice but this: a query of padding that may see nothing gives the mean of the values
/// that are hidden once. Source: `GPTNeoSelfAttention._attn` of `modeling_gpt_neo.py`.
pub fn causal_twice(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    if input.attention_mask.is_none() {
        return Some(AttentionMask::added(hidden_from_causal(input, past, window)?));
    }
    let first = after_or_far(input, past, window);
    let then = hidden_from_causal(input, past, None).unwrap_or_else(|| first.zeros_like());
    Some(AttentionMask::added_twice(first, then))
}

/// One mask for every width that some layer has.
pub fn per_window<M>(windows: &[Option<usize>], mask: impl Fn(Option<usize>) -> M) -> BTreeMap<Option<usize>, M> {
    let mut masks = BTreeMap::new();
    for window in windows {
        masks.entry(*window).or_insert_with(|| mask(*window));
    }
    masks
}

/// True where a query may not see a key, `[batch or 1, 1, seq, past + seq]`; none if every query sees every key.
pub(crate) fn hidden_from_causal(input: &ModelInput, past: usize, window: Option<usize>) -> Option<Tensor<4, Bool>> {
    let [_, seq] = input.dims();
    let total = past + seq;
    if seq == 1 && input.attention_mask.is_none() && input.segment_ids.is_none() && window.is_none_or(|it| it >= total)
    {
        return None;
    }
    Some(and_foreign(after_or_far(input, past, window), input, past))
}

/// Hides padding and the tokens of other documents too.
fn and_foreign(mut hidden: Tensor<4, Bool>, input: &ModelInput, past: usize) -> Tensor<4, Bool> {
    if let Some(mask) = &input.attention_mask {
        hidden = either(hidden, padding(mask.clone()));
    }
    if let Some(segments) = &input.segment_ids {
        hidden = either(hidden, across_segments(segments.clone(), past));
    }
    hidden
}

/// True where a key comes after a query or lies beyond its window, `[1, 1, seq, past + seq]`.
pub(crate) fn after_or_far(input: &ModelInput, past: usize, window: Option<usize>) -> Tensor<4, Bool> {
    let [_, seq] = input.dims();
    let total = past + seq;
    let device = input.device();
    let query = Tensor::<1, Int>::arange(past as i64..total as i64, &device).reshape([1, 1, seq, 1]);
    let key = Tensor::<1, Int>::arange(0..total as i64, &device).reshape([1, 1, 1, total]);
    let (query, key) = (query.expand([1, 1, seq, total]), key.expand([1, 1, seq, total]));
    let after = key.clone().greater(query.clone());
    match window {
        // Visible are `window` keys, the query's own among them.
        Some(window) => after.bool_or(key.lower_equal(query.sub_scalar(window as i64))),
        None => after,
    }
}

/// Every query sees every token that is not padding, and the prefix of `past` positions.
pub fn bidirectional(input: &ModelInput, past: usize) -> Option<AttentionMask> {
    let [_, seq] = input.dims();
    let hidden = input.attention_mask.clone().map(|mask| {
        let [batch, total] = mask.dims();
        padding(mask).expand([batch, 1, seq, total])
    });
    let apart = input.segment_ids.clone().map(|it| across_segments(it, past));
    hidden.into_iter().chain(apart).reduce(either).map(|it| AttentionMask::new(it, true))
}

/// Every query sees the tokens at most `reach` away that are not padding.
pub fn nearby(input: &ModelInput, reach: usize) -> Option<AttentionMask> {
    let [_, seq] = input.dims();
    let device = input.device();
    let places = Tensor::<1, Int>::arange(0..seq as i64, &device);
    let query = places.clone().reshape([1, 1, seq, 1]).expand([1, 1, seq, seq]);
    let key = places.reshape([1, 1, 1, seq]).expand([1, 1, seq, seq]);
    let hidden = and_foreign((query - key).abs().greater_elem(reach as i64), input, 0);
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
    hidden.into_iter().chain(apart).reduce(either).map(|it| AttentionMask::new(it, false))
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

/// ALiBi: what each head adds to its scores, a slope times the position of the key.
///
/// Only differences between keys count in a softmax, so that this says "farther is less" for every query. Positions do
/// not count padding. Source: `build_alibi_tensor` of `modeling_bloom.py`; paper: Press et al. 2021.
///
/// # Shapes
/// - output: `[batch or 1, heads, 1, past + seq]`
pub fn alibi(input: &ModelInput, past: usize, heads: usize) -> Tensor<4> {
    let device = input.device();
    let positions = match &input.attention_mask {
        Some(mask) => mask.clone().cumsum(1).sub_scalar(1) * mask.clone(),
        None => Tensor::<1, Int>::arange(0..(past + input.dims()[1]) as i64, &device).unsqueeze(),
    };
    let [rows, total] = positions.dims();
    let slopes = Tensor::<1>::from_floats(alibi_slopes(heads).as_slice(), &device).reshape([1, heads, 1, 1]);
    positions.float().reshape([rows, 1, 1, total]) * slopes
}

/// A geometric series for a power of two; other counts fill up with every other member of the series of twice as many.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let series =
        |count: usize, step: usize| (0..).map(move |at| (-8.0 / count as f64 * (1 + step * at) as f64).exp2() as f32);
    let power = heads.max(1).next_power_of_two() / if heads.is_power_of_two() { 1 } else { 2 };
    series(power, 1).take(power).chain(series(2 * power, 2).take(heads - power)).collect()
}

fn either(a: Tensor<4, Bool>, b: Tensor<4, Bool>) -> Tensor<4, Bool> {
    let (left, right) = (a.dims(), b.dims());
    let shape: [usize; 4] = std::array::from_fn(|axis| left[axis].max(right[axis]));
    a.expand(shape).bool_or(b.expand(shape))
}
