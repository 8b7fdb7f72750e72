//! Layers whose fields are checkpoint names and whose forward takes adapters in.
//!
//! Weights lie in memory as the checkpoint stores them, so loading is a cast and no transposition. Every parameter is
//! lazy: a model of any size can be built, planned and counted without allocating it.

mod buffer;
mod conv;
mod dropout;
mod embedding;
mod group_norm;
mod lazy;
mod linear;
mod mode;
mod norm;

pub use buffer::{Buffer, Counter};
pub use conv::{Conv1d, Conv2d};
pub use dropout::{DropPath, Dropout};
pub use embedding::Embedding;
pub use group_norm::GroupNorm;
pub use lazy::lazy;
pub use linear::{Gpt2Linear, Projection};
pub use mode::{eval, set_training};
pub use norm::{BatchNorm2d, LayerNorm, RmsNorm};
