//! LoRA itself: its configuration, its layers, and where its factors start.

pub mod config;
pub mod conv;
pub mod data_init;
pub(crate) mod dora;
pub mod embedding;
pub mod init;
pub(crate) mod init_weights;
mod invocation;
pub(crate) mod layers;
pub mod linear;
pub mod loftq;
pub mod lora_fa;
pub mod parameter;
mod plan;
