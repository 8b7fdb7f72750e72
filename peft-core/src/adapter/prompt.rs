//! What an adapter puts before a model's own tokens, or beside its attention.
//!
//! A prompt is attached to a parameter, as every adapter is. Virtual tokens and prefixes are attached to the
//! table that tokens are looked up in; a gated prompt to the output projection of its attention. Models ask
//! [`forward::prompt`](crate::forward::prompt) and [`forward::gated`](crate::forward::gated) for what is active.

use burn::tensor::Tensor;

/// Keys and values of one layer, `[batch or 1, kv_heads, virtual, d_head]` each.
pub type KeyValue = (Tensor<4>, Tensor<4>);

/// What stands before the tokens of every row.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// Virtual tokens, `[batch or 1, virtual, d_model]`: before the input, or before the encoder's where there is one.
    pub tokens: Option<Tensor<3>>,
    /// The same before the input of a decoder that has an encoder.
    pub decoder_tokens: Option<Tensor<3>>,
    /// Keys and values before the cache, one pair for each layer of the decoder, or of an encoder that stands alone.
    pub keys_values: Vec<KeyValue>,
    /// Whether token types are left out, as the reference does for some tasks. Else virtual tokens have type 0.
    pub drops_token_types: bool,
}

impl Prompt {
    /// Number of virtual tokens before the input.
    pub fn tokens_len(&self) -> usize {
        self.tokens.as_ref().map_or(0, |it| it.dims()[1])
    }

    /// Number of virtual positions before the cache.
    pub fn keys_len(&self) -> usize {
        self.keys_values.first().map_or(0, |(key, _)| key.dims()[2])
    }

    /// Both prompts, `self` in front.
    pub(crate) fn and(self, other: Self) -> Self {
        let join = |a: Option<Tensor<3>>, b: Option<Tensor<3>>| match (a, b) {
            (Some(a), Some(b)) => {
                let batch = a.dims()[0].max(b.dims()[0]);
                let wide = |it: Tensor<3>| {
                    let [_, virtual_tokens, d_model] = it.dims();
                    it.expand([batch, virtual_tokens, d_model])
                };
                Some(Tensor::cat(vec![wide(a), wide(b)], 1))
            }
            (a, b) => a.or(b),
        };
        let keys_values = match (self.keys_values, other.keys_values) {
            (first, second) if first.is_empty() => second,
            (first, second) if second.is_empty() => first,
            (first, second) => {
                let both = |a: Tensor<4>, b: Tensor<4>| Tensor::cat(vec![a, b], 2);
                first.into_iter().zip(second).map(|(a, b)| (both(a.0, b.0), both(a.1, b.1))).collect()
            }
        };
        Self {
            tokens: join(self.tokens, other.tokens),
            decoder_tokens: join(self.decoder_tokens, other.decoder_tokens),
            keys_values,
            drops_token_types: self.drops_token_types || other.drops_token_types,
        }
    }
}

/// Virtual tokens that an attention layer looks at beside its own, through a gate.
#[derive(Debug, Clone)]
pub struct GatedPrompt {
    /// `[1, virtual, d_model]`, to be projected to keys and values by the layer itself.
    pub tokens: Tensor<3>,
    /// `[1]`, what the outcome is multiplied by.
    pub gate: Tensor<1>,
}
