//! A LoRA adapter in the forms of other programs.
//!
//! `adapter_config.json` and `adapter_model.safetensors` are read by PEFT and by those that follow it, each with
//! exceptions of its own; [`inspect`](crate::folder::inspect) lists them. What is written here avoids the exceptions, or is the
//! form of another program altogether. It computes the same update: where a form lacks something, the number goes into
//! `lora_B`, ranks are filled up with zeros, and what cannot be said is refused.

mod form;
mod image;
mod mlx;
mod pairs;
mod portable;
mod write;

pub use form::{ExportOptions, Exported, Format};
pub use write::export;
