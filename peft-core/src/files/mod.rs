//! Files: safetensors, checkpoints, adapter folders.

pub mod checkpoint;
pub mod dtype;
pub mod folder;
mod grouped;
mod grouped_config;
pub mod inside;
pub mod place;
pub mod plain;
mod quantised;
pub mod safetensors;
pub mod shards;
