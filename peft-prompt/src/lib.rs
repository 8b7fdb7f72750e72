//! Methods that leave every weight as it is and put something beside the tokens.
//!
//! | method | what | paper |
//! | --- | --- | --- |
//! | [`PromptTuningConfig`] | virtual tokens before the input | arXiv 2104.08691 |
//! | [`PromptEncoderConfig`] | virtual tokens that a small network makes: P-tuning | 2103.10385 |
//! | [`PrefixTuningConfig`] | keys and values before those of every layer | 2101.00190, 2110.07602 |
//! | [`MultitaskPromptTuningConfig`] | virtual tokens that tasks share but for a low rank | 2303.02861 |
//! | [`AdaptionPromptConfig`] | gated tokens beside the attention of the upper layers: LLaMA-Adapter | 2303.16199 |
//!
//! An encoder is saved as what it makes, as the reference does, and beside that in a file of its own, from which its
//! training goes on.

mod adaption;
mod config;
mod dense;
mod lstm;
mod multitask;
mod p_tuning;
mod prefix;
mod start;
mod tokens;

pub use adaption::{AdaptionPrompt, AdaptionPromptConfig};
pub use config::PromptLearning;
pub use dense::{Dense, Table};
pub use lstm::{Lstm, LstmCell};
pub use multitask::{MultitaskInit, MultitaskPromptTuningConfig, MultitaskTokens};
pub use p_tuning::{EncoderType, PromptEncoder, PromptEncoderConfig};
pub use prefix::{Prefix, PrefixEncoder, PrefixTuningConfig};
pub use tokens::{PromptTuningConfig, PromptTuningInit, VirtualTokens};

/// `peft_type` of prompt tuning.
pub const PROMPT_TUNING: &str = "PROMPT_TUNING";
/// `peft_type` of P-tuning.
pub const P_TUNING: &str = "P_TUNING";
/// `peft_type` of prefix tuning.
pub const PREFIX_TUNING: &str = "PREFIX_TUNING";
/// `peft_type` of multitask prompt tuning.
pub const MULTITASK_PROMPT_TUNING: &str = "MULTITASK_PROMPT_TUNING";
/// `peft_type` of LLaMA-Adapter.
pub const ADAPTION_PROMPT: &str = "ADAPTION_PROMPT";

/// Why none of these can be merged.
const NO_WEIGHT: &str = "a prompt changes no weight that it could be folded into; keep it beside the model";
