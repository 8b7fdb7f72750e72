//! `peft merge`

use std::path::PathBuf;

use peft_core::files::checkpoint::{FloatType, Placement};
use peft_core::{PeftError, Result};

use super::common::{Adapter, adapter_sources};
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
    /// [default: what the adapter's `task_type` says, or causal-lm]
    #[arg(long)]
    task: Option<String>,
    /// Element type of the weights: f32, f16, bf16. By default that of the base.
    #[arg(long)]
    dtype: Option<String>,
    /// flex, wgpu, cuda, tch: among those compiled in.
    #[arg(long)]
    device: Option<String>,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let float = match args.dtype.as_deref() {
        None => None,
        Some("f32") => Some(FloatType::F32),
        Some("f16") => Some(FloatType::F16),
        Some("bf16") => Some(FloatType::BF16),
        Some(other) => return Err(PeftError::config("dtype", format!("is `{other}`, expected f32, f16 or bf16"))),
    };
    let request = MergeRequest {
        base: model_folder(&args.model)?,
        adapters: adapter_sources(&args.adapter)?,
        output: args.output.clone(),
        task: args.task.clone(),
        float,
    };
    merge(&request, registry, Placement::on(&best_device(args.device.as_deref())?))?;
    say!("merged checkpoint written to {}", args.output.display())
}
