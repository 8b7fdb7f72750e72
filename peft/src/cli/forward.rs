//! `peft forward`

use std::path::PathBuf;

use peft_core::Result;
use peft_core::files::checkpoint::{FloatType, write_tensors};

use super::common::{Adapter, PlaceArgs, adapter_sources};
use crate::load::names::model_folder;
use crate::run::actions;
use crate::run::forward::ForwardRequest;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// (similarity gives hidden states, and is also called feature-extraction)
    #[arg(long)]
    task: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// Safetensors file with the keyword arguments of the model's forward in transformers.
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

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let request = ForwardRequest {
        model: model_folder(&args.model)?,
        task: args.task.clone(),
        adapters: adapter_sources(&args.adapter)?,
        inputs: args.inputs.clone(),
        grads: args.grads,
        merge: args.merge,
    };
    let stored = actions::forward(&request, registry, &args.place.placement()?)?;
    write_tensors(&args.output, stored, FloatType::F32)
}
