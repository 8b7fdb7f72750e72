//! LoRA and its relatives: low-rank updates of frozen weights, in the files of Hugging Face PEFT.

pub mod adalora;
pub mod boft;
pub mod combine;
mod common;
mod config;
mod conv;
pub mod convert;
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
pub mod fourierft;
pub mod hira;
pub mod miss;
pub mod oft;
pub mod randlora;
mod rotation;
pub mod shira;
mod svd;
pub mod vera;

pub use boft::BoftConfig;
pub use config::{LoraConfig, PEFT_TYPE};
pub use conv::LoraConv;
pub use embedding::LoraEmbedding;
pub use fourierft::FourierFtConfig;
pub use hira::HiraConfig;
pub use linear::{Factor, LoraLinear};
pub use loha::LoHaConfig;
pub use lokr::LoKrConfig;
pub use miss::MissConfig;
pub use norms::LnTuningConfig;
pub use oft::OftConfig;
pub use peft_core::shared::Bias;
pub use randlora::RandLoraConfig;
pub use shira::ShiraConfig;
pub use start::Factors;
pub use tokens::{TokenIndices, TrainableTokensConfig};
pub use vera::VeraConfig;
