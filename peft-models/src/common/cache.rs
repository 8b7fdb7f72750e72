//! What a model remembers of the tokens that it has seen.

use burn::tensor::{Int, Tensor};
use peft_core::Prompt;

/// What stands for a token that the model has written, where a text is read again. No token has this id.
const WRITTEN: i64 = -1;

/// How much stands before the first token.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PromptLength {
    /// Virtual tokens that went through the layers.
    pub(crate) tokens: usize,
    /// Positions that went straight into the cache.
    pub(crate) keys: usize,
    pub(crate) drops_token_types: bool,
}

impl PromptLength {
    pub(crate) fn of(prompt: &Prompt) -> Self {
        Self { tokens: prompt.tokens_len(), keys: prompt.keys_len(), drops_token_types: prompt.drops_token_types }
    }

    /// Positions that went straight into the cache.
    pub(crate) fn keys(self) -> usize {
        self.keys
    }

    /// Positions before the first token of the input.
    pub(crate) fn total(self) -> usize {
        self.tokens + self.keys
    }
}

/// Keys and values of the tokens that a decoder has seen.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
    /// What stands before the first token of the input.
    pub(crate) prompt: PromptLength,
    /// The tokens of the prompt, for adapters that act behind some of them.
    pub(crate) read: Option<Tensor<2, Int>>,
    /// Of models that read one part of a row and write the other: one entry for every row.
    pub(crate) targets: Vec<Target>,
    /// Whether there is a cache only so that a prefix can stand in it: nobody reads it after the forward.
    is_passing: bool,
}

/// Which part of a row is written, and where that belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Padding before the first token.
    pub(crate) first: usize,
    /// The first column that is written; the columns count the cache.
    pub(crate) begin: usize,
    /// Columns that are no text.
    pub(crate) prefix: usize,
    /// The position in whose place it is written.
    pub(crate) mark: usize,
    /// Whether what is written has the positions behind the text all the same.
    pub(crate) goes_on: bool,
}

impl Target {
    /// Where a column stands in the text.
    pub(crate) fn in_text(&self, column: usize) -> usize {
        if column < self.begin || self.goes_on { column.saturating_sub(self.prefix + self.first) } else { self.mark }
    }

    /// Where a column stands in what is written, from 1; what is read has 0.
    pub(crate) fn in_block(&self, column: usize) -> usize {
        (column + 1).saturating_sub(self.begin)
    }
}

impl KvCache {
    /// A cache that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache that begins with a prefix: one pair for each layer, `[batch, kv_heads, virtual, d_head]`.
    pub(crate) fn with_prefix(layers: Vec<(Tensor<4>, Tensor<4>)>, prompt: PromptLength) -> Self {
        Self { layers, prompt, ..Self::default() }
    }

    /// The same where a prompt was read.
    pub(crate) fn after_reading(self, read: Option<Tensor<2, Int>>) -> Self {
        Self { read, ..self }
    }

    /// An empty one for a text that is read again, as models do whose keys no longer fit: what was written behind the prompt
    /// stays apart from it, so that an adapter that waits for tokens does not find them there.
    pub fn read_again(&self) -> Self {
        Self { read: self.read.clone(), ..Self::default() }
    }

    /// The same where nobody reads it after the forward.
    pub(crate) fn passing(self) -> Self {
        Self { is_passing: true, ..self }
    }

    /// The prefix of a layer, and a cache without any layers that it may stand in, if the cache is there for nothing else.
    pub(crate) fn prefix_of(&self, layer: usize) -> Option<((Tensor<4>, Tensor<4>), Self)> {
        let prefix = self.layers.get(layer).filter(|_| self.is_passing)?;
        let (prompt, read, targets) = (self.prompt, self.read.clone(), self.targets.clone());
        Some((prefix.clone(), Self { layers: Vec::new(), prompt, read, targets, is_passing: true }))
    }

    /// The cache with the prefix of one layer, for which those of others stand in.
    pub(crate) fn with_prefix_of(&self, layer: usize, prefix: (Tensor<4>, Tensor<4>)) -> Self {
        Self { layers: vec![prefix; layer + 1], ..self.clone() }
    }

    /// Number of positions seen, those of a prompt among them.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(key, _)| key.dims()[2])
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the keys and values of new tokens and returns those of all tokens.
    ///
    /// Layers are to be extended in order.
    ///
    /// # Shapes
    /// - key, value: `[batch, kv_heads, seq, d_head]`
    /// - output: `[batch, kv_heads, past + seq, d_head]` each
    pub fn extend(&mut self, layer: usize, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (key, value) = match self.layers.get(layer) {
            Some((old_key, old_value)) => {
                (Tensor::cat(vec![old_key.clone(), key], 2), Tensor::cat(vec![old_value.clone(), value], 2))
            }
            None => (key, value),
        };
        match self.layers.get_mut(layer) {
            Some(slot) => *slot = (key.clone(), value.clone()),
            None => self.layers.push((key.clone(), value.clone())),
        }
        (key, value)
    }

