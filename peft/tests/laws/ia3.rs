//! IA3.

use peft::core::Names as Targets;
use peft::ia3::Ia3Config;

use super::{Row, all_linear, row};

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
    ]
}
