//! Masks: which keys a query may see, and what becomes of the scores of the others.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "cube")]
use burn::tensor::Device;
use burn::tensor::{Bool, Tensor};

#[cfg(feature = "flex")]
use super::seen::Seen;
#[cfg(feature = "cube")]
use super::vectors::Vectors;
use super::visibility::{Visibility, rows};

/// Which keys a query may see, what becomes of the scores of the others, and what is added to the scores.
///
/// The mask is a description in vectors, see [`Visibility`]; a table of queries and keys is made where attention is composed
/// of Burn's operations, once for all layers.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    /// Scores of what is not seen are set to the lowest number.
    set: Option<Visibility>,
    /// The lowest number is added to the scores of what is not seen, those that are set among them.
    added: Option<Visibility>,
    /// A query that sees nothing gives zero, not a mean.
    fully_masked_is_zero: bool,
    /// Added to the scaled scores; `[batch or 1, heads or 1, q_len or 1, kv_len]`.
    pub(super) bias: Option<Tensor<4>>,
    made: Arc<Made>,
}

/// Forms of a mask that are made when they are first needed.
#[derive(Debug, Default)]
struct Made {
    dense: OnceLock<Dense>,
    #[cfg(feature = "flex")]
    seen: OnceLock<Arc<Seen>>,
    #[cfg(feature = "cube")]
    vectors: OnceLock<Vectors>,
}

/// A mask as tables, `[batch or 1, 1, q_len or 1, kv_len]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Dense {
    /// `true` where a score is set to the lowest number.
    pub(super) set: Option<Tensor<4, Bool>>,
    /// Added to the scores then.
    pub(super) added: Option<Tensor<4>>,
    /// `true` marks a query whose output is zero, `[batch or 1, 1, q_len or 1, 1]`.
    pub(super) blind: Option<Tensor<4, Bool>>,
}

impl AttentionMask {
    /// A mask that sets the scores of what is not seen to the lowest number.
    ///
    /// `may_be_fully_masked` says that some query may see no key, as with padding on the left: it gives zero.
    pub fn new(sight: Visibility, may_be_fully_masked: bool) -> Self {
        Self { set: Some(sight), fully_masked_is_zero: may_be_fully_masked, ..Self::default() }
    }

    /// A mask that hides by adding the lowest number to a score.
    ///
    /// It differs for a query that may see no key: the scores of that one are all equal then, it gives the mean of all
    /// values, and its gradient goes through every score. So do models that the reference computes without torch's
    /// fused attention.
    pub fn added(sight: Visibility) -> Self {
        Self { added: Some(sight), ..Self::default() }
    }

    /// A mask of which one part hides by setting a score to the lowest number, and the other then adds that number.
    ///
    /// Hidden by both is lower than hidden by one, which shows where a query may see no key: it gives the mean of the
    /// values that only one part hides. No gradient goes through a score that was set.
    pub fn added_twice(first: Visibility, then: Visibility) -> Self {
        Self { set: Some(first), added: Some(then), ..Self::default() }
    }

    /// With a term for the scores, such as ALiBi or relative positions; `[batch or 1, heads or 1, q_len or 1, kv_len]`.
    ///
    /// A mask that hides nothing is the default one.
    pub fn with_bias(mut self, bias: Tensor<4>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// With another term for the scores, if there is one: nothing else of a mask has gradients.
    pub(crate) fn with_bias_exchanged(self, exchange: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        Self { bias: self.bias.map(exchange), ..self }
    }

    /// The mask of some of the queries.
    pub fn of_queries(&self, queries: Range<usize>) -> Self {
        Self {
            set: self.set.as_ref().map(|it| it.of_queries(&queries)),
            added: self.added.as_ref().map(|it| it.of_queries(&queries)),
            fully_masked_is_zero: self.fully_masked_is_zero,
            bias: self.bias.as_ref().map(|it| rows(it, 2, &queries)),
            made: Arc::default(),
        }
    }

    /// The same mask, except that a query that may see no key gives the mean of all values.
    pub fn never_blind(self) -> Self {
        Self { fully_masked_is_zero: false, made: Arc::default(), ..self }
    }

    /// Its tables, for so many keys.
    pub(super) fn dense(&self, keys: usize) -> &Dense {
        self.made.dense.get_or_init(|| {
            let [set, added] = [&self.set, &self.added].map(|it| it.as_ref().and_then(|it| it.hidden(keys)));
            Dense {
                blind: set.clone().filter(|_| self.fully_masked_is_zero).map(|it| it.all_dim(3)),
                set,
                // Twice the lowest number is −∞.
                added: added.map(|it| it.float().mul_scalar(f32::MIN)),
            }
        })
    }

    #[cfg(any(feature = "flex", feature = "cube"))]
    pub(super) fn fully_masked_is_zero(&self) -> bool {
        self.fully_masked_is_zero
    }

    /// Its vectors on this machine.
    #[cfg(feature = "flex")]
    pub(super) fn seen(&self) -> Option<Arc<Seen>> {
        if self.set.is_none() && self.added.is_none() {
            return None;
        }
        Some(self.made.seen.get_or_init(|| Arc::new(Seen::new(self.set.as_ref(), self.added.as_ref()))).clone())
    }

    /// Its vectors on a card, for so many keys.
    #[cfg(feature = "cube")]
    pub(super) fn vectors(&self, keys: usize, device: &Device) -> Vectors {
        let make = || Vectors::new(self.set.as_ref(), self.added.as_ref(), keys as i64, device);
        self.made.vectors.get_or_init(make).clone()
    }
}
