//! A base model with its adapters.

mod add;
pub mod fingerprint;
mod folders;
pub mod layers;
pub mod merge;
pub mod peft_model;
pub mod state;
pub mod status;
pub mod update;
pub mod values;
pub mod vocabulary;
