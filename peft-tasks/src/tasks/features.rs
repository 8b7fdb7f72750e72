//! Sentence embeddings: one vector for a whole sequence.

use burn::tensor::{Int, Tensor};

/// The mean of the hidden states of all tokens that are not padding, as sentence-transformers pools.
///
/// # Shapes
/// - hidden: `[batch, seq, d_model]`
/// - attention_mask: `[batch, seq]`, 1 = keep; `None` keeps all
/// - output: `[batch, d_model]`
pub fn mean_pooling(hidden: Tensor<3>, attention_mask: Option<Tensor<2, Int>>) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let Some(mask) = attention_mask else { return hidden.mean_dim(1).reshape([batch, d_model]) };
    let mask = mask.float().reshape([batch, seq, 1]);
    let kept = mask.clone().sum_dim(1).clamp_min(1e-9);
    ((hidden * mask).sum_dim(1) / kept).reshape([batch, d_model])
}

/// Vectors of length 1, so that their products are cosines.
///
/// # Shapes
/// - vectors, output: `[batch, d_model]`
pub fn normalise(vectors: Tensor<2>) -> Tensor<2> {
    let length = (vectors.clone() * vectors.clone()).sum_dim(1).sqrt().clamp_min(1e-12);
    vectors / length
}
