//! The methods of this build.

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
