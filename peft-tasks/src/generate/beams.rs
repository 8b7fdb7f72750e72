//! Beam search, apart from any model. Source: `_beam_search` in `transformers/generation/utils.py` (5.23).
//!
//! Numbers are those of the reference down to its −10⁹ for "impossible", in single precision, so that the same sequences
//! come out where scores are close.

use peft_core::{PeftError, Result};

use crate::generate::config::{EarlyStopping, GenerationPlan};
use crate::generate::logits;
use crate::generate::sampling::process;

const IMPOSSIBLE: f32 = -1e9;

#[derive(Debug, Clone)]
struct Text {
    tokens: Vec<u32>,
    score: f32,
    ended: bool,
}

/// The beams of one row.
#[derive(Debug, Clone)]
struct Row {
    /// Number of tokens that were there before.
    prompt: usize,
    running: Vec<Text>,
    ended: Vec<Text>,
    may_improve: bool,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// The rows, among those of the last scores, that the running sequences go on from.
    Go(Vec<usize>),
    /// Nothing better will come.
    Done,
}

/// The state of a search.
#[derive(Debug)]
pub struct Beams {
    rows: Vec<Row>,
    plan: GenerationPlan,
    budget: usize,
}

impl Beams {
    /// A search that goes on with each of the prompts for at most `budget` tokens.
    ///
    /// # Errors
    /// If the plan draws tokens, which beams do not.
    pub fn new(prompts: Vec<Vec<u32>>, budget: usize, plan: &GenerationPlan) -> Result<Self> {
        if plan.sampling.is_some() {
            return Err(PeftError::unsupported("`do_sample` with `num_beams`", "set one of them aside"));
        }
        let beams = plan.num_beams;
        let row = |tokens: Vec<u32>| Row {
            prompt: tokens.len(),
            // All beams are the same at first: only one of them counts, or all would go on being the same.
            running: (0..beams)
                .map(|at| Text { tokens: tokens.clone(), score: if at == 0 { 0.0 } else { IMPOSSIBLE }, ended: false })
                .collect(),
            ended: vec![Text { tokens: tokens.clone(), score: IMPOSSIBLE, ended: false }; beams],
            may_improve: true,
        };
        Ok(Self { rows: prompts.into_iter().map(row).collect(), plan: plan.clone(), budget })
    }

    /// For every beam the row that it belongs to, to spread a batch.
    pub fn rows(&self) -> Vec<usize> {
        (0..self.rows.len()).flat_map(|row| vec![row; self.plan.num_beams]).collect()
    }

    /// The last token of every beam.
    pub fn last_tokens(&self) -> Vec<u32> {
        self.running().map(|it| it.tokens.last().copied().unwrap_or(0)).collect()
    }

    fn running(&self) -> impl Iterator<Item = &Text> {
        self.rows.iter().flat_map(|it| &it.running)
    }

    /// Takes the scores of every beam, `[rows · beams][vocab]`, and chooses what goes on.
    ///
    /// # Errors
    /// If a score is not a number.
    pub fn advance(&mut self, scores: Vec<Vec<f32>>) -> Result<Step> {
        let (plan, beams) = (&self.plan, self.plan.num_beams);
        let mut scores = scores.into_iter();
        let (mut origins, mut all_end) = (Vec::new(), true);
        for (at, row) in self.rows.iter_mut().enumerate() {
            let new_tokens = row.running.first().map_or(0, |it| it.tokens.len() - row.prompt);
            let mut candidates: Vec<(f32, usize, u32)> = Vec::new();
            for (beam, text) in row.running.iter().enumerate() {
                let mut scores = log_softmax(scores.next().unwrap_or_default())?;
                process(&mut scores, &text.tokens, row.prompt, Some(self.budget), plan);
                candidates.extend(scores.iter().enumerate().map(|(it, score)| (score + text.score, beam, it as u32)));
            }
            let keep = (1 + plan.eos.len()).max(2) * beams;
            // Sorting is stable: of equals the first wins.
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
            candidates.truncate(keep);

            let ends = |token: u32| plan.eos.contains(&token) || new_tokens + 1 >= self.budget;
            all_end &= candidates.iter().all(|it| ends(it.2));
            let text_of = |(score, beam, token): (f32, usize, u32), ended| {
                let mut tokens: Vec<u32> = row.running[beam].tokens.clone();
                tokens.push(token);
                Text { tokens, score, ended }
            };

            let full = row.ended.iter().all(|it| it.ended) && plan.early_stopping == EarlyStopping::FirstComplete;
            let per_token = ((new_tokens + 1) as f32).powf(plan.length_penalty);
            let mut merged = row.ended.clone();
            for (rank, candidate) in candidates.iter().enumerate() {
                let ended = ends(candidate.2) && rank < beams;
                let barred = [full, !row.may_improve, !ended].into_iter().filter(|it| *it).count();
                let score = (0..barred).fold(candidate.0 / per_token, |score, _| score + IMPOSSIBLE);
                merged.push(text_of((score, candidate.1, candidate.2), ended));
            }
            merged.sort_by(|a, b| b.score.total_cmp(&a.score));
            merged.truncate(beams);

            let mut going: Vec<(f32, usize, u32)> =
                candidates.iter().map(|it| (if ends(it.2) { it.0 + IMPOSSIBLE } else { it.0 }, it.1, it.2)).collect();
            going.sort_by(|a, b| b.0.total_cmp(&a.0));
            going.truncate(beams);
            origins.extend(going.iter().map(|it| at * beams + it.1));
            let running = going.into_iter().map(|it| text_of(it, false)).collect();
            (row.ended, row.running) = (merged, running);

            let reach = match plan.early_stopping {
                EarlyStopping::Never if plan.length_penalty > 0.0 => self.budget,
                _ => new_tokens + 1,
            };
            let best = row.running[0].score / (reach as f32).powf(plan.length_penalty);
            let worst = row.ended.iter().map(|it| it.score).fold(f32::INFINITY, f32::min);
            row.may_improve &= row.ended.iter().any(|it| best > if it.ended { worst } else { IMPOSSIBLE });
        }
        let improvable = self.rows.iter().any(|it| it.may_improve);
        let complete = plan.early_stopping == EarlyStopping::FirstComplete
            && self.rows.iter().all(|row| row.ended.iter().all(|it| it.ended));
        Ok(if improvable && !complete && !all_end { Step::Go(origins) } else { Step::Done })
    }

    /// What the best sequence of every row adds to its prompt.
    pub fn into_texts(self) -> Vec<Vec<u32>> {
        self.rows.into_iter().map(|mut row| row.ended.swap_remove(0).tokens.split_off(row.prompt)).collect()
    }
}

fn log_softmax(mut scores: Vec<f32>) -> Result<Vec<f32>> {
    logits::check(&scores, "a step of beam search")?;
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|it| (it - largest).exp()).sum();
    let shift = largest + sum.ln();
    scores.iter_mut().for_each(|it| *it -= shift);
    Ok(scores)
}
