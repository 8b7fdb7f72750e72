//! Text from a causal language model, token by token, with a cache of keys and values.

use burn::tensor::{Device, TensorData};
use peft_core::{PeftError, Result, seam};
use peft_models::{CausalLm, KvCache, ModelInput, Tokens};

use crate::sampling::{GenerationPlan, Sampler};
use crate::tensors::{grid, line};

/// Continues every prompt. Returns the new tokens of each row, the end token included.
///
/// Rows may differ in length; what a row gets does not depend on the others. `on_token` sees each token as it comes:
/// row, token.
///
/// # Errors
/// If there is no prompt, a prompt is empty, or the plan leaves no room for a token.
pub fn generate<M: CausalLm>(
    model: &M,
    prompts: &[Vec<u32>],
    plan: &GenerationPlan,
    device: &Device,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(PeftError::Invalid("a prompt needs at least one token".into()));
    }
    if plan.num_beams > 1 {
        let reason = "beam search is there for models that read a source; set it to 1";
        return Err(PeftError::unsupported("`num_beams` for a causal language model", reason));
    }
    let model = model.valid();
    let rows = prompts.len();
    let tasks = tasks_of(plan, rows, seam::tasks(&model))?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let budget = plan.budget(longest)?;
    let mut samplers: Vec<Sampler> = prompts
        .iter()
        .enumerate()
        .map(|(row, it)| Sampler::new(plan, it.len(), row as u64).ending_within(budget))
        .collect();
    let mut texts: Vec<Vec<u32>> = prompts.to_vec();
    let mut done = vec![false; rows];

    let padding = |row: usize| longest - prompts[row].len();
    let mut mask: Vec<Vec<i64>> =
        (0..rows).map(|row| [vec![0; padding(row)], vec![1; prompts[row].len()]].concat()).collect();
    let mut next: Vec<Vec<i64>> = (0..rows)
        .map(|row| [vec![0; padding(row)], prompts[row].iter().map(|it| i64::from(*it)).collect()].concat())
        .collect();
    let mut positions: Vec<Vec<i64>> =
        (0..rows).map(|row| [vec![0; padding(row)], (0..prompts[row].len() as i64).collect()].concat()).collect();
    let padded = (0..rows).any(|row| padding(row) > 0);

    let mut cache = KvCache::new();
    for _ in 0..budget {
        let width = next[0].len();
        let mut input = ModelInput::new(Tokens::Ids(grid(&next.concat(), rows, width, device)));
        input.position_ids = Some(grid(&positions.concat(), rows, width, device));
        input.task_ids = tasks.as_ref().map(|it| line(it, device));
        if padded {
            input.attention_mask = Some(grid(&mask.concat(), rows, mask[0].len(), device));
        }
        let hidden = model.hidden(&input, Some(&mut cache));
        let [_, seen, d_model] = hidden.dims();
        let logits = model.head(hidden.narrow(1, seen - 1, 1).reshape([rows, d_model]));
        let vocab = logits.dims()[1];
        let mut logits = floats(logits.into_data());

        for row in 0..rows {
            let mut token = texts[row].last().copied().unwrap_or(0);
            if !done[row] {
                token = samplers[row].next(&mut logits[row * vocab..(row + 1) * vocab], &texts[row])?;
                texts[row].push(token);
                done[row] = samplers[row].ends(token);
                on_token(row, token)?;
            }
            positions[row] = vec![positions[row].last().map_or(0, |it| it + 1)];
            next[row] = vec![i64::from(token)];
            mask[row].push(1);
        }
        if done.iter().all(|it| *it) {
            break;
        }
    }
    Ok(texts.into_iter().zip(prompts).map(|(text, prompt)| text[prompt.len()..].to_vec()).collect())
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

fn floats(data: TensorData) -> Vec<f32> {
    data.convert::<f32>().as_slice::<f32>().map(<[f32]>::to_vec).unwrap_or_default()
}
