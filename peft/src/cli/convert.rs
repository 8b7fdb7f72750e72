//! `peft convert`

use std::path::PathBuf;

use super::terminal::say;
use crate::folder::convert::{convert, total_error};
use peft_core::Result;
use peft_lora::combine::convert::{Conversion, Rank};

use super::common::CpuArgs;
use crate::folder::output::check_output;
use crate::load::names::{adapter_folder, model_folder};
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
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
    /// Replace an adapter that is in the output folder.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    place: CpuArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    check_output(&args.output, args.overwrite)?;
    let adapter = adapter_folder(&args.adapter)?;
    let base = model_folder(&args.model)?;
    let rank = match (args.rank, args.keep) {
        (_, Some(share)) => Rank::Share(share),
        (rank, None) => Rank::Fixed(rank.unwrap_or(0)),
    };
    let layers = convert(&adapter, &base, rank, &args.output, registry, args.place.placement()?)?;
    print(&layers)?;
    let rank = layers.iter().map(|it| it.rank).max().unwrap_or(0);
    say!("LoRA of rank {rank} written to {}", args.output.display())
}

/// What each layer lost, and all together.
pub(super) fn print(layers: &[Conversion]) -> Result<()> {
    let width = layers.iter().map(|it| it.module.len()).max().unwrap_or(0);
    for Conversion { module, rank, error, rank_needed, .. } in layers {
        say!("{module:width$}  rank {rank:3}  error {:7.3} %  exact at rank {rank_needed}", 100.0 * error)?;
    }
    say!("{:width$}            error {:7.3} %", "all together", 100.0 * total_error(layers))
}
