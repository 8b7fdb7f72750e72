//! LoRA and its relatives: low-rank updates of frozen weights, in the files of Hugging Face PEFT.

pub mod boft;
pub mod combine;
mod common;
mod config;
mod conv;
pub mod convert;
mod defaults;
mod dora;
mod embedding;
pub mod fourierft;
pub mod hira;
mod linear;
pub mod miss;
pub mod oft;
pub mod randlora;
mod rotation;
pub mod shira;
mod start;
mod svd;

pub use boft::BoftConfig;
pub use config::{LoraConfig, PEFT_TYPE};
pub use conv::LoraConv;
pub use embedding::LoraEmbedding;
pub use fourierft::FourierFtConfig;
pub use hira::HiraConfig;
pub use linear::{Factor, LoraLinear};
pub use miss::MissConfig;
pub use oft::OftConfig;
pub use peft_core::shared::Bias;
pub use randlora::RandLoraConfig;
pub use shira::ShiraConfig;
pub use start::Factors;
