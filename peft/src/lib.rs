//! x
pub mod device;
pub mod forward;
pub mod prepare;
pub mod hub;
pub mod inspect;

pub use peft_core as core;
#[cfg(feature = "lora")]
pub use peft_lora as lora;
pub use peft_models as models;
pub use peft_tasks as tasks;

use peft_core::Methods;

/// The methods that this build knows.
pub fn methods() -> Methods {
    let methods = Methods::new();
    #[cfg(feature = "lora")]
    let methods = methods.with(peft_lora::PEFT_TYPE, peft_lora::LoraConfig::parse);
    methods
}
