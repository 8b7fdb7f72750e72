//! OFT and BOFT.

use peft::lora::{Bias, BoftConfig, OftConfig};

use super::{Row, all_linear, embedding, row, tables};

fn oft() -> OftConfig {
    OftConfig { oft_block_size: 8, target_modules: all_linear(), ..OftConfig::default() }
}

fn boft() -> BoftConfig {
    BoftConfig { target_modules: all_linear(), ..BoftConfig::default() }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("oft", |_| Box::new(oft())),
        row("oft exact, shared", |_| {
            Box::new(OftConfig { use_cayley_neumann: false, block_share: true, bias: Bias::AdaptedOnly, ..oft() })
        }),
        row("coft", |_| Box::new(OftConfig { coft: true, eps: 0.5, ..oft() })),
        embedding(row("oft embedding", |names| Box::new(OftConfig { target_modules: tables(names), ..oft() }))),
        row("boft", |_| Box::new(boft())),
        row("boft butterfly", |_| Box::new(BoftConfig { boft_n_butterfly_factor: 2, ..boft() })),
    ]
}
