//! Files: safetensors, checkpoints, adapter folders.

pub mod checkpoint;
pub mod dtype;
pub mod folder;
pub mod inside;
pub mod safetensors;
