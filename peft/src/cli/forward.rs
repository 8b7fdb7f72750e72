//! `peft forward`

use std::path::PathBuf;

use peft::core::Result;
use peft::core::files::checkpoint::{FloatType, write_tensors};
use peft::forward::{ForwardRequest, forward};

use super::common::{Adapter, PlaceArgs, adapter_folders, model_folder};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the base model, or its id on the hub.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// causal-lm, seq-cls, feature-extraction.
    #[arg(long)]
    task: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// Safetensors file with the tensors of the reference's forward, by keyword.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Write `grad.<key>` for every trainable tensor of the adapters.
    #[arg(long)]
    grads: bool,
    /// Fold the adapters into the weights first.
    #[arg(long)]
    merge: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let adapters = adapter_folders(&args.adapter)?;
    let request = ForwardRequest {
        model: model_folder(&args.model)?,
        task: args.task.clone(),
        adapters: adapters.to_vec(),
        strengths: adapters.strengths,
        inputs: args.inputs.clone(),
        grads: args.grads,
        merge: args.merge,
    };
    let stored = forward(&request, &args.place.placement()?)?;
    write_tensors(&args.output, stored, FloatType::F32)
}
