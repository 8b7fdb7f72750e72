//! What goes into a model: one struct for every architecture and task.

use burn::tensor::{Int, Tensor};

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

/// What an encoder reads: a text, or a recording.
pub trait EncoderInput: Clone {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Tokens of a row that each take one of the model's positions; `None` where the rows are not made of tokens.
    fn tokens(&self) -> Option<usize>;

    /// Number of the task of every row, `[batch]`, for prompts that differ between tasks.
    fn task_ids(&self) -> Option<Tensor<1, Int>>;
}

/// Recordings, as the spectra of a feature extractor.
#[derive(Debug, Clone)]
pub struct AudioInput {
    /// Logarithms of energies, `[batch, mels, frames]`.
    pub input_features: Tensor<3>,
}

impl EncoderInput for AudioInput {
    fn rows(&self) -> usize {
        self.input_features.dims()[0]
    }

    fn tokens(&self) -> Option<usize> {
        None
    }

    fn task_ids(&self) -> Option<Tensor<1, Int>> {
        None
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

impl EncoderInput for ModelInput {
    fn rows(&self) -> usize {
        self.dims()[0]
    }

    fn tokens(&self) -> Option<usize> {
        Some(self.dims()[1])
    }

    fn task_ids(&self) -> Option<Tensor<1, Int>> {
        self.task_ids.clone()
    }
}
