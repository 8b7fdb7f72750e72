//! Methods that train some of the base's own weights: SHiRA, norms, token rows.

use peft::lora::{LnTuningConfig, LoraConfig, ShiraConfig, TokenIndices, TrainableTokensConfig};

use super::{Row, all_linear, row};

fn shira() -> ShiraConfig {
    ShiraConfig { r: 3, target_modules: all_linear(), ..ShiraConfig::default() }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("shira", |_| Box::new(shira())),
        row("norms", |_| Box::new(LnTuningConfig::default())),
        row("tokens", |_| Box::new(TrainableTokensConfig { token_indices: vec![17, 3, 99], ..Default::default() })),
        row("lora and tokens", |_| {
            let trainable_token_indices = Some(TokenIndices::Rows(vec![5, 88]));
            Box::new(LoraConfig { trainable_token_indices, ..LoraConfig::new(4, 6.0) })
        }),
    ]
}
