//! LoRA's nearest relatives: AdaLoRA, LoHa, LoKr, HiRA, MiSS.

use peft::lora::{AdaLoraConfig, HiraConfig, LoHaConfig, LoKrConfig, LoraConfig, MissConfig};

use super::{Row, all_linear, embedding, row, tables};

fn miss() -> MissConfig {
    MissConfig { r: 7, target_modules: all_linear(), ..MissConfig::default() }
}

fn hira() -> HiraConfig {
    HiraConfig { r: 4, target_modules: all_linear(), ..HiraConfig::default() }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("miss", |_| Box::new(miss())),
        row("miss mini", |_| Box::new(MissConfig { init_weights: "mini".into(), mini_r: 4, ..miss() })),
        row("miss bat", |_| Box::new(MissConfig { init_weights: "bat".into(), r: 8, ..miss() })),
        row("hira", |_| Box::new(hira())),
        embedding(row("hira embedding", |names| Box::new(HiraConfig { target_modules: tables(names), ..hira() }))),
        row("miss saved norm", |names| {
            Box::new(MissConfig { modules_to_save: Some(vec![names.norm.into()]), ..miss() })
        }),
        row("adalora", |_| {
            let lora = LoraConfig::new(4, 40.0).all_linear();
            Box::new(AdaLoraConfig { lora, init_r: 4, target_r: 2, total_step: Some(9), ..AdaLoraConfig::default() })
        }),
        row("loha", |_| Box::new(LoHaConfig { r: 4, alpha: 40.0, target_modules: all_linear(), ..Default::default() })),
        row("loha and a saved norm", |names| {
            let modules_to_save = Some(vec![names.norm.into()]);
            Box::new(LoHaConfig { r: 4, alpha: 40.0, modules_to_save, ..LoHaConfig::default() })
        }),
        row("lokr", |_| Box::new(LoKrConfig { r: 2, alpha: 5.0, target_modules: all_linear(), ..Default::default() })),
        row("lokr of two products", |names| {
            let modules_to_save = Some(vec![names.norm.into()]);
            let init_weights = "lycoris".into();
            let plain = LoKrConfig { r: 1, alpha: 5.0, decompose_both: true, ..LoKrConfig::default() };
            Box::new(LoKrConfig { target_modules: all_linear(), modules_to_save, init_weights, ..plain })
        }),
    ]
}
