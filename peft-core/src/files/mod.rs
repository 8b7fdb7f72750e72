//! Files: safetensors, checkpoints, adapter folders.

pub mod checkpoint;
pub mod dtype;
pub mod folder;
pub mod inside;
pub mod place;
pub mod plain;
mod quantised;
pub mod safetensors;
pub mod shards;
