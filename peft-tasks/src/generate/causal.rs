//! Text from a causal language model, token by token or by beam search, with a cache of keys and values.

use burn::tensor::{Device, Int, Tensor};
use peft_core::{Adaptable, PeftError, Result, forward, nn};
use peft_models::{CausalLm, KvCache, ModelInput, Tokens};

use crate::data::tensors::{grid, line};
use crate::generate::beams::{Beams, Step};
use crate::generate::config::GenerationPlan;
use crate::generate::room::Room;
use crate::generate::sampling::Sampler;

/// Continues every prompt. Returns the new tokens of each row, the end token included.
///
/// Rows may differ in length; what a row gets does not depend on the others. `on_token` sees each token as it comes, row
/// and token; beam search knows them at the end only.
///
/// A model with a table of positions ends with its last one, and that is logged.
///
/// # Errors
/// If there is no prompt, a prompt is empty, a token has no row in the embedding matrix, or the plan or the model's
/// positions leave no room for a token; or there is a beam search beside an activated LoRA.
pub fn generate<M: CausalLm + Adaptable>(
    model: &M,
    prompts: &[Vec<u32>],
    plan: &GenerationPlan,
    device: &Device,
    on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    generate_behind(model, prompts, None, plan, device, on_token)
}

/// What a model reads in the place of tokens: of ids `[rows, seq]`, vectors `[rows, seq, d_model]`.
pub(crate) type Embed<'a> = &'a dyn Fn(Tensor<2, Int>) -> ModelInput;

/// The same as [`generate`], where `embed` says what is read in the place of the prompts' tokens: a picture stands there.
pub(crate) fn generate_behind<M: CausalLm + Adaptable>(
    model: &M,
    prompts: &[Vec<u32>],
    embed: Option<Embed<'_>>,
    plan: &GenerationPlan,
    device: &Device,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(PeftError::Invalid("a prompt needs at least one token".into()));
    }
    let model = nn::eval(model);
    let rows = prompts.len();
    let tasks = tasks_of(plan, rows, forward::tasks(&model))?;
    let spec = model.spec();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = Room::of(&spec);
    let virtual_tokens = forward::virtual_tokens(&model) + forward::prefix_positions(&model);
    room.check_tokens(prompts.iter().flatten().copied())?;
    let budget = room.budget(longest, virtual_tokens, plan)?;
    if plan.num_beams > 1 && !forward::invocations(&model).is_empty() {
        let reason = format!(
            "is {}, but an activated LoRA (alora_invocation_tokens) writes without beam search, in PEFT too: leave it at 1",
            plan.num_beams
        );
        return Err(PeftError::config("num_beams", reason));
    }
    if embed.is_some() && model.cache_limit().is_some() {
        let reason = "its cache ends at a length, where the text would be read again without the picture";
        return Err(PeftError::unsupported("a picture before this language model", reason));
    }
    let mut texts = Texts::new(&model, prompts, tasks, device);
    texts.embed(embed);
    if plan.num_beams > 1 {
        let mut beams = Beams::new(prompts.to_vec(), budget.tokens, plan)?;
        texts.select(&beams.rows());
        while let Step::Go(origins) = beams.advance(texts.scores())? {
            texts.select(&origins);
            texts.push(&beams.last_tokens());
        }
        let found = beams.into_texts();
        for (row, text) in found.iter().enumerate() {
            text.iter().try_for_each(|token| on_token(row, *token))?;
        }
        if found.iter().any(|it| it.len() == budget.tokens) {
            budget.used_up();
        }
        return Ok(found);
    }

    let mut samplers: Vec<Sampler> = prompts
        .iter()
        .enumerate()
        .map(|(row, it)| Sampler::new(plan, it.len(), row as u64).ending_within(budget.tokens))
        .collect();
    let mut written: Vec<Vec<u32>> = prompts.to_vec();
    let mut done = vec![false; rows];
    for _ in 0..budget.tokens {
        let mut scores = texts.scores();
        for row in (0..rows).filter(|it| !done[*it]).collect::<Vec<_>>() {
            let token = samplers[row].next(&mut scores[row], &written[row])?;
            written[row].push(token);
            done[row] = samplers[row].ends(token);
            on_token(row, token)?;
        }
        if done.iter().all(|it| *it) {
            break;
        }
        texts.push(&written.iter().map(|it| it.last().copied().unwrap_or(0)).collect::<Vec<u32>>());
    }
    if done.contains(&false) {
        budget.used_up();
    }
    Ok(written.into_iter().zip(prompts).map(|(text, prompt)| text[prompt.len()..].to_vec()).collect())
}

/// A batch of sequences, padded on the left, and what the model remembers of them.
struct Texts<'a, M> {
    model: &'a M,
    device: &'a Device,
    rows: Vec<Text>,
    /// What is read in the place of the prompts, `[rows, seq, d_model]`, until that has been done.
    vectors: Option<Tensor<3>>,
    cache: KvCache,
    /// Columns that the cache has seen.
    seen: usize,
}

