//! What a model can be asked for. Heads implement these; tasks use nothing else.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use crate::input::{KvCache, ModelInput, Tokens};

/// A model that predicts the next token.
pub trait CausalLm: Module {
    /// The last hidden state, `[batch, seq, d_model]`.
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3>;

    /// Scores over the vocabulary, `[rows, d_model]` to `[rows, vocab]`.
    ///
    /// Apart from [`CausalLm::hidden`], so that a loss computes only the rows that it needs.
    fn head(&self, hidden: Tensor<2>) -> Tensor<2>;

    /// Whether the head is the embedding table read the other way.
    fn is_tied(&self) -> bool;

    /// Gives a tied model a head of its own, a copy of the table that shares its memory.
    ///
    /// Adapters that name the head need this: a tied head has no parameter that they could ride on.
    fn untie(&mut self);

    /// The model, [untied](CausalLm::untie).
    fn untied(mut self) -> Self {
        self.untie();
        self
    }

    /// Scores of every position, `[batch, seq, vocab]`.
    fn logits(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        let hidden = self.hidden(input, cache);
        let [batch, seq, d_model] = hidden.dims();
        let logits = self.head(hidden.reshape([batch * seq, d_model]));
        let vocab = logits.dims()[1];
        logits.reshape([batch, seq, vocab])
    }
}

/// A model that scores a whole sequence.
pub trait SequenceClassifier: Module {
    /// `[batch, num_labels]`
    fn logits(&self, input: &ModelInput) -> Tensor<2>;

    /// Number of outputs.
    fn num_labels(&self) -> usize;

    /// `problem_type` of `config.json`.
    fn problem_type(&self) -> Option<&str>;
}

/// A model that turns tokens into vectors.
pub trait FeatureExtractor: Module {
    /// `[batch, seq, d_model]`
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3>;
}

/// The hidden state of the last token of every row that is not padding, `[batch, d_model]`.
///
/// Source: `GenericForSequenceClassification` of transformers: the rightmost token whose id is not `pad`; without a
/// padding token, or without ids, the last position. Behind virtual tokens the reference has no ids any more.
pub(crate) fn pool_last_token(hidden: Tensor<3>, input: &ModelInput, pad: Option<i64>) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let last = match (&input.tokens, pad) {
        (Tokens::Ids(ids), Some(pad)) if ids.dims()[1] == seq => {
            let position = Tensor::<1, Int>::arange(0..seq as i64, &input.device()).unsqueeze::<2>();
            let kept = ids.clone().not_equal_elem(pad).int() * position.expand([batch, seq]);
            kept.argmax(1)
        }
        _ => Tensor::<2, Int>::full([batch, 1], seq as i64 - 1, &input.device()),
    };
    let index = last.reshape([batch, 1, 1]).expand([batch, 1, d_model]);
    hidden.gather(1, index).squeeze_dim(1)
}
