//! Attention masks, built once per forward and shared by all layers.

use std::collections::BTreeMap;

use burn::tensor::{Bool, Int, Tensor};
use peft_core::ops::{AttentionMask, Visibility};

use crate::common::input::ModelInput;

/// A query sees itself and what came before, within `window` tokens where there is one.
pub fn causal(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    let may_be_fully_masked = input.attention_mask.is_some() || input.segment_ids.is_some();
    Some(AttentionMask::new(causal_sight(input, past, window)?, may_be_fully_masked))
}

/// As [`causal`], except for queries of padding that may see nothing: see [`AttentionMask::added`].
pub fn causal_added(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    Some(AttentionMask::added(causal_sight(input, past, window)?))
}

/// What stands before `begins` is seen by all, what follows as by [`causal`]; padding sees only a prefix, and without one
/// nothing, which gives the mean of all values: the mask of the first ChatGLM.
///
/// # Shapes
/// - begins: `[batch]`, columns of `past + seq`
pub fn causal_behind(input: &ModelInput, past: usize, begins: Tensor<1, Int>) -> AttentionMask {
    let ([_, seq], [batch]) = (input.dims(), begins.dims());
    let after = Tensor::<1, Int>::arange((past + 1) as i64..(past + seq + 1) as i64, &input.device());
    let mut end =
        after.reshape([1, seq]).expand([batch, seq]).max_pair(begins.reshape([batch, 1]).expand([batch, seq]));
    if let Some(mask) = &input.attention_mask {
        end = end.mask_fill(padded_queries(mask.clone(), seq), past as i64);
    }
    AttentionMask::new(apart(Visibility::between(end.zeros_like(), end), input, past), false)
}

/// As [`causal`], except that padding sees everything: the mask of the later ChatGLMs.
pub fn causal_but_padding(input: &ModelInput, past: usize) -> Option<AttentionMask> {
    let sight = causal_sight(input, past, None)?;
    let Some(mask) = input.attention_mask.as_ref().filter(|_| past == 0) else {
        return Some(AttentionMask::new(sight, false));
    };
    let [batch, seq] = input.dims();
    let padded = padded_queries(mask.clone(), seq);
    let after = Tensor::<1, Int>::arange(1..seq as i64 + 1, &input.device());
    let end = after.reshape([1, seq]).expand([batch, seq]).mask_fill(padded.clone(), seq as i64);
    let (queries, keys) = documents(input, past).expect("a mask tells documents from padding");
    let queries = queries.expand([batch, seq]).mask_fill(padded, Visibility::EVERYTHING);
    Some(AttentionMask::new(Visibility::between(end.zeros_like(), end).within(queries, keys), false))
}

/// `[batch, total]` to `[batch, seq]`, true where a query is padding.
fn padded_queries(mask: Tensor<2, Int>, seq: usize) -> Tensor<2, Bool> {
    let [_, total] = mask.dims();
    mask.narrow(1, total - seq, seq).equal_elem(0)
}

/// The mask of GPT-Neo, where each layer hides what its window hides, then adds the causal mask with the padding to that.
///
/// Nothing comes of hiding a key twice but this: a query of padding that may see nothing gives the mean of the values
/// that are hidden once. Source: `GPTNeoSelfAttention._attn` of `modeling_gpt_neo.py`.
pub fn causal_twice(input: &ModelInput, past: usize, window: Option<usize>) -> Option<AttentionMask> {
    if input.attention_mask.is_none() {
        return Some(AttentionMask::added(causal_sight(input, past, window)?));
    }
    let first = before(input, past, window);
    Some(AttentionMask::added_twice(first, causal_sight(input, past, None).unwrap_or_default()))
}

/// One mask for every width that some layer has.
pub fn per_window<M>(windows: &[Option<usize>], mask: impl Fn(Option<usize>) -> M) -> BTreeMap<Option<usize>, M> {
    let mut masks = BTreeMap::new();
    for window in windows {
        masks.entry(*window).or_insert_with(|| mask(*window));
    }
    masks
}

/// Whom a query sees that sees itself and what came before; none if that is everyone.
fn causal_sight(input: &ModelInput, past: usize, window: Option<usize>) -> Option<Visibility> {
    let [_, seq] = input.dims();
    let total = past + seq;
    if seq == 1 && input.attention_mask.is_none() && input.segment_ids.is_none() && window.is_none_or(|it| it >= total)
    {
        return None;
    }
    Some(apart(before(input, past, window), input, past))
}

