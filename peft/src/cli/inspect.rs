//! `peft inspect`

use std::path::PathBuf;

use peft_core::{PeftError, Result, WEIGHTS_FILE};

use super::terminal::say;
use crate::folder::inspect::{Fit, inspect};
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Adapter folder.
    adapter: PathBuf,
    /// Base model to check the adapter against; if it does not fit, or holds NaN, the exit status is 1.
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
        say!("{}", json.map_err(|error| PeftError::Invalid(error.to_string()))?)?;
    } else {
        say!("{inspection}")?;
    }
    if let Some(key) = inspection.not_finite.first() {
        let file = args.adapter.join(WEIGHTS_FILE);
        return Err(PeftError::NotFinite(format!("{}: `{key}` holds NaN or infinity", file.display())));
    }
    match inspection.fit {
        Some(Fit { fits: Some(false), base, .. }) => {
            Err(PeftError::Invalid(format!("{} does not fit {}", args.adapter.display(), base.display())))
        }
        _ => Ok(()),
    }
}
