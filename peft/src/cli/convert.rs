//! `peft convert`

use std::path::PathBuf;

use peft::core::Result;
use peft::folder::combine;
use peft::lora::combine::convert::{Conversion, Rank};

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
    #[arg(long, required_unless_present = "keep")]
    rank: Option<usize>,
    /// A rank for each layer instead: the lowest that keeps this share of the update, such as 0.99.
    #[arg(long, value_name = "SHARE", conflicts_with = "rank")]
    keep: Option<f64>,
    /// Folder to write it to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let adapter = Adapter::unscaled(&args.adapter).folder()?;
    let base = model_folder(&args.model)?;
    let rank = match (args.rank, args.keep) {
        (_, Some(share)) => Rank::Share(share),
        (rank, None) => Rank::Fixed(rank.unwrap_or(0)),
    };
    let layers = combine::convert(&adapter, &base, rank, &args.output, &device(Some("flex"))?)?;
    print(&layers);
    let rank = layers.iter().map(|it| it.rank).max().unwrap_or(0);
    println!("LoRA of rank {rank} written to {}", args.output.display());
    Ok(())
}

/// What each layer lost, and all together.
pub(super) fn print(layers: &[Conversion]) {
    let width = layers.iter().map(|it| it.module.len()).max().unwrap_or(0);
    for Conversion { module, rank, error, rank_needed, .. } in layers {
        println!("{module:width$}  rank {rank:3}  error {:7.3} %  exact at rank {rank_needed}", 100.0 * error);
    }
    println!("{:width$}            error {:7.3} %", "all together", 100.0 * combine::total_error(layers));
}
