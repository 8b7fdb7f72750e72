//! `peft inspect`

use std::path::PathBuf;

use peft::core::{PeftError, Result};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Adapter folder.
    adapter: PathBuf,
    /// Base model to check the adapter against.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let inspection = peft::folder::inspect::inspect(&args.adapter, args.model.as_deref())?;
    if args.json {
        let json = serde_json::to_string_pretty(&inspection);
        println!("{}", json.map_err(|error| PeftError::Invalid(error.to_string()))?);
    } else {
        println!("{inspection}");
    }
    Ok(())
}