#[derive(Clone)]
struct Text {
    ids: Vec<i64>,
    mask: Vec<i64>,
    positions: Vec<i64>,
    task: Option<i64>,
}

impl<'a, M: CausalLm> Texts<'a, M> {
    fn new(model: &'a M, prompts: &[Vec<u32>], tasks: Option<Vec<i64>>, device: &'a Device) -> Self {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let text = |(row, prompt): (usize, &Vec<u32>)| {
            let padding = vec![0; longest - prompt.len()];
            Text {
                ids: padding.iter().copied().chain(prompt.iter().map(|it| i64::from(*it))).collect(),
                mask: [padding.clone(), vec![1; prompt.len()]].concat(),
                positions: padding.into_iter().chain(0..prompt.len() as i64).collect(),
                task: tasks.as_ref().map(|it| it[row]),
            }
        };
        let rows = prompts.iter().enumerate().map(text).collect();
        Self { model, device, rows, vectors: None, cache: KvCache::new(), seen: 0 }
    }

    /// Looks up what is read in the place of the prompts.
    fn embed(&mut self, embed: Option<Embed<'_>>) {
        let ids: Vec<i64> = self.rows.iter().flat_map(|it| &it.ids).copied().collect();
        let read = embed.map(|it| it(grid(&ids, self.rows.len(), self.rows[0].ids.len(), self.device)));
        self.vectors = match read.map(|it| it.tokens) {
            Some(Tokens::Embeddings(vectors)) => Some(vectors),
            Some(Tokens::Ids(_)) | None => None,
        };
    }

    /// Scores of what follows each sequence, `[rows][vocab]`.
    fn scores(&mut self) -> Vec<Vec<f32>> {
        let (rows, length) = (self.rows.len(), self.rows[0].ids.len());
        if self.model.cache_limit().is_some_and(|it| self.seen <= it && length > it) {
            (self.cache, self.seen) = (self.cache.read_again(), 0);
        }
        let columns = |from: usize, of: fn(&Text) -> &Vec<i64>| {
            let values: Vec<i64> = self.rows.iter().flat_map(|it| &of(it)[from..]).copied().collect();
            grid(&values, rows, length - from, self.device)
        };
        let tasks: Option<Vec<i64>> = self.rows.iter().map(|it| it.task).collect();
        let padded = self.rows.iter().any(|it| it.mask.contains(&0));
        let tokens = match self.vectors.take() {
            Some(vectors) => Tokens::Embeddings(vectors),
            None => Tokens::Ids(columns(self.seen, |it| &it.ids)),
        };
        let input = ModelInput {
            position_ids: Some(columns(self.seen, |it| &it.positions)),
            attention_mask: padded.then(|| columns(0, |it| &it.mask)),
            task_ids: tasks.map(|it| line(&it, self.device)),
            ..ModelInput::new(tokens)
        };
        let hidden = self.model.hidden(&input, Some(&mut self.cache));
        self.seen = length;
        // Virtual tokens come out too, in the first step.
        let [_, seq, d_model] = hidden.dims();
        let scores = self.model.head(hidden.narrow(1, seq - 1, 1).reshape([rows, d_model]));
        let vocab = scores.dims()[1];
        let data = scores.into_data().convert::<f32>();
        data.as_slice::<f32>().unwrap_or(&[]).chunks(vocab).map(<[f32]>::to_vec).collect()
    }

    /// One more token for every sequence.
    fn push(&mut self, tokens: &[u32]) {
        for (row, token) in self.rows.iter_mut().zip(tokens) {
            row.ids.push(i64::from(*token));
            row.mask.push(1);
            row.positions.push(row.positions.last().map_or(0, |it| it + 1));
        }
    }

    /// Goes on from these sequences, in this order.
    fn select(&mut self, rows: &[usize]) {
        self.rows = rows.iter().map(|row| self.rows[*row].clone()).collect();
        let rows = line(&rows.iter().map(|it| *it as i64).collect::<Vec<_>>(), self.device);
        self.vectors = self.vectors.take().map(|it| it.select(0, rows.clone()));
        self.cache.select(rows);
    }
}

/// The task of every row; nothing for prompts that do not tell tasks apart.
fn tasks_of(plan: &GenerationPlan, rows: usize, tasks: usize) -> Result<Option<Vec<i64>>> {
    let wanted = match plan.tasks.as_slice() {
        _ if tasks == 1 && plan.tasks.iter().all(|it| *it == 0) => return Ok(None),
        [] => return Err(PeftError::Invalid(format!("the prompt is of {tasks} tasks: say which, from 0"))),
        [one] => vec![*one; rows],
        several => several.to_vec(),
    };
    if wanted.len() != rows || wanted.iter().any(|it| !(0..tasks as i64).contains(it)) {
        let reason = format!("the tasks {wanted:?} are to be {rows} numbers below {tasks}");
        return Err(PeftError::Invalid(reason));
    }
    Ok(Some(wanted))
}
