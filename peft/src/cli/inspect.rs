//! `peft inspect`

use std::path::PathBuf;

use peft_core::{PeftError, Result};

use super::terminal::say;
use crate::folder::inspect::inspect;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Adapter folder.
    adapter: PathBuf,
    /// Base model to check the adapter against.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let inspection = inspect(&args.adapter, args.model.as_deref(), registry)?;
    if args.json {
        let json = serde_json::to_string_pretty(&inspection);
        say!("{}", json.map_err(|error| PeftError::Invalid(error.to_string()))?)
    } else {
        say!("{inspection}")
    }
}
