//! Files: safetensors, checkpoints, adapter folders.

pub mod checkpoint;
pub mod folder;
