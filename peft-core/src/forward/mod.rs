//! The calls by which a layer lets adapters take part.
//!
//! `linear(x, &self.weight, …)` computes what `x · weight.val() + bias` would, but through the adapters' own forward, the
//! low-rank path: no dense update is formed, the frozen weight gets no gradient, and dropout on the adapter's input has
//! its place.

mod embedding;
pub mod gradient_checkpointing;
mod invocation;
mod linear;
mod mixed_batch;
mod prompt;

pub use crate::adapter::{EmbeddingBelow, LinearBelow};
pub(crate) use embedding::moves_tied_head;
pub use embedding::{attend, attend_in_place, embedding};
pub use invocation::{behind, invocations, reading};
pub use linear::{Adapted, linear, value};
pub(crate) use linear::{bare_weight, unadapted};
pub use mixed_batch::{by_rows, for_each_row, reorder_batch};
pub use prompt::{can_pack, gated, prefix_positions, prompt, tasks, virtual_tokens};
