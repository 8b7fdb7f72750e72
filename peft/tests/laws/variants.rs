//! IA3, and the relatives of LoRA that update a layer in other forms.

use peft::core::Names as Targets;
use peft::ia3::Ia3Config;

use peft::lora::{
    AdaLoraConfig, Bias, LnTuningConfig, LoHaConfig, LoKrConfig, LoraConfig, TokenIndices, TrainableTokensConfig,
    VeraConfig,
};

use super::{Row, row};

fn all_linear() -> Option<Targets> {
    Some(Targets::Pattern("all-linear".into()))
}

fn vera() -> VeraConfig {
    VeraConfig { r: 5, target_modules: all_linear(), ..VeraConfig::default() }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("ia3", |_| Box::new(Ia3Config::default())),
        row("ia3 on inputs", |_| {
            let feedforward_modules = Some(Targets::Pattern(".*".into()));
            Box::new(Ia3Config { target_modules: all_linear(), feedforward_modules, ..Ia3Config::default() })
        }),
        row("ia3 and a saved norm", |names| {
            Box::new(Ia3Config { modules_to_save: Some(vec![names.norm.into()]), ..Ia3Config::default() })
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
        row("vera", |_| Box::new(vera())),
        row("vera, drawn again, and a saved norm", |names| {
            let modules_to_save = Some(vec![names.norm.into()]);
            Box::new(VeraConfig { save_projection: false, projection_prng_key: -7, modules_to_save, ..vera() })
        }),
        Row {
            starts_as_base: false,
            ..row("vera at random", |_| Box::new(VeraConfig { init_weights: false, bias: Bias::AdaptedOnly, ..vera() }))
        },
        row("norms", |_| Box::new(LnTuningConfig::default())),
        row("tokens", |_| Box::new(TrainableTokensConfig { token_indices: vec![17, 3, 99], ..Default::default() })),
        row("lora and tokens", |_| {
            let trainable_token_indices = Some(TokenIndices::Rows(vec![5, 88]));
            Box::new(LoraConfig { trainable_token_indices, ..LoraConfig::new(4, 6.0) })
        }),
    ]
}
