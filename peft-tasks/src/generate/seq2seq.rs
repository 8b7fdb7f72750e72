//! Targets from a model that reads a source: token by token, or by beam search.

use burn::tensor::{Device, Int, Tensor};
use peft_core::{Adaptable, PeftError, Result, forward, nn};
use peft_models::{Encoded, ModelInput, Seq2SeqCache, Seq2SeqLm};

use crate::data::tensors::{grid, line};
use crate::generate::beams::{Beams, Step};
use crate::generate::config::GenerationPlan;
use crate::generate::room::Room;
use crate::generate::sampling::Sampler;

/// Writes a target for every row of a source. Returns the new tokens of each row, the end token included, the start
/// token not.
///
/// `on_token` sees each token as it comes, row and token; beam search knows them at the end only.
///
/// # Errors
/// If nobody names the token that a target starts with, it has no row in the embedding matrix, or the plan or the model's
/// positions leave no room for a token.
pub fn generate_targets<M: Seq2SeqLm + Adaptable>(
    model: &M,
    source: &ModelInput,
    plan: &GenerationPlan,
    device: &Device,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let model = nn::eval(model);
    let start = plan.decoder_start.or_else(|| model.decoder_start()).or(plan.bos).ok_or_else(|| {
        PeftError::config("decoder_start_token_id", "is neither in generation_config.json nor in config.json")
    })?;
    let room = Room::of(&model.spec());
    let [rows, length] = source.dims();
    room.check_tokens([start])?;
    room.check_length("the source", length + forward::virtual_tokens(&model))?;
    let budget = room.budget(1, forward::prefix_positions(&model), plan)?;
    let mut decoder = Decoder::new(&model, source, device);
    if plan.num_beams > 1 {
        let targets = search(&mut decoder, rows, start, budget.tokens, plan)?;
        for (row, target) in targets.iter().enumerate() {
            target.iter().try_for_each(|token| on_token(row, *token))?;
        }
        if targets.iter().any(|it| it.len() == budget.tokens) {
            budget.used_up();
        }
        return Ok(targets);
    }

    let mut samplers: Vec<Sampler> =
        (0..rows).map(|row| Sampler::new(plan, 1, row as u64).ending_within(budget.tokens)).collect();
    let mut texts = vec![vec![start]; rows];
    let mut done = vec![false; rows];
    for _ in 0..budget.tokens {
        let last: Vec<u32> = texts.iter().map(|it| it.last().copied().unwrap_or(start)).collect();
        let mut scores = decoder.step(&last);
        for row in (0..rows).filter(|it| !done[*it]).collect::<Vec<_>>() {
            let token = samplers[row].next(&mut scores[row], &texts[row])?;
            texts[row].push(token);
            done[row] = samplers[row].ends(token);
            on_token(row, token)?;
        }
        if done.iter().all(|it| *it) {
            break;
        }
    }
    if done.contains(&false) {
        budget.used_up();
    }
    Ok(texts.into_iter().map(|text| text[1..].to_vec()).collect())
}

fn search<M: Seq2SeqLm>(
    decoder: &mut Decoder<'_, M>,
    rows: usize,
    start: u32,
    budget: usize,
    plan: &GenerationPlan,
) -> Result<Vec<Vec<u32>>> {
    let mut beams = Beams::new(vec![vec![start]; rows], budget, plan)?;
    decoder.select(&beams.rows());
    loop {
        let scores = decoder.step(&beams.last_tokens());
        match beams.advance(scores)? {
            Step::Go(rows) => decoder.select(&rows),
            Step::Done => break,
        }
    }
    Ok(beams.into_texts())
}

/// The decoder with what it has seen.
struct Decoder<'a, M> {
    model: &'a M,
    source: Encoded,
    tasks: Option<Tensor<1, Int>>,
    cache: Seq2SeqCache,
    device: &'a Device,
}

impl<'a, M: Seq2SeqLm> Decoder<'a, M> {
    fn new(model: &'a M, source: &ModelInput, device: &'a Device) -> Self {
        let tasks = source.task_ids.clone();
        Self { model, source: model.encode(source), tasks, cache: Seq2SeqCache::new(), device }
    }

    /// Scores of what follows the given tokens, one for each row, `[rows][vocab]`.
    fn step(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let rows = tokens.len();
        let input = ModelInput { task_ids: self.tasks.clone(), ..ModelInput::ids(grid(tokens, rows, 1, self.device)) };
        let hidden = self.model.decode(&input, &self.source, Some(&mut self.cache));
        // Virtual tokens of the decoder come out too, in the first step.
        let [_, seq, d_model] = hidden.dims();
        let scores = self.model.head(hidden.narrow(1, seq - 1, 1).reshape([rows, d_model]));
        let vocab = scores.dims()[1];
        let data = scores.into_data().convert::<f32>();
        data.as_slice::<f32>().unwrap_or(&[]).chunks(vocab).map(<[f32]>::to_vec).collect()
    }

    fn select(&mut self, rows: &[usize]) {
        forward::reorder_batch(rows);
        let rows = line(&rows.iter().map(|it| *it as i64).collect::<Vec<_>>(), self.device);
        self.source = self.source.select(rows.clone());
        self.tasks = self.tasks.clone().map(|it| it.select(0, rows.clone()));
        self.cache.select(rows);
    }
}
