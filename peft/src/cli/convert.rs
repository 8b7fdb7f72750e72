//! `peft convert`

use std::path::PathBuf;

use peft::core::Result;
use peft::folders;
use peft::lora::convert::Conversion;

use super::common::{Adapter, device, model_folder};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the base model, or its id on the hub.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id.
    #[arg(long, value_name = "DIR or ID")]
    adapter: String,
    /// Rank of the LoRA adapter.
    #[arg(long)]
    rank: usize,
    /// Folder to write it to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let adapter = Adapter::unscaled(&args.adapter).folder()?;
    let base = model_folder(&args.model)?;
    let layers = folders::convert(&adapter, &base, args.rank, &args.output, &device(Some("flex"))?)?;
    print(&layers);
    println!("LoRA of rank {} written to {}", args.rank, args.output.display());
    Ok(())
}

/// What each layer lost, and all together.
pub(super) fn print(layers: &[Conversion]) {
    let width = layers.iter().map(|it| it.module.len()).max().unwrap_or(0);
    for Conversion { module, error, rank_needed, .. } in layers {
        println!("{module:width$}  error {:7.3} %  exact at rank {rank_needed}", 100.0 * error);
    }
    println!("{:width$}  error {:7.3} %", "all together", 100.0 * folders::total_error(layers));
}
