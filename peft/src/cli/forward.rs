//! `peft forward`

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::{FloatType, check_finite, write_tensors};
use peft_core::{PeftError, Result};

use super::common::{Adapter, PlaceArgs, adapter_sources};
use crate::load::adapters::is_same_folder;
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
    check_output(&request, &args.output)?;
    let stored = actions::forward(&request, registry, &args.place.placement()?)?;
    check_finite(&stored, FloatType::F32, "look at the base and the adapters, or at a strength that is too large")?;
    write_tensors(&args.output, stored, FloatType::F32)
}

/// Refuses to write over what is read: the inputs, and files of the base and of adapters.
fn check_output(request: &ForwardRequest, output: &Path) -> Result<()> {
    let folders = request.adapters.iter().map(|it| it.folder.as_path()).chain([request.model.as_path()]);
    let parent = output.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_read = |it: &OsStr| ["safetensors", "json", "txt", "jinja", "model"].iter().any(|ending| it == *ending);
    let is_inside = output.extension().is_some_and(is_read)
        && output.exists()
        && folders.into_iter().any(|it| is_same_folder(it, parent));
    match is_inside || is_same_folder(output, &request.inputs) {
        true => {
            Err(PeftError::config("--output", format!("is {}, which is read: give another file", output.display())))
        }
        false => Ok(()),
    }
}
