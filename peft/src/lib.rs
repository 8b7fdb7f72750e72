//! Parameter-efficient fine-tuning on Burn, in the files of Hugging Face PEFT.
//!
//! This crate brings the others together: [`peft_core`] as `core`, [`peft_models`] as `models`, [`peft_tasks`] as
//! `tasks`, and the methods by feature. [`device`] picks a backend at run time, [`prepare`] makes a task of a data
//! file, [`configure`](mod@configure) reads configurations, [`hub`] finds models and adapters by name, [`inspect`] looks
//! into an adapter folder, [`forward`](mod@forward) computes one pass from files to files, and [`memory`] tells the
//! allocator what training is like. The `peft` command is built on these.

pub mod configure;
pub mod device;
pub mod forward;
pub mod hub;
pub mod inspect;
pub mod memory;
pub mod prepare;

pub use peft_core as core;
#[cfg(feature = "ia3")]
pub use peft_ia3 as ia3;
#[cfg(feature = "lora")]
pub use peft_lora as lora;
pub use peft_models as models;
#[cfg(feature = "prompt")]
pub use peft_prompt as prompt;
pub use peft_tasks as tasks;

use peft_core::Methods;

/// The methods that this build knows.
pub fn methods() -> Methods {
    let methods = Methods::new();
    #[cfg(feature = "lora")]
    let methods = methods
        .with(peft_lora::PEFT_TYPE, peft_lora::LoraConfig::parse)
        .with(peft_lora::adalora::PEFT_TYPE, peft_lora::AdaLoraConfig::parse)
        .with(peft_lora::loha::PEFT_TYPE, peft_lora::LoHaConfig::parse)
        .with(peft_lora::lokr::PEFT_TYPE, peft_lora::LoKrConfig::parse)
        .with(peft_lora::norms::PEFT_TYPE, peft_lora::LnTuningConfig::parse)
        .with(peft_lora::tokens::PEFT_TYPE, peft_lora::TrainableTokensConfig::parse)
        .with(peft_lora::miss::PEFT_TYPE, peft_lora::MissConfig::parse)
        .with(peft_lora::hira::PEFT_TYPE, peft_lora::HiraConfig::parse)
        .with(peft_lora::shira::PEFT_TYPE, peft_lora::ShiraConfig::parse)
        .with(peft_lora::oft::PEFT_TYPE, peft_lora::OftConfig::parse)
        .with(peft_lora::boft::PEFT_TYPE, peft_lora::BoftConfig::parse)
        .with(peft_lora::fourierft::PEFT_TYPE, peft_lora::FourierFtConfig::parse)
        .with(peft_lora::randlora::PEFT_TYPE, peft_lora::RandLoraConfig::parse)
        .with(peft_lora::vera::PEFT_TYPE, peft_lora::VeraConfig::parse);
    #[cfg(feature = "ia3")]
    let methods = methods.with(peft_ia3::PEFT_TYPE, peft_ia3::Ia3Config::parse);
    #[cfg(feature = "prompt")]
    let methods = methods
        .with(peft_prompt::PROMPT_TUNING, peft_prompt::PromptTuningConfig::parse)
        .with(peft_prompt::P_TUNING, peft_prompt::PromptEncoderConfig::parse)
        .with(peft_prompt::PREFIX_TUNING, peft_prompt::PrefixTuningConfig::parse)
        .with(peft_prompt::MULTITASK_PROMPT_TUNING, peft_prompt::MultitaskPromptTuningConfig::parse)
        .with(peft_prompt::ADAPTION_PROMPT, peft_prompt::AdaptionPromptConfig::parse);
    methods
}
