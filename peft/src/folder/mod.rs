//! Adapter folders as things: combined, converted, exported, inspected, merged into their base.

pub mod adapted;
#[cfg(feature = "lora")]
pub mod combine;
#[cfg(feature = "lora")]
pub mod convert;
#[cfg(feature = "lora")]
pub mod export;
pub mod inspect;
pub mod merge;
pub mod output;
