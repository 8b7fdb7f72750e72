//! LoRA.

use peft::lora::{Bias, LoftqConfig, LoraConfig};

use super::{Names, Row, row};

fn plain() -> LoraConfig {
    LoraConfig::new(4, 6.0).all_linear()
}

fn init(name: &str) -> LoraConfig {
    LoraConfig { init_lora_weights: name.into(), ..plain() }
}

fn loftq_8() -> LoraConfig {
    let config = LoftqConfig { loftq_bits: 8, loftq_iter: 2, ..LoftqConfig::default() };
    LoraConfig { loftq_config: Some(config), ..init("loftq") }
}

/// Weights of layers, however they lie, and tables.
fn parameters(names: &Names) -> LoraConfig {
    let layers =
        if names.is_tied { ["attn.c_attn.weight", "wpe.weight"] } else { ["v_proj.weight", "embed_tokens.weight"] };
    let target_parameters = Some(layers.map(str::to_owned).to_vec());
    let target_modules = Some(peft::core::Names::List(Vec::new()));
    LoraConfig { target_parameters, target_modules, ..LoraConfig::new(4, 6.0) }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("default", |_| Box::new(plain())),
        row("rslora", |_| Box::new(LoraConfig { use_rslora: true, ..plain() })),
        row("dora", |_| Box::new(LoraConfig { use_dora: true, ..plain() })),
        row("dora and pissa", |_| Box::new(LoraConfig { use_dora: true, ..init("pissa") })),
        row("bias all", |_| Box::new(LoraConfig { bias: Bias::All, ..plain() })),
        row("bias of adapted layers", |_| Box::new(LoraConfig { bias: Bias::AdaptedOnly, ..plain() })),
        row("gaussian", |_| Box::new(init("gaussian"))),
        row("orthogonal", |_| Box::new(init("orthogonal"))),
        row("pissa", |_| Box::new(init("pissa"))),
        row("pissa by iteration", |_| Box::new(init("pissa_niter_4"))),
        row("olora", |_| Box::new(init("olora"))),
        Row { starts_as_base: false, ..row("loftq", |_| Box::new(init("loftq"))) },
        Row { starts_as_base: false, ..row("loftq in 8 bits", |_| Box::new(loftq_8())) },
        Row {
            starts_as_base: false,
            ..row("dora and loftq", |_| Box::new(LoraConfig { use_dora: true, ..init("loftq") }))
        },
        Row {
            merges: |names| !names.is_tied,
            ..row("embedding", |names| Box::new(LoraConfig::new(4, 6.0).targets(names.tables.iter().copied())))
        },
        row("parameters", |names| Box::new(parameters(names))),
        row("saved norm", |names| Box::new(LoraConfig { modules_to_save: Some(vec![names.norm.into()]), ..plain() })),
    ]
}
