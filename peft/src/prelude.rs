//! What most programs import: `use peft::prelude::*;`.

pub use peft_core::files::checkpoint::Placement;
pub use peft_core::{Adaptable, PeftError, PeftModel, Result, nn};
#[cfg(feature = "ia3")]
pub use peft_ia3::Ia3Config;
#[cfg(feature = "lora")]
pub use peft_lora::LoraConfig;
pub use peft_models::auto::{
    AutoCausalLm, AutoFeatureExtractor, AutoMaskedLm, AutoQuestionAnswerer, AutoSeq2SeqLm, AutoSequenceClassifier,
    AutoSpeechSeq2Seq, AutoTokenClassifier, ClassifierOptions,
};
pub use peft_models::{
    CausalLm, FeatureExtractor, MaskedLm, Pretrained, QuestionAnswerer, Seq2SeqLm, SequenceClassifier, TokenClassifier,
};
#[cfg(feature = "prompt")]
pub use peft_prompt::{PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig};
pub use peft_tasks::data::text_data::TextData;
pub use peft_tasks::data::tokenizer::Tokenizer;
pub use peft_tasks::tasks::task::{Evaluation, Task};
pub use peft_tasks::train::{Observer, Start, TrainConfig, Trainer};

pub use crate::Registry;
pub use crate::device::device;
pub use crate::run::{RunConfig, RunObserver};
pub use crate::task::{TaskKind, TaskSource};
