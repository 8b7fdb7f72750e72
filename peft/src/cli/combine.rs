//! `peft combine`

use std::path::PathBuf;

use crate::folder::combine::combine;
use peft_core::{PeftError, Result};
use peft_lora::combine::weighted::{Combination, Majority};

use super::common::{Adapter, CpuArgs};
use super::terminal::say;
use crate::folder::output::check_output;
use crate::load::names::model_folder;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id and its weight, 1 if none is given; one for each adapter.
    #[arg(long, value_name = "DIR or ID[=WEIGHT]", required = true)]
    adapter: Vec<Adapter>,
    /// Folder to write the new adapter to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace an adapter that is in the output folder.
    #[arg(long)]
    overwrite: bool,
    /// linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune, and the last four with _svd. Ranks may differ for
    /// cat and those that end in svd.
    #[arg(long, default_value = "linear")]
    kind: String,
    /// Share of values that ties, dare and magnitude_prune keep.
    #[arg(long)]
    density: Option<f64>,
    /// What decides on a sign in ties and dare_ties: total or frequency.
    #[arg(long, default_value = "total")]
    majority: String,
    /// Rank of the result, for kinds that end in svd; by default the highest.
    #[arg(long)]
    rank: Option<usize>,
    /// Quantile beyond which factors are cut off, for kinds that end in svd.
    #[arg(long, value_name = "QUANTILE")]
    clamp: Option<f64>,
    /// What the random choices of dare depend on.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    place: CpuArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    check_output(&args.output, args.overwrite)?;
    let majority = match args.majority.as_str() {
        "total" => Majority::Total,
        "frequency" => Majority::Frequency,
        other => {
            return Err(PeftError::config("majority", format!("is `{other}`, expected total or frequency")));
        }
    };
    let mut how = Combination::parse(&args.kind, args.density, majority, args.rank)?;
    match &mut how {
        Combination::Svd { clamp, .. } => *clamp = args.clamp,
        _ if args.rank.is_some() || args.clamp.is_some() => {
            let reason = format!("has no meaning for `{}`: take a kind that ends in svd", args.kind);
            return Err(PeftError::config(if args.rank.is_some() { "rank" } else { "clamp" }, reason));
        }
        _ => {}
    }
    let adapters = args.adapter.iter().map(|it| Ok((it.folder()?, it.weight))).collect::<Result<Vec<_>>>()?;
    let base = model_folder(&args.model)?;
    combine(&adapters, &base, how, args.seed, &args.output, registry, args.place.placement()?)?;
    say!("{} adapters combined ({}) in {}", adapters.len(), args.kind, args.output.display())
}
