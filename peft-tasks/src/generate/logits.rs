//! What is done to the logits of the next token before one is chosen.
//!
//! Each function is one processor of transformers' `generation/logits_process.py`, on the logits `[vocab]` of one
//! sequence. [`Sampler`](crate::generate::sampling::Sampler) calls them in the order of transformers.

use std::cmp::Ordering;

use peft_core::{PeftError, Result};

const NEVER: f32 = f32::NEG_INFINITY;

/// `RepetitionPenaltyLogitsProcessor`: makes tokens that occurred less likely, once each: positive logits are divided
/// by `penalty`, negative ones multiplied. Keskar et al. 2019, <https://arxiv.org/abs/1909.05858>.
pub fn repetition_penalty(logits: &mut [f32], tokens: &[u32], penalty: f32) {
    let mut done = vec![false; logits.len()];
    for token in tokens.iter().map(|it| *it as usize) {
        // The embedding may be larger than the head.
        if token < logits.len() && !done[token] {
            done[token] = true;
            let logit = &mut logits[token];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// `NoRepeatNGramLogitsProcessor`: forbids tokens that would complete a run of `size` tokens which occurred before.
pub fn no_repeat_ngram(logits: &mut [f32], tokens: &[u32], size: usize) {
    if size == 0 || tokens.len() < size {
        return;
    }
    let suffix = &tokens[tokens.len() + 1 - size..];
    for window in tokens.windows(size) {
        let (start, last) = (&window[..size - 1], window[size - 1] as usize);
        if start == suffix && last < logits.len() {
            logits[last] = NEVER;
        }
    }
}

/// `MinNewTokensLengthLogitsProcessor` while the text is too short: forbids `ids`, the end tokens.
pub fn forbid(logits: &mut [f32], ids: &[u32]) {
    for id in ids {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = NEVER;
        }
    }
}

/// `ForcedBOSTokenLogitsProcessor`, `ForcedEOSTokenLogitsProcessor` where their time has come: nothing but `ids` is left.
pub fn force(logits: &mut [f32], ids: &[u32]) {
    logits.iter_mut().for_each(|it| *it = NEVER);
    for id in ids {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = 0.0;
        }
    }
}

/// Refuses scores among which no choice can be made; `when` says where they came up.
///
/// # Errors
/// If one of them is not a number, or infinite.
pub fn check(logits: &[f32], when: &str) -> Result<()> {
    match logits.iter().position(|it| it.is_nan() || *it == f32::INFINITY) {
        Some(token) => Err(PeftError::NotFinite(format!(
            "the logit of token {token} is {} after {when}; the weights are damaged or the number type is too narrow",
            logits[token]
        ))),
        None => Ok(()),
    }
}

/// `TemperatureLogitsWarper`.
pub fn temperature(logits: &mut [f32], temperature: f32) {
    logits.iter_mut().for_each(|it| *it /= temperature);
}

/// `TopKLogitsWarper`: keeps the `k` largest, and all that are as large as the last of them.
pub fn top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    logits.iter_mut().filter(|it| **it < threshold).for_each(|it| *it = NEVER);
}

/// `TopPLogitsWarper`: forbids the least likely tokens whose probabilities add up to at most `1 - p`. The likeliest
/// stays. Holtzman et al. 2020, <https://arxiv.org/abs/1904.09751>.
pub fn top_p(logits: &mut [f32], p: f64) {
    // Tokens that are forbidden already have probability 0: sorting them would change nothing.
    let mut order: Vec<usize> = (0..logits.len()).filter(|it| logits[*it] > NEVER).collect();
    order.sort_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    let sorted: Vec<f32> = order.iter().map(|it| logits[*it]).collect();
    let threshold = (1.0 - p) as f32;
    let mut cumulative = 0.0f64;
    for (token, probability) in order.iter().zip(softmax(&sorted)).take(order.len().saturating_sub(1)) {
        // torch accumulates in double and stores single precision.
        cumulative += f64::from(probability);
        if cumulative as f32 <= threshold {
            logits[*token] = NEVER;
        }
    }
}

/// `MinPLogitsWarper`: forbids tokens less likely than `p` times the likeliest. Nguyen et al. 2024,
/// <https://arxiv.org/abs/2407.01082>.
pub fn min_p(logits: &mut [f32], p: f32) {
    let probabilities = softmax(logits);
    let likeliest = probabilities.iter().copied().fold(0.0, f32::max);
    for (logit, probability) in logits.iter_mut().zip(probabilities) {
        // The second half keeps the likeliest where rounding would take it.
        if probability < p * likeliest && probability < likeliest {
            *logit = NEVER;
        }
    }
}

/// The largest logit's token, the first of equals; `None` when there is none above −∞.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best: Option<usize> = None;
    for (token, logit) in logits.iter().enumerate().filter(|(_, it)| **it > NEVER) {
        if best.is_none_or(|it| logit.partial_cmp(&logits[it]) == Some(Ordering::Greater)) {
            best = Some(token);
        }
    }
    best.map(|it| it as u32)
}

