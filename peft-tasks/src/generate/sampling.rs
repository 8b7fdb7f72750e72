//! Which token comes next: the likeliest, or one that is drawn.

use peft_core::{PeftError, Result};
use rand_chacha::ChaCha8Rng;

use crate::data::rng;
use crate::generate::config::GenerationPlan;
use crate::generate::{logits, times};

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    plan: GenerationPlan,
    prompt_length: usize,
    budget: Option<usize>,
    generator: ChaCha8Rng,
}

/// What is done to the scores of the next token whether it is drawn or not, in the order of transformers: repetition penalty,
/// n-grams, shortest length, forced tokens, suppressed tokens, and Whisper's rules for times. `budget` bounds the new tokens.
pub(crate) fn process(
    logits: &mut [f32],
    tokens: &[u32],
    prompt_length: usize,
    budget: Option<usize>,
    plan: &GenerationPlan,
) {
    if plan.repetition_penalty != 1.0 {
        logits::repetition_penalty(logits, tokens, plan.repetition_penalty);
    }
    logits::no_repeat_ngram(logits, tokens, plan.no_repeat_ngram_size);
    let new_tokens = tokens.len().saturating_sub(prompt_length);
    if tokens.len() < plan.min_length || new_tokens < plan.min_new_tokens {
        logits::forbid(logits, &plan.eos);
    }
    if let Some(first) = plan.forced_bos.filter(|_| tokens.len() == 1) {
        logits::force(logits, &[first]);
    }
    if !plan.forced_eos.is_empty() && budget == Some(new_tokens + 1) {
        logits::force(logits, &plan.forced_eos);
    }
    // A first token that is forced is none that the text begins with.
    let begin = prompt_length + usize::from(prompt_length == 1 && plan.forced_bos.is_some());
    if tokens.len() == begin {
        logits::forbid(logits, &plan.suppressed_first);
    }
    logits::forbid(logits, &plan.suppressed);
    if let Some(rules) = plan.times {
        times::apply(logits, &tokens[prompt_length.min(tokens.len())..], rules, plan.eos.first().copied());
    }
}

impl Sampler {
    /// A sampler for row `row` of a batch. A row's tokens do not depend on the rows beside it.
    pub fn new(plan: &GenerationPlan, prompt_length: usize, row: u64) -> Self {
        Self { plan: plan.clone(), prompt_length, budget: None, generator: rng::generator(plan.seed, row) }
    }

    /// A sequence that ends after so many new tokens, the last of which may be forced.
    pub fn ending_within(self, budget: usize) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Chooses the token that follows `tokens`, prompt and completion so far, without filling.
    ///
    /// `logits` are changed on the way, in the order of transformers (`GenerationMixin._get_logits_processor`): repetition
    /// penalty, n-grams, shortest length; when sampling temperature, top-k, top-p, min-p.
    ///
    /// # Shapes
    /// - logits: `[vocab]`, the scores of the last position
    ///
    /// # Errors
    /// A logit is not a number or infinite, or every token is forbidden.
    pub fn next(&mut self, logits: &mut [f32], tokens: &[u32]) -> Result<u32> {
        let plan = &self.plan;
        logits::check(logits, &format!("{} tokens", tokens.len()))?;
        process(logits, tokens, self.prompt_length, self.budget, plan);
        let token = match &plan.sampling {
            None => logits::argmax(logits),
            Some(sampling) => {
                if sampling.temperature != 1.0 {
                    logits::temperature(logits, sampling.temperature);
                }
                logits::top_k(logits, sampling.top_k);
                if sampling.top_p < 1.0 {
                    logits::top_p(logits, sampling.top_p);
                }
                if let Some(min_p) = sampling.min_p {
                    logits::min_p(logits, min_p);
                }
                logits::pick(logits, rng::unit(&mut self.generator))
            }
        };
        token.ok_or_else(|| {
            PeftError::Invalid("every token is forbidden; lower `no_repeat_ngram_size` or `min_new_tokens`".to_owned())
        })
    }

    /// Whether a token ends the sequence.
    pub fn ends(&self, token: u32) -> bool {
        self.plan.eos.contains(&token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::config::GenerationConfig;

    fn config(json: &str) -> GenerationConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_order_is_that_of_transformers() {
        // LogitsProcessorList([RepetitionPenalty(1.2), NoRepeatNGram(2), MinNewTokensLength(5, 3, [4]),
        // Temperature(0.8), TopK(5), TopP(0.9), MinP(0.02)]) of transformers 5.23 on these logits and tokens.
        let config = config(
            r#"{"do_sample": true, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 3,
                "eos_token_id": 4, "temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.02}"#,
        );
        let mut logits = [1.5, -0.5, 3.0, 0.25, 3.0, -2.0, 0.75, 2.5];
        let token = Sampler::new(&config.plan().unwrap(), 5, 0).next(&mut logits, &[2, 5, 2, 7, 9, 2]).unwrap();
        let out = f32::NEG_INFINITY;
        let expected = [1.875, out, 3.125, out, out, out, 0.9375, out];
        assert!(logits.iter().zip(expected).all(|(a, b)| *a == b || (a - b).abs() < 1e-6), "{logits:?}");
        assert!([0, 2, 6].contains(&token));
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let config = config(r#"{"do_sample": true, "seed": 5}"#);
        let draw = |row| {
            let mut sampler = Sampler::new(&config.plan().unwrap(), 0, row);
            (0..4000).map(|_| sampler.next(&mut [0.0, 3f32.ln()], &[]).unwrap()).collect::<Vec<_>>()
        };
        let share = draw(0).iter().sum::<u32>() as f64 / 4000.0;
        assert!((share - 0.75).abs() < 0.02, "{share}");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn without_sampling_the_first_of_the_largest_is_taken() {
        let plan =
            config(r#"{"temperature": 0.1, "top_k": 1, "min_new_tokens": 1, "eos_token_id": [0]}"#).plan().unwrap();
        let mut sampler = Sampler::new(&plan, 1, 0);
        assert_eq!(sampler.next(&mut [9.0, 1.0, 2.0, 2.0], &[3]).unwrap(), 2);
        assert_eq!(sampler.next(&mut [9.0, 1.0, 2.0, 2.0], &[3, 2]).unwrap(), 0);
        assert!(sampler.ends(0) && !sampler.ends(2));
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        let mut sampler = Sampler::new(&GenerationConfig::default().plan().unwrap(), 0, 0);
        let error = sampler.next(&mut [0.0, f32::NAN], &[1]).unwrap_err().to_string();
        assert!(error.starts_with("the logit of token 1 is NaN after 1 tokens"), "{error}");
        let error = sampler.next(&mut [f32::NEG_INFINITY], &[]).unwrap_err().to_string();
        assert!(error.starts_with("every token is forbidden"), "{error}");
    }
}
