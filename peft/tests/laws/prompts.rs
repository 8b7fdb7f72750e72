//! Prompts, which promise neither a start as the base nor a merge.

use peft::prompt::{
    AdaptionPromptConfig, EncoderType, MultitaskPromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig,
    PromptTuningConfig, PromptTuningInit,
};

use super::{Row, row};

const TASK: &str = "CAUSAL_LM";

pub(super) fn rows() -> Vec<Row> {
    let rows = vec![
        row("prompt tuning", |_| Box::new(PromptTuningConfig::new(4, TASK))),
        row("prompt tuning from the vocabulary", |_| {
            let prompt_tuning_init = PromptTuningInit::SampleVocab;
            Box::new(PromptTuningConfig { prompt_tuning_init, ..PromptTuningConfig::new(4, TASK) })
        }),
        row("P-tuning", |_| Box::new(PromptEncoderConfig::new(4, TASK))),
        row("P-tuning with an LSTM", |_| {
            let encoder_reparameterization_type = EncoderType::Lstm;
            let (encoder_hidden_size, encoder_num_layers) = (Some(7), 3);
            let plain = PromptEncoderConfig::new(4, TASK);
            Box::new(PromptEncoderConfig {
                encoder_reparameterization_type,
                encoder_hidden_size,
                encoder_num_layers,
                ..plain
            })
        }),
        row("prefix tuning", |_| Box::new(PrefixTuningConfig::new(4, TASK))),
        row("prefix tuning with a projection", |_| {
            let (prefix_projection, encoder_hidden_size) = (true, Some(9));
            let plain = PrefixTuningConfig::new(4, TASK);
            Box::new(PrefixTuningConfig { prefix_projection, encoder_hidden_size, ..plain })
        }),
        row("multitask prompt tuning", |_| Box::new(MultitaskPromptTuningConfig::new(4, 1, TASK))),
    ];
    let gated = Row { merges: |_| false, ..row("LLaMA-Adapter", |_| Box::new(AdaptionPromptConfig::new(5, 2))) };
    rows.into_iter()
        .map(|row| Row { starts_as_base: false, merges: |_| false, ..row })
        .chain(std::iter::once(gated))
        .collect()
}
