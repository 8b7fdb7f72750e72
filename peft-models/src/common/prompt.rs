//! What active prompts do to an input: written once for every model.
//!
//! Source: `peft/peft_model.py` (0.21), the `forward` of each task's wrapper and `prepare_inputs_for_generation`.

use burn::tensor::{Int, Tensor};
use peft_core::nn::Embedding;
use peft_core::ops::Visibility;
use peft_core::{Prompt, forward};

use crate::common::cache::{KvCache, PromptLength};
use crate::common::input::{ModelInput, Tokens};

/// Runs the layers of a decoder, or of an encoder that stands alone, on an input and on what active prompts put before
/// it. Every stack's forward is one call of this; `layers` is the plain model.
///
/// Virtual tokens are part of the output, a prefix is not. A cache that has seen tokens has seen the prompt too.
pub fn around<T>(
    table: &Embedding,
    input: &ModelInput,
    mut cache: Option<&mut KvCache>,
    layers: impl FnOnce(&ModelInput, Option<&mut KvCache>) -> T,
) -> T {
    let ids = match (&input.tokens, &mut cache) {
        (Tokens::Ids(ids), Some(cache)) => cache.read(ids),
        (Tokens::Ids(ids), None) => Some(ids.clone()),
        (Tokens::Embeddings(_), cache) => cache.as_ref().and_then(|it| it.read.clone()),
    };
    forward::reading(ids, input.segment_ids.clone(), || match cache {
        Some(cache) if !cache.is_empty() => layers(&shift(cache.prompt, input), Some(cache)),
        cache => match forward::prompt(&table.weight, input.task_ids.as_ref()) {
            Some(prompt) => behind(prompt, table, input, cache, layers),
            None => layers(input, cache),
        },
    })
}

/// An encoder's input with virtual tokens before it. Its mask is the one that cross-attention needs.
pub fn before_encoder(table: &Embedding, input: &ModelInput) -> ModelInput {
    match forward::prompt(&table.weight, input.task_ids.as_ref()) {
        Some(prompt) => {
            let length = PromptLength { keys: 0, ..PromptLength::of(&prompt) };
            with_tokens(table, prompt.tokens, length, input)
        }
        None => input.clone(),
    }
}

/// As [`around`], for a decoder that has an encoder.
///
/// With a cache, the decoder writes: then the reference puts no virtual tokens before it, although it trains with them
/// (multitask prompts only).
pub fn around_decoder<T>(
    table: &Embedding,
    input: &ModelInput,
    cache: Option<&mut KvCache>,
    layers: impl FnOnce(&ModelInput, Option<&mut KvCache>) -> T,
) -> T {
    match cache {
        Some(cache) if !cache.is_empty() => layers(&shift(cache.prompt, input), Some(cache)),
        cache => {
            // Which task it is makes no difference to what is left of the prompt then.
            let any = cache.is_some().then(|| Tensor::zeros([input.dims()[0]], &input.device()));
            let Some(prompt) = forward::prompt(&table.weight, any.as_ref().or(input.task_ids.as_ref())) else {
                return layers(input, cache);
            };
            let tokens = prompt.decoder_tokens.filter(|_| cache.is_none());
            behind(Prompt { tokens, decoder_tokens: None, ..prompt }, table, input, cache, layers)
        }
    }
}

/// Runs the layers on an input that a prompt stands before, with a cache if one is wanted or needed.
fn behind<T>(
    prompt: Prompt,
    table: &Embedding,
    input: &ModelInput,
    cache: Option<&mut KvCache>,
    layers: impl FnOnce(&ModelInput, Option<&mut KvCache>) -> T,
) -> T {
    let length = PromptLength::of(&prompt);
    let input = with_tokens(table, prompt.tokens, length, input);
    if prompt.keys_values.is_empty() && cache.is_none() {
        return layers(&input, None);
    }
    let started = start(prompt.keys_values, length, input.dims()[0]);
    match cache {
        Some(cache) => {
            *cache = started.after_reading(cache.read.take());
            layers(&input, Some(cache))
        }
        None => layers(&input, Some(&mut started.passing())),
    }
}

/// A cache that begins with a prefix, the same in every row.
fn start(prefix: Vec<peft_core::KeyValue>, prompt: PromptLength, batch: usize) -> KvCache {
    let wide = |it: Tensor<4>| {
        let [_, kv_heads, length, d_head] = it.dims();
        it.expand([batch, kv_heads, length, d_head])
    };
    KvCache::with_prefix(prefix.into_iter().map(|(key, value)| (wide(key), wide(value))).collect(), prompt)
}

/// The input behind a prompt, with the vectors of virtual tokens in front.
fn with_tokens(table: &Embedding, vectors: Option<Tensor<3>>, length: PromptLength, input: &ModelInput) -> ModelInput {
    let mut shifted = shift(length, input);
    let Some(vectors) = vectors else { return shifted };
    let [batch, _] = input.dims();
    let [_, virtual_tokens, d_model] = vectors.dims();
    let vectors = vectors.expand([batch, virtual_tokens, d_model]);
    let words = input.tokens.embed(|ids| table.forward(ids));
    shifted.tokens = Tokens::Embeddings(Tensor::cat(vec![vectors, words], 1));
    shifted.token_type_ids = shifted.token_type_ids.map(|it| before(it, virtual_tokens, 0));
    shifted.segment_ids = shifted.segment_ids.map(|it| before(it, virtual_tokens, Visibility::EVERYONE));
    shifted.position_ids = shifted.position_ids.map(|it| {
        let first = length.keys as i64..length.total() as i64;
        let first =
            Tensor::<1, Int>::arange(first, &it.device()).unsqueeze::<2>().expand([it.dims()[0], virtual_tokens]);
        Tensor::cat(vec![first, it], 1)
    });
    shifted
}

/// `count` columns of one value before a tensor of `[batch, seq]`.
fn before(tensor: Tensor<2, Int>, count: usize, value: i64) -> Tensor<2, Int> {
    if count == 0 {
        return tensor;
    }
    let [batch, _] = tensor.dims();
    let columns = Tensor::full([batch, count], value, &tensor.device());
    Tensor::cat(vec![columns, tensor], 1)
}

/// An input whose tokens come after a prompt of this length.
fn shift(length: PromptLength, input: &ModelInput) -> ModelInput {
    if length.total() == 0 {
        return input.clone();
    }
    let positions = input.position_ids.clone();
    ModelInput {
        attention_mask: input.attention_mask.clone().map(|it| before(it, length.total(), 1)),
        // Behind virtual tokens the reference drops positions, so that they count from the first of them. Those of
        // packed rows it does not know.
        position_ids: match length.tokens > 0 && input.segment_ids.is_none() {
            true => None,
            false => positions.map(|it| it.add_scalar(length.total() as i64)),
        },
        token_type_ids: input.token_type_ids.clone().filter(|_| !length.drops_token_types),
        ..input.clone()
    }
}
