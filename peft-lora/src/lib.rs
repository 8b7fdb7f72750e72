//! LoRA and its relatives: low-rank updates of frozen weights, in the files of Hugging Face PEFT.

mod config;
mod conv;
mod defaults;
mod dora;
mod embedding;
mod linear;
mod start;

pub use config::{LoraConfig, PEFT_TYPE};
pub use conv::LoraConv;
pub use embedding::LoraEmbedding;
pub use linear::{Factor, LoraLinear};
pub use peft_core::shared::Bias;
pub use start::Factors;
