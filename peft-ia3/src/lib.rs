//! IA3: one trained number for each output, or input, of a layer. In the files of Hugging Face PEFT.
//!
//! Source: arXiv 2205.05638 and `peft/tuners/ia3` (0.21).

mod combine;
mod config;
mod defaults;
mod vector;

pub use combine::CombineIa3;
pub use config::{Ia3Config, PEFT_TYPE};
pub use vector::Ia3;
