//! Files: safetensors, checkpoints, adapter folders.

pub mod checkpoint;
pub mod dtype;
pub mod folder;
pub mod inside;
pub mod place;
pub mod plain;
pub mod safetensors;
pub mod shards;
