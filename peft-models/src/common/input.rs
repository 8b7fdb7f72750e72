//! What goes into a model: one struct for every architecture and task.

use burn::tensor::{Int, Tensor};

use crate::common::prompt::PromptLength;

/// Tokens as ids, or as vectors that stand where the embeddings would.
#[derive(Debug, Clone)]
pub enum Tokens {
    /// `[batch, seq]`
    Ids(Tensor<2, Int>),
    /// `[batch, seq, d_model]`
    Embeddings(Tensor<3>),
}

impl Tokens {
    /// `[batch, seq]`
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Ids(ids) => ids.dims(),
            Self::Embeddings(vectors) => {
                let [batch, seq, _] = vectors.dims();
                [batch, seq]
            }
        }
    }

    /// The vectors: looked up, or as given.
    pub fn embed(&self, table: impl FnOnce(Tensor<2, Int>) -> Tensor<3>) -> Tensor<3> {
        match self {
            Self::Ids(ids) => table(ids.clone()),
            Self::Embeddings(vectors) => vectors.clone(),
        }
    }
}

/// The input of a forward pass.
#[derive(Debug, Clone)]
pub struct ModelInput {
    /// The tokens.
    pub tokens: Tokens,
    /// 1 = keep, 0 = padding; `[batch, past + seq]`.
    pub attention_mask: Option<Tensor<2, Int>>,
    /// Positions; `[batch, seq]`. By default they count from the cache's length, padding included, as the reference's
    /// forward does.
    pub position_ids: Option<Tensor<2, Int>>,
    /// Sentence A or B; `[batch, seq]`.
    pub token_type_ids: Option<Tensor<2, Int>>,
    /// Documents packed into one row see only themselves: 1, 2, … per document, 0 = padding, −1 = seen by all;
    /// `[batch, seq]`.
    pub segment_ids: Option<Tensor<2, Int>>,
    /// Number of the task of every row, `[batch]`, for prompts that differ between tasks.
    pub task_ids: Option<Tensor<1, Int>>,
}

impl ModelInput {
    /// Ids and nothing else.
    pub fn ids(ids: Tensor<2, Int>) -> Self {
        Self::new(Tokens::Ids(ids))
    }

    /// Tokens and nothing else.
    pub fn new(tokens: Tokens) -> Self {
        Self {
            tokens,
            attention_mask: None,
            position_ids: None,
            token_type_ids: None,
            segment_ids: None,
            task_ids: None,
        }
    }

    /// With an attention mask.
    pub fn with_mask(mut self, attention_mask: Tensor<2, Int>) -> Self {
        self.attention_mask = Some(attention_mask);
        self
    }

    /// `[batch, seq]`
    pub fn dims(&self) -> [usize; 2] {
        self.tokens.dims()
    }

    /// The device of the tokens, without autodiff.
    pub fn device(&self) -> burn::tensor::Device {
        match &self.tokens {
            Tokens::Ids(ids) => ids.device().without_autodiff(),
            Tokens::Embeddings(vectors) => vectors.device().without_autodiff(),
        }
    }

    /// The positions, given or counted from `past`; `[batch or 1, seq]`.
    pub fn positions(&self, past: usize) -> Tensor<2, Int> {
        match &self.position_ids {
            Some(positions) => positions.clone(),
            None => {
                let [_, seq] = self.dims();
                Tensor::<1, Int>::arange(past as i64..(past + seq) as i64, &self.device()).unsqueeze()
            }
        }
    }

    /// The positions, given or counted without padding: −1 is padding; `[batch or 1, seq]`.
    pub fn positions_without_padding(&self, past: usize) -> Tensor<2, Int> {
        match (&self.position_ids, &self.attention_mask) {
            (None, Some(mask)) => {
                let [_, seq] = self.dims();
                let counted = mask.clone().cumsum(1) * mask.clone();
                counted.sub_scalar(1).narrow(1, past, seq)
            }
            _ => self.positions(past),
        }
    }
}

/// Keys and values of the tokens that a decoder has seen.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
    /// What stands before the first token of the input.
    pub(crate) prompt: PromptLength,
    /// Of models that read one part of a row and write the other: one entry for every row.
    pub(crate) targets: Vec<Target>,
    /// Whether there is a cache only so that a prefix can stand in it: nobody reads it after the forward.
    is_passing: bool,
}

/// Which part of a row is written, and where that belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Padding before the first word.
    pub(crate) first: usize,
    /// The first column that is written; the columns count the cache.
    pub(crate) begin: usize,
    /// Columns that are no text.
    pub(crate) prefix: usize,
    /// The word in whose place it is written.
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

    /// The same where nobody reads it after the forward.
    pub(crate) fn passing(self) -> Self {
        Self { is_passing: true, ..self }
    }

    /// The prefix of a layer, and a cache without any layers that it may stand in, if the cache is there for nothing else.
    pub(crate) fn prefix_of(&self, layer: usize) -> Option<((Tensor<4>, Tensor<4>), Self)> {
        let prefix = self.layers.get(layer).filter(|_| self.is_passing)?;
        let (prompt, targets) = (self.prompt, self.targets.clone());
        Some((prefix.clone(), Self { layers: Vec::new(), prompt, targets, is_passing: true }))
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
        for (key, value) in &mut self.layers {
            *key = key.clone().select(0, rows.clone());
            *value = value.clone().select(0, rows.clone());
        }
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

    /// Of the target, and of the source.
    pub(crate) fn parts(cache: Option<&mut Self>) -> (Option<&mut KvCache>, Option<&mut SourceCache>) {
        cache.map(|it| (&mut it.target, &mut it.source)).unzip()
    }
}

/// Keys and values of a source, `[batch, heads, source, d_head]`, computed once for each layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceCache {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl SourceCache {
    /// Those of a layer; `compute` gives them the first time. Layers are to ask in order.
    pub(crate) fn get_or(
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
pub(crate) fn extend_cache(
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
