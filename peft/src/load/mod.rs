//! Loading: models and adapters by name, configurations, and adapters on a base.

pub mod adapters;
pub mod any_model;
pub mod configure;
#[cfg(feature = "lora")]
pub mod image_lora;
#[cfg(feature = "lora")]
mod ldm_names;
pub mod names;
#[cfg(feature = "image")]
pub mod pipeline;
pub mod text;

pub use adapters::{AdapterSource, with_adapters};
pub use any_model::{AnyModel, any_model};
pub use names::{adapter_folder, model_folder};
pub use peft_models::auto::hub;
