//! LoRA and its relatives: low-rank updates of frozen weights, in the files of Hugging Face PEFT.

pub mod adalora;
mod common;
mod config;
mod conv;
mod defaults;
mod dora;
mod embedding;
mod kernel;
mod linear;
pub mod loha;
pub mod lokr;
pub mod norms;
mod start;
pub mod tokens;

pub use adalora::AdaLoraConfig;
pub use config::{LoraConfig, PEFT_TYPE};
pub use conv::LoraConv;
pub use embedding::LoraEmbedding;
pub use linear::{Factor, LoraLinear};
pub use loha::LoHaConfig;
pub use lokr::LoKrConfig;
pub use norms::LnTuningConfig;
pub use peft_core::shared::Bias;
pub use start::Factors;
pub use tokens::{TokenIndices, TrainableTokensConfig};
