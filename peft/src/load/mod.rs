//! Loading: models and adapters by name, and the two together.

pub mod adapted;
pub mod configure;
pub use peft_models::auto::hub;
