//! `peft devices`

use peft_core::{PeftError, Result};

use super::terminal::say;
use crate::device::devices;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let found = devices();
    if args.json {
        let text = serde_json::to_string_pretty(&found).map_err(|error| PeftError::Invalid(error.to_string()))?;
        return say!("{text}");
    }
    let width = found.iter().map(|it| it.name.len()).max().unwrap_or(0) + 2;
    found.iter().try_for_each(|it| {
        let memory = it.memory.map(|bytes| format!(", {:.1} GB", bytes as f64 / 1e9)).unwrap_or_default();
        say!("{:<width$}{}{memory}", it.name, it.description)
    })
}
