//! How Whisper writes times between words.
//!
//! Source: `WhisperTimeStampLogitsProcessor` of `transformers/generation/logits_process.py` (5.23).

use crate::generate::config::TimeRules;

const NEVER: f32 = f32::NEG_INFINITY;

/// Forbids what the rules do not allow to follow `written`, the tokens behind the prompt: times come in pairs, an end and a
/// beginning, and never go back. Where all times together are likelier than any word, a time is written.
pub(crate) fn apply(logits: &mut [f32], written: &[u32], rules: TimeRules, end: Option<u32>) {
    let first = (rules.first() as usize).min(logits.len());
    if let Some(logit) = logits.get_mut(rules.no_times as usize) {
        *logit = NEVER;
    }
    let is_time = |token: &u32| *token >= rules.first();
    let last_is = written.last().is_some_and(is_time);
    let before_is = written.len() < 2 || is_time(&written[written.len() - 2]);
    match (last_is, before_is) {
        (true, true) => logits[first..].fill(NEVER),
        (true, false) => {
            let words = end.map_or(0, |it| it as usize).min(logits.len());
            logits[..words].fill(NEVER);
        }
        (false, _) => {}
    }
    if let Some(last) = written.iter().rfind(|it| is_time(it)) {
        // The second of a pair may be as the first.
        let earliest = *last as usize + usize::from(!last_is || before_is);
        let earliest = earliest.min(logits.len());
        logits[first..earliest].fill(NEVER);
    }
    if written.is_empty() {
        logits[..first].fill(NEVER);
        if let Some(latest) = rules.latest_first {
            let beyond = (first + latest as usize + 1).min(logits.len());
            logits[beyond..].fill(NEVER);
        }
    }
    let largest = |it: &[f32]| it.iter().copied().fold(NEVER, f32::max);
    let (word, time) = (largest(&logits[..first]), largest(&logits[first..]));
    if time == NEVER {
        return;
    }
    // Both are shifted by the same sum of all, which so does not count.
    let all = time + logits[first..].iter().map(|it| (it - time).exp()).sum::<f32>().ln();
    if all > word {
        logits[..first].fill(NEVER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: TimeRules = TimeRules { no_times: 4, latest_first: Some(1) };

    /// What is allowed of 4 words, the last of which ends texts, `<|notimestamps|>` and 5 times.
    fn allowed(logits: [f32; 10], written: &[u32]) -> Vec<usize> {
        let mut logits = logits;
        apply(&mut logits, written, RULES, Some(3));
        (0..10).filter(|it| logits[*it] > NEVER).collect()
    }

    /// `WhisperTimeStampLogitsProcessor(config, begin_index=2)` of transformers 5.23 on the same scores.
    #[test]
    fn times_come_in_pairs_and_never_go_back() {
        let words = [9.0, 8.0, 7.0, 6.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(allowed(words, &[]), [5, 6]);
        assert_eq!(allowed(words, &[6]), [0, 1, 2, 3]);
        assert_eq!(allowed(words, &[6, 0]), [0, 1, 2, 3, 7, 8, 9]);
        assert_eq!(allowed(words, &[6, 0, 7]), [3, 7, 8, 9]);
        assert_eq!(allowed(words, &[6, 0, 7, 7]), [0, 1, 2, 3]);
        assert_eq!(allowed(words, &[6, 0, 7, 7, 1]), [0, 1, 2, 3, 8, 9]);
    }

    #[test]
    fn times_that_are_likelier_together_than_any_word_are_written() {
        let times = [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        assert_eq!(allowed(times, &[6, 0]), [7, 8, 9]);
        assert_eq!(allowed([2.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0], &[6, 0]), [0, 1, 2, 3, 7, 8, 9]);
    }
}
