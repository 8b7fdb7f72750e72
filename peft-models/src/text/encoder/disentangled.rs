//! DeBERTa's attention, in which content and distance have vectors of their own.
//!
//! He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", <https://arxiv.org/abs/2006.03654>.
//! Source: `DisentangledSelfAttention` in `transformers/models/deberta` and `deberta_v2` (5.23).

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::forward::gradient_checkpointing::{Exchange, Inputs};
use peft_core::nn::Dropout;
use peft_core::ops::{AttentionMask, attention};

/// For every query and key the row of the table of distances that speaks of them.
#[derive(Debug, Clone)]
pub(crate) struct Distances {
    /// `[1, 1, query, key]`
    rows: Tensor<4, Int>,
}

impl Distances {
    /// The rows of a table of `2 · span` distances, for sequences of `seq` tokens.
    ///
    /// `bucket` gives the place of a distance `query − key`, counted from the middle of the table. It has to be odd:
    /// the distance from `b` to `a` is minus that from `a` to `b`. What lies outside the table gets its last row.
    pub(crate) fn new(seq: usize, span: usize, bucket: impl Fn(i64) -> i64, device: &Device) -> Self {
        let (seq, span) = (seq as i64, span as i64);
        let places: Vec<i64> =
            (1 - seq..seq).map(|distance| (bucket(distance) + span).clamp(0, 2 * span - 1)).collect();
        let rows: Vec<i64> = (0..seq)
            .flat_map(|query| (0..seq).map(move |key| query - key + seq - 1))
            .map(|it| places[it as usize])
            .collect();
        let shape = [1, 1, seq as usize, seq as usize];
        Self { rows: Tensor::from_data(TensorData::new(rows, shape), device) }
    }
}

impl Inputs for Distances {
    fn exchange(self, _: &mut Exchange) -> Self {
        self
    }
}

/// Vectors of distances, as queries and keys see them.
#[derive(Debug, Clone)]
pub(crate) struct Positions {
    /// Keys that a token's query meets, `[1 or batch, heads, 2 · span, d_head]`: content to position.
    pub(crate) key: Option<Tensor<4>>,
    /// Queries that meet a token's key, `[1 or batch, heads, 2 · span, d_head]`: position to content.
    pub(crate) query: Option<Tensor<4>>,
}

/// Attention whose scores add up what content says of content, content of distance, and distance of content.
///
/// # Shapes
/// - query, key, value, output: `[batch, heads, seq, d_head]`
pub(crate) fn disentangled_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    positions: Option<(Positions, &Distances)>,
    mask: Option<&AttentionMask>,
    scale: f64,
    dropout: &Dropout,
) -> Tensor<4> {
    let [batch, heads, seq, _] = query.dims();
    let bias = positions.and_then(|(positions, distances)| {
        let rows = distances.rows.clone().expand([batch, heads, seq, seq]);
        let to_position = positions.key.map(|it| query.clone().matmul(it.swap_dims(2, 3)).gather(3, rows.clone()));
        // Rows of this one are keys. Since buckets are odd, `rows` read the other way round is what they need.
        let to_content = positions.query.map(|it| {
            let scores = key.clone().matmul(it.swap_dims(2, 3));
            scores.gather(3, rows.swap_dims(2, 3)).swap_dims(2, 3)
        });
        match (to_position, to_content) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        }
    });
    let biased = bias.map(|it| mask.cloned().unwrap_or_default().with_bias(it.mul_scalar(scale)));
    attention(query, key, value, biased.as_ref().or(mask), scale, dropout)
}
