//! What architectures share: configuration, input and cache, masks, positions, heads.

pub mod attention_heads;
pub mod cache;
pub mod config;
pub mod decoder;
pub mod denoiser;
pub mod gated_mlp;
pub mod heads;
pub mod input;
pub mod layers;
pub mod mask;
pub mod pretrained;
pub mod prompt;
pub mod rope;
pub mod task;
pub mod tokenizer_files;
