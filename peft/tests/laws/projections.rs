//! VeRA, RandLoRA and FourierFT: trained coefficients of a fixed random basis.

use peft::lora::{Bias, FourierFtConfig, RandLoraConfig, VeraConfig};

use super::{Row, all_linear, row};

fn vera() -> VeraConfig {
    VeraConfig { r: 5, target_modules: all_linear(), ..VeraConfig::default() }
}

fn fourierft() -> FourierFtConfig {
    FourierFtConfig { n_frequency: 50, init_weights: true, target_modules: all_linear(), ..FourierFtConfig::default() }
}

fn randlora() -> RandLoraConfig {
    RandLoraConfig { r: 5, randlora_alpha: 8.0, target_modules: all_linear(), ..RandLoraConfig::default() }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("fourierft", |_| Box::new(fourierft())),
        Row {
            starts_as_base: false,
            ..row("fourierft at random", |_| Box::new(FourierFtConfig { init_weights: false, ..fourierft() }))
        },
        row("randlora", |_| Box::new(randlora())),
        row("randlora unsaved", |_| Box::new(RandLoraConfig { save_projection: false, ..randlora() })),
        row("randlora sparse", |_| Box::new(RandLoraConfig { sparse: true, bias: Bias::All, ..randlora() })),
        row("vera", |_| Box::new(vera())),
        row("vera, drawn again, and a saved norm", |names| {
            let modules_to_save = Some(vec![names.norm.into()]);
            Box::new(VeraConfig { save_projection: false, projection_prng_key: -7, modules_to_save, ..vera() })
        }),
        Row {
            starts_as_base: false,
            ..row("vera at random", |_| Box::new(VeraConfig { init_weights: false, bias: Bias::AdaptedOnly, ..vera() }))
        },
    ]
}
