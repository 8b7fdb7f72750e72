//! Parameter-efficient fine-tuning on Burn, in the files of Hugging Face PEFT.
//!
//! This crate brings the others together: [`peft_core`] as `core`, [`peft_models`] as `models`, [`peft_tasks`] as
//! `tasks`, and the methods by feature. [`device`] picks a backend at run time, [`load`] finds models and adapters by
//! name, [`run`] makes a task of a data file, [`folder`] looks into adapter folders, combines, converts and exports them,
//! [`forward`](mod@forward) computes one pass from files to files, and [`memory`] tells the allocator what training is
//! like. The `peft` command is built on these.

pub mod device;
pub mod folder;
pub mod forward;
pub mod load;
pub mod memory;
pub mod run;

pub use peft_core as core;
#[cfg(feature = "ia3")]
pub use peft_ia3 as ia3;
#[cfg(feature = "lora")]
pub use peft_lora as lora;
pub use peft_models as models;
#[cfg(feature = "prompt")]
pub use peft_prompt as prompt;
pub use peft_tasks as tasks;

use peft_core::MethodRegistry;

/// The methods that this build knows.
pub fn methods() -> MethodRegistry {
    let methods = MethodRegistry::new();
    #[cfg(feature = "lora")]
    let methods = methods
        .with_method::<peft_lora::LoraConfig>()
        .with_method::<peft_lora::AdaLoraConfig>()
        .with_method::<peft_lora::LoHaConfig>()
        .with_method::<peft_lora::LoKrConfig>()
        .with_method::<peft_lora::LnTuningConfig>()
        .with_method::<peft_lora::TrainableTokensConfig>()
        .with_method::<peft_lora::MissConfig>()
        .with_method::<peft_lora::HiraConfig>()
        .with_method::<peft_lora::ShiraConfig>()
        .with_method::<peft_lora::OftConfig>()
        .with_method::<peft_lora::BoftConfig>()
        .with_method::<peft_lora::FourierFtConfig>()
        .with_method::<peft_lora::RandLoraConfig>()
        .with_method::<peft_lora::VeraConfig>();
    #[cfg(feature = "ia3")]
    let methods = methods.with_method::<peft_ia3::Ia3Config>();
    #[cfg(feature = "prompt")]
    let methods = methods
        .with_method::<peft_prompt::PromptTuningConfig>()
        .with_method::<peft_prompt::PromptEncoderConfig>()
        .with_method::<peft_prompt::PrefixTuningConfig>()
        .with_method::<peft_prompt::MultitaskPromptTuningConfig>()
        .with_method::<peft_prompt::AdaptionPromptConfig>();
    methods
}
