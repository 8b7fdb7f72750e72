//! Adapter folders as things: combined, converted, exported, inspected.

#[cfg(feature = "lora")]
pub mod combine;
#[cfg(feature = "lora")]
pub mod export;
pub mod inspect;
