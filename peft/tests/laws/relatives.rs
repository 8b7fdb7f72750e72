//! MiSS, HiRA, SHiRA, OFT, BOFT, FourierFT, RandLoRA.

use peft::core::{ALL_LINEAR, Names as Targets};
use peft::lora::{Bias, BoftConfig, FourierFtConfig, HiraConfig, MissConfig, OftConfig, RandLoraConfig, ShiraConfig};

use super::{Names, Row, row};

fn all() -> Option<Targets> {
    Some(Targets::Pattern(ALL_LINEAR.into()))
}

fn tables(names: &Names) -> Option<Targets> {
    Some(Targets::list(names.tables.iter().copied()))
}

fn miss() -> MissConfig {
    MissConfig { r: 7, target_modules: all(), ..MissConfig::default() }
}

fn hira() -> HiraConfig {
    HiraConfig { r: 4, target_modules: all(), ..HiraConfig::default() }
}

fn oft() -> OftConfig {
    OftConfig { oft_block_size: 8, target_modules: all(), ..OftConfig::default() }
}

fn boft() -> BoftConfig {
    BoftConfig { target_modules: all(), ..BoftConfig::default() }
}

fn fourierft() -> FourierFtConfig {
    FourierFtConfig { n_frequency: 50, init_weights: true, target_modules: all(), ..FourierFtConfig::default() }
}

fn randlora() -> RandLoraConfig {
    RandLoraConfig { r: 5, randlora_alpha: 8.0, target_modules: all(), ..RandLoraConfig::default() }
}

fn shira() -> ShiraConfig {
    ShiraConfig { r: 3, target_modules: all(), ..ShiraConfig::default() }
}

fn embedding(row: Row) -> Row {
    Row { merges: |names| !names.is_tied, ..row }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("miss", |_| Box::new(miss())),
        row("miss mini", |_| Box::new(MissConfig { init_weights: "mini".into(), mini_r: 4, ..miss() })),
        row("miss bat", |_| Box::new(MissConfig { init_weights: "bat".into(), r: 8, ..miss() })),
        row("hira", |_| Box::new(hira())),
        embedding(row("hira embedding", |names| Box::new(HiraConfig { target_modules: tables(names), ..hira() }))),
        row("shira", |_| Box::new(shira())),
        row("oft", |_| Box::new(oft())),
        row("oft exact, shared", |_| {
            Box::new(OftConfig { use_cayley_neumann: false, block_share: true, bias: Bias::AdaptedOnly, ..oft() })
        }),
        row("coft", |_| Box::new(OftConfig { coft: true, eps: 0.5, ..oft() })),
        embedding(row("oft embedding", |names| Box::new(OftConfig { target_modules: tables(names), ..oft() }))),
        row("boft", |_| Box::new(boft())),
        row("boft butterfly", |_| Box::new(BoftConfig { boft_n_butterfly_factor: 2, ..boft() })),
        row("fourierft", |_| Box::new(fourierft())),
        Row {
            starts_as_base: false,
            ..row("fourierft at random", |_| Box::new(FourierFtConfig { init_weights: false, ..fourierft() }))
        },
        row("randlora", |_| Box::new(randlora())),
        row("randlora unsaved", |_| Box::new(RandLoraConfig { save_projection: false, ..randlora() })),
        row("randlora sparse", |_| Box::new(RandLoraConfig { sparse: true, bias: Bias::All, ..randlora() })),
        row("miss saved norm", |names| {
            Box::new(MissConfig { modules_to_save: Some(vec![names.norm.into()]), ..miss() })
        }),
    ]
}