/// The token at `unit`, a number in `[0, 1)`, on the line along which tokens lie with widths that are their
/// probabilities; `None` when all of them are forbidden.
pub fn pick(logits: &[f32], unit: f64) -> Option<u32> {
    let probabilities = softmax(logits);
    let target = unit * probabilities.iter().map(|it| f64::from(*it)).sum::<f64>();
    let (mut cumulative, mut last) = (0.0, None);
    for (token, probability) in probabilities.iter().enumerate().filter(|(_, it)| **it > 0.0) {
        cumulative += f64::from(*probability);
        last = Some(token as u32);
        if cumulative > target {
            break;
        }
    }
    last
}

/// Probabilities; all 0 when every logit is −∞.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(NEVER, f32::max);
    if largest == NEVER {
        return vec![0.0; logits.len()];
    }
    let mut out: Vec<f32> = logits.iter().map(|it| (it - largest).exp()).collect();
    let sum: f32 = out.iter().sum();
    out.iter_mut().for_each(|it| *it /= sum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: transformers 5.23, `generation/logits_process.py`, each class on
    // `torch.tensor([LOGITS])` and `torch.tensor([TOKENS])`, printed with six decimals.
    const LOGITS: [f32; 8] = [1.5, -0.5, 3.0, 0.25, 3.0, -2.0, 0.75, 2.5];
    const TOKENS: [u32; 6] = [2, 5, 2, 7, 9, 2];
    const OUT: f32 = NEVER;

    #[track_caller]
    fn check(change: impl Fn(&mut [f32]), expected: [f32; 8]) {
        let mut logits = LOGITS;
        change(&mut logits);
        for (ours, theirs) in logits.iter().zip(expected) {
            assert!(*ours == theirs || (ours - theirs).abs() < 1e-6, "{logits:?}\n{expected:?}");
        }
    }

    #[test]
    fn repetition() {
        check(|it| repetition_penalty(it, &TOKENS, 1.3), [1.5, -0.5, 2.307692, 0.25, 3.0, -2.6, 0.75, 1.923077]);
        check(|it| repetition_penalty(it, &TOKENS, 0.5), [1.5, -0.5, 6.0, 0.25, 3.0, -1.0, 0.75, 5.0]);
    }

    #[test]
    fn ngrams() {
        check(|it| no_repeat_ngram(it, &TOKENS, 2), [1.5, -0.5, 3.0, 0.25, 3.0, OUT, 0.75, OUT]);
        check(|it| no_repeat_ngram(it, &[1, 2, 3, 4, 1, 2], 3), [1.5, -0.5, 3.0, OUT, 3.0, -2.0, 0.75, 2.5]);
        check(|it| no_repeat_ngram(it, &TOKENS, 1), [1.5, -0.5, OUT, 0.25, 3.0, OUT, 0.75, OUT]);
        check(|it| no_repeat_ngram(it, &TOKENS, 7), LOGITS);
        check(|it| no_repeat_ngram(it, &TOKENS, 0), LOGITS);
    }

    #[test]
    fn warmth() {
        let expected = [2.142857, -0.714286, 4.285714, 0.357143, 4.285714, -2.857143, 1.071429, 3.571429];
        check(|it| temperature(it, 0.7), expected);
    }

    #[test]
    fn the_largest_k_and_their_equals() {
        check(|it| top_k(it, 1), [OUT, OUT, 3.0, OUT, 3.0, OUT, OUT, OUT]);
        check(|it| top_k(it, 3), [OUT, OUT, 3.0, OUT, 3.0, OUT, OUT, 2.5]);
        check(|it| top_k(it, 20), LOGITS);
    }

    #[test]
    fn the_nucleus() {
        check(|it| top_p(it, 0.0), [OUT, OUT, OUT, OUT, 3.0, OUT, OUT, OUT]);
        check(|it| top_p(it, 0.3), [OUT, OUT, OUT, OUT, 3.0, OUT, OUT, OUT]);
        check(|it| top_p(it, 0.9), [1.5, OUT, 3.0, OUT, 3.0, OUT, OUT, 2.5]);
        check(|it| top_p(it, 0.95), [1.5, OUT, 3.0, OUT, 3.0, OUT, 0.75, 2.5]);
    }

    #[test]
    fn relative_to_the_likeliest() {
        check(|it| min_p(it, 0.05), [1.5, OUT, 3.0, 0.25, 3.0, OUT, 0.75, 2.5]);
        check(|it| min_p(it, 0.3), [OUT, OUT, 3.0, OUT, 3.0, OUT, OUT, 2.5]);
        check(|it| min_p(it, 1.0), [OUT, OUT, 3.0, OUT, 3.0, OUT, OUT, OUT]);
    }

    #[test]
    fn choices() {
        assert_eq!(argmax(&LOGITS), Some(2));
        assert_eq!(argmax(&[OUT, OUT]), None);
        assert_eq!(pick(&[OUT, OUT], 0.5), None);
        // Probabilities 1/4, 0, 3/4.
        let logits = [0.0, OUT, 3f32.ln()];
        let picks = [0.0, 0.2499, 0.2501, 0.9999].map(|it| pick(&logits, it));
        assert_eq!(picks, [Some(0), Some(0), Some(2), Some(2)]);
        // Tokens outside the head leave it alone.
        check(|it| forbid(it, &[1, 99]), [1.5, OUT, 3.0, 0.25, 3.0, -2.0, 0.75, 2.5]);
    }
}