/// A query and what came before it. Visible are `window` keys, the query's own among them.
fn before(input: &ModelInput, past: usize, window: Option<usize>) -> Visibility {
    let [_, seq] = input.dims();
    Visibility::around(past..past + seq, window, 0, &input.device())
}

/// Hides padding and the tokens of other documents too.
fn apart(sight: Visibility, input: &ModelInput, past: usize) -> Visibility {
    match documents(input, past) {
        Some((queries, keys)) => sight.within(queries, keys),
        None => sight,
    }
}

/// To which document queries and keys belong, `[batch or 1, seq or 1]` and `[batch, past + seq]`; none if all belong to
/// one. The past belongs to everyone, padding to nobody.
fn documents(input: &ModelInput, past: usize) -> Option<(Tensor<2, Int>, Tensor<2, Int>)> {
    let Some(segments) = &input.segment_ids else {
        return input.attention_mask.clone().map(kept);
    };
    let [batch, _] = segments.dims();
    let mut keys = segments.clone();
    if past > 0 {
        keys = Tensor::cat(vec![Tensor::full([batch, past], Visibility::EVERYONE, &segments.device()), keys], 1);
    }
    if let Some(mask) = &input.attention_mask {
        keys = keys.mask_fill(mask.clone().equal_elem(0), Visibility::NOBODY);
    }
    Some((segments.clone(), keys))
}

/// The documents of a text with padding, `[batch, total]`: one for all queries, `[1, 1]`, and those of the keys.
fn kept(mask: Tensor<2, Int>) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let everyone = mask.full_like(Visibility::EVERYONE);
    (Tensor::zeros([1, 1], &mask.device()), everyone.mask_fill(mask.equal_elem(0), Visibility::NOBODY))
}

/// Every query sees every token that is not padding, and the prefix of `past` positions.
pub fn bidirectional(input: &ModelInput, past: usize) -> Option<AttentionMask> {
    let (queries, keys) = documents(input, past)?;
    Some(AttentionMask::new(Visibility::default().within(queries, keys), true))
}

/// Every query sees the tokens at most `reach` away that are not padding.
pub fn nearby(input: &ModelInput, reach: usize) -> Option<AttentionMask> {
    let [_, seq] = input.dims();
    let sight = Visibility::around(0..seq, Some(reach + 1), reach, &input.device());
    Some(AttentionMask::new(apart(sight, input, 0), true))
}

/// Every query sees every token of another text that is not padding.
///
/// # Shapes
/// - attention_mask: `[batch, kv_len]` of the other text
pub fn across(attention_mask: Option<&Tensor<2, Int>>) -> Option<AttentionMask> {
    let (queries, keys) = kept(attention_mask?.clone());
    Some(AttentionMask::new(Visibility::default().within(queries, keys), true))
}

/// Every token that is not padding sees every other one. Padding sees all alike: DeBERTa's rule, in which no query is
/// without a key.
pub fn mutual(input: &ModelInput) -> Option<AttentionMask> {
    let (queries, keys) = documents(input, 0)?;
    let sight = match &input.attention_mask {
        Some(mask) => {
            let end = mask.clone().not_equal_elem(0).int().mul_scalar(mask.dims()[1] as i64);
            Visibility::between(end.zeros_like(), end)
        }
        None => Visibility::default(),
    };
    Some(AttentionMask::new(sight.within(queries, keys), false))
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
    let positions = match (&input.position_ids, &input.attention_mask) {
        // Texts that share a row are as far from what stands before all of them as in rows of their own.
        (Some(positions), _) if input.segment_ids.is_some() => {
            let before = (past > 0).then(|| {
                let before = Tensor::<1, Int>::arange(0..past as i64, &device).unsqueeze::<2>();
                before.expand([positions.dims()[0], past])
            });
            Tensor::cat(before.into_iter().chain([positions.clone()]).collect(), 1)
        }
        (_, Some(mask)) => mask.clone().cumsum(1).sub_scalar(1) * mask.clone(),
        (_, None) => Tensor::<1, Int>::arange(0..(past + input.dims()[1]) as i64, &device).unsqueeze(),
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
