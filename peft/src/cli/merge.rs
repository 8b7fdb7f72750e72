//! `peft merge`

use std::path::PathBuf;

use peft_core::Result;
use peft_core::files::checkpoint::{BaseDtype, Placement};
use peft_core::files::shards::ShardSize;

use super::common::{Adapter, QuantArgs, adapter_sources};
use super::terminal::say;
use crate::device::best_device;
use crate::folder::merge::{MergeRequest, merge};
use crate::load::names::model_folder;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all folded in. `DIR=0.5` folds in half of it.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]", required = true)]
    adapter: Vec<Adapter>,
    /// Folder to write the checkpoint to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// [default: what the adapter's `task_type` says, else the base's `architectures`]
    #[arg(long)]
    task: Option<String>,
    /// Element type of the weights: auto, that of the base; float32, bfloat16 or float16
    #[arg(long, default_value = "auto")]
    dtype: BaseDtype,
    /// Largest file of weights; what does not fit goes into more of them, with an index.
    #[arg(long, value_name = "SIZE", default_value = "50GB")]
    max_shard_size: ShardSize,
    /// Replace a checkpoint that is in the output folder already. Other files there stay.
    #[arg(long)]
    overwrite: bool,
    /// auto, flex, cuda, cuda:1, wgpu, tch, …: `peft devices` lists those of this machine [default: auto]
    #[arg(long)]
    device: Option<String>,
    #[command(flatten)]
    quant: QuantArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let request = MergeRequest {
        base: model_folder(&args.model)?,
        adapters: adapter_sources(&args.adapter)?,
        output: args.output.clone(),
        task: args.task.clone(),
        float: args.dtype.float_type(),
        max_shard_size: args.max_shard_size,
        overwrite: args.overwrite,
    };
    let place = Placement::on(&best_device(args.device.as_deref())?).with_quantization(args.quant.config());
    let report = merge(&request, registry, place)?;
    say!("merged checkpoint written to {} ({}, {})", args.output.display(), report.task, report.float)?;
    for (what, names) in [
        ("from the adapter", &report.from_adapter),
        ("from the base", &report.from_base),
        ("left out", &report.left_out),
    ] {
        if !names.is_empty() {
            say!("{what}: {}", names.join(", "))?;
        }
    }
    Ok(())
}