    /// Keeps the rows at these indices, for batches that shrink.
    pub fn select(&mut self, rows: Tensor<1, Int>) {
        if !self.targets.is_empty() {
            self.targets = rows.to_data().iter::<i64>().map(|row| self.targets[row as usize]).collect();
        }
        self.read = self.read.take().map(|it| it.select(0, rows.clone()));
        for (key, value) in &mut self.layers {
            *key = key.clone().select(0, rows.clone());
            *value = value.clone().select(0, rows.clone());
        }
    }

    /// Takes note of tokens that are read now, and says which there are in the prompt.
    ///
    /// A single token behind others goes on with the text, as generation does, and is none of the prompt.
    pub(crate) fn read(&mut self, ids: &Tensor<2, Int>) -> Option<Tensor<2, Int>> {
        let [batch, seq] = ids.dims();
        match self.read.take() {
            Some(before) if self.is_empty() && before.dims()[1] < seq => {
                let written = Tensor::full([batch, seq - before.dims()[1]], WRITTEN, &ids.device());
                self.read = Some(Tensor::cat(vec![before, written], 1));
            }
            _ if self.is_empty() => self.read = Some(ids.clone()),
            Some(before) if seq > 1 => self.read = Some(Tensor::cat(vec![before, ids.clone()], 1)),
            None if seq > 1 => self.read = Some(ids.clone()),
            before => self.read = before,
        }
        self.read.clone()
    }
}

/// What a decoder that reads an encoded source keeps: keys and values of the tokens that it has seen, and those of the
/// source.
#[derive(Debug, Clone, Default)]
pub struct Seq2SeqCache {
    target: KvCache,
    source: SourceCache,
}

impl Seq2SeqCache {
    /// A cache that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of target positions seen, those of a prompt among them.
    pub fn len(&self) -> usize {
        self.target.len()
    }

    /// Whether no target token was seen.
    pub fn is_empty(&self) -> bool {
        self.target.is_empty()
    }

    /// Keeps the rows at these indices, in this order, for batches that shrink and beams that part.
    pub fn select(&mut self, rows: Tensor<1, Int>) {
        self.target.select(rows.clone());
        for (key, value) in &mut self.source.layers {
            *key = key.clone().select(0, rows.clone());
            *value = value.clone().select(0, rows.clone());
        }
    }

    /// The cache of the target, and that of the source.
    pub fn parts(cache: Option<&mut Self>) -> (Option<&mut KvCache>, Option<&mut SourceCache>) {
        cache.map(|it| (&mut it.target, &mut it.source)).unzip()
    }
}

/// Keys and values of a source, `[batch, heads, source, d_head]`, computed once for each layer.
#[derive(Debug, Clone, Default)]
pub struct SourceCache {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl SourceCache {
    /// Those of a layer; `compute` gives them the first time. Layers are to ask in order.
    pub fn get_or(
        cache: Option<&mut Self>,
        layer: usize,
        compute: impl FnOnce() -> (Tensor<4>, Tensor<4>),
    ) -> (Tensor<4>, Tensor<4>) {
        let Some(cache) = cache else { return compute() };
        if layer >= cache.layers.len() {
            cache.layers.push(compute());
        }
        cache.layers[layer].clone()
    }
}

/// Extends the cache if there is one, else returns the pair as it is.
///
/// An attention layer calls this once with the keys and values of its input, after their rotation; `layer` is its number
/// in the stack.
///
/// # Shapes
/// - key, value: `[batch, kv_heads, seq, d_head]`
/// - output: `[batch, kv_heads, past + seq, d_head]` each
pub fn extend_cache(
    cache: Option<&mut KvCache>,
    layer: usize,
    key: Tensor<4>,
    value: Tensor<4>,
) -> (Tensor<4>, Tensor<4>) {
    match cache {
        Some(cache) => cache.extend(layer, key, value),
        None => (key, value),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Beyond its limit, a cache is filled anew from the whole text, of which the end is none of the prompt.
    #[test]
    fn a_text_that_is_read_again_has_the_prompt_that_it_had() {
        let device = Device::default();
        let ids = |ids: &[i64]| Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &device);
        let read = |cache: &mut KvCache, text: &[i64]| {
            let read = cache.read(&ids(text)).unwrap().to_data().iter::<i64>().collect::<Vec<_>>();
            let keys = Tensor::zeros([1, 1, text.len(), 1], &device);
            cache.extend(0, keys.clone(), keys);
            read
        };
        let mut cache = KvCache::new();
        assert_eq!(read(&mut cache, &[5, 41, 7]), [5, 41, 7]);
        assert_eq!(read(&mut cache, &[41]), [5, 41, 7]);
        let mut again = cache.read_again();
        assert!(again.is_empty());
        assert_eq!(read(&mut again, &[5, 41, 7, 41, 7]), [5, 41, 7, -1, -1]);
        assert_eq!(read(&mut again, &[8]), [5, 41, 7, -1, -1]);
    }
}
