//! Targets from a model that reads a source: token by token, or by beam search.

use std::marker::PhantomData;

use burn::tensor::{Device, Int, Tensor};
use peft_core::{Adaptable, PeftError, Result, forward, nn};
use peft_models::{Encoded, EncoderInput, ModelInput, Seq2SeqCache, Seq2SeqLm};

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
/// If nobody names the token that a target starts with, it has no row in the embedding matrix, the encoder reads no such
/// source, or the plan or the model's positions leave no room for a token.
pub fn generate_targets<S: EncoderInput, M: Seq2SeqLm<S> + Adaptable>(
    model: &M,
    source: &S,
    plan: &GenerationPlan,
    device: &Device,
    on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let model = nn::eval(model);
    let start = start_token(&model, plan)?;
    model.check_source(source)?;
    if let Some(tokens) = source.tokens() {
        Room::of(&model.spec()).check_length("the source", tokens + forward::virtual_tokens(&model))?;
    }
    let prompts = vec![vec![start]; source.rows()];
    let decoder = Decoder::new(&model, source, device);
    write_targets(decoder, &prompts, plan, on_token)
}

/// The token that a target starts with.
pub(crate) fn start_token<S: EncoderInput, M: Seq2SeqLm<S>>(model: &M, plan: &GenerationPlan) -> Result<u32> {
    plan.decoder_start.or_else(|| model.decoder_start()).or(plan.bos).ok_or_else(|| {
        PeftError::config("decoder_start_token_id", "is neither in generation_config.json nor in config.json")
    })
}

/// Goes on with the beginnings of targets, which must be of one length. Returns the new tokens of each row.
pub(crate) fn write_targets<S: EncoderInput, M: Seq2SeqLm<S> + Adaptable>(
    mut decoder: Decoder<'_, S, M>,
    prompts: &[Vec<u32>],
    plan: &GenerationPlan,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let (model, rows) = (decoder.model, prompts.len());
    let length = prompts.first().map_or(0, Vec::len);
    if length == 0 || prompts.iter().any(|it| it.len() != length) {
        return Err(PeftError::Invalid("targets must all begin with as many tokens, and with at least one".to_owned()));
    }
    let room = Room::of(&model.spec());
    room.check_tokens(prompts.iter().flatten().copied())?;
    let budget = room.budget(length, forward::prefix_positions(model), plan)?;
    if plan.num_beams > 1 {
        let targets = search(&mut decoder, prompts, budget.tokens, plan)?;
        for (row, target) in targets.iter().enumerate() {
            target.iter().try_for_each(|token| on_token(row, *token))?;
        }
        if targets.iter().any(|it| it.len() == budget.tokens) {
            budget.used_up();
        }
        return Ok(targets);
    }

    let mut samplers: Vec<Sampler> =
        (0..rows).map(|row| Sampler::new(plan, length, row as u64).ending_within(budget.tokens)).collect();
    let mut texts = prompts.to_vec();
    let mut done = vec![false; rows];
    let mut read = length;
    for _ in 0..budget.tokens {
        let mut scores = decoder.step(&last_of(&texts, read));
        read = 1;
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
    Ok(texts.into_iter().map(|text| text[length..].to_vec()).collect())
}

/// The last tokens of every text; one that has ended goes on to be read for the sake of the others.
fn last_of(texts: &[Vec<u32>], count: usize) -> Vec<&[u32]> {
    texts.iter().map(|it| &it[it.len() - count..]).collect()
}

fn search<S: EncoderInput, M: Seq2SeqLm<S>>(
    decoder: &mut Decoder<'_, S, M>,
    prompts: &[Vec<u32>],
    budget: usize,
    plan: &GenerationPlan,
) -> Result<Vec<Vec<u32>>> {
    let mut beams = Beams::new(prompts.to_vec(), budget, plan)?;
    let rows = beams.rows();
    decoder.select(&rows);
    let mut scores = decoder.step(&rows.iter().map(|row| prompts[*row].as_slice()).collect::<Vec<_>>());
    while let Step::Go(rows) = beams.advance(scores)? {
        decoder.select(&rows);
        scores = decoder.step(&beams.last_tokens().iter().map(std::slice::from_ref).collect::<Vec<_>>());
    }
    Ok(beams.into_texts())
}

/// A decoder with its source, and what it has seen of a target.
pub(crate) struct Decoder<'a, S, M> {
    model: &'a M,
    source: Encoded,
    tasks: Option<Tensor<1, Int>>,
    cache: Seq2SeqCache,
    device: &'a Device,
    reads: PhantomData<S>,
}

impl<S, M> Clone for Decoder<'_, S, M> {
    fn clone(&self) -> Self {
        let Self { source, tasks, cache, .. } = self;
        Self { source: source.clone(), tasks: tasks.clone(), cache: cache.clone(), ..*self }
    }
}

impl<'a, S: EncoderInput, M: Seq2SeqLm<S>> Decoder<'a, S, M> {
    /// One that has read the source, which must have been checked.
    pub(crate) fn new(model: &'a M, source: &S, device: &'a Device) -> Self {
        let (tasks, encoded) = (source.task_ids(), model.encode(source));
        Self { model, source: encoded, tasks, cache: Seq2SeqCache::new(), device, reads: PhantomData }
    }

    /// Scores of what follows the given tokens, as many for each row, `[rows][vocab]`.
    pub(crate) fn step(&mut self, tokens: &[&[u32]]) -> Vec<Vec<f32>> {
        let (rows, width) = (tokens.len(), tokens.first().map_or(0, |it| it.len()));
        let ids = ModelInput::ids(grid(&tokens.concat(), rows, width, self.device));
        let input = ModelInput { task_ids: self.tasks.clone(), ..ids };
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
