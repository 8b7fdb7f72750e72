//! LoRA and its relatives: low-rank updates of frozen weights, in the files of Hugging Face PEFT.

pub mod combine;
mod common;
mod default_targets;
pub mod lora;
pub mod methods;
mod svd;
pub mod trainable_tokens;

pub use combine::{convert, weighted};
pub use lora::config::{LoraConfig, PEFT_TYPE};
pub use lora::conv::LoraConv;
pub use lora::data_init::calibration::DataInit;
pub use lora::data_init::corda::{self, CordaConfig, CordaMethod};
pub use lora::data_init::eva::{self, EvaConfig};
pub use lora::embedding::LoraEmbedding;
pub use lora::init::Factors;
pub use lora::linear::{Factor, LoraLinear};
pub use lora::loftq::LoftqConfig;
pub use lora::parameter::LoraParameter;
pub use methods::adalora::AdaLoraConfig;
pub use methods::boft::BoftConfig;
pub use methods::fourierft::FourierFtConfig;
pub use methods::hira::HiraConfig;
pub use methods::ln_tuning::LnTuningConfig;
pub use methods::loha::LoHaConfig;
pub use methods::lokr::LoKrConfig;
pub use methods::miss::MissConfig;
pub use methods::oft::OftConfig;
pub use methods::randlora::RandLoraConfig;
pub use methods::shira::ShiraConfig;
pub use methods::vera::VeraConfig;
pub use peft_core::config::fields::Bias;
pub use trainable_tokens::{TokenIndices, TrainableTokensConfig};
