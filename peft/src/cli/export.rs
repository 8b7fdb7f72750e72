//! `peft export`

use std::path::PathBuf;

use crate::folder::export::{ExportOptions, export};
use peft_core::Result;

use super::common::CpuArgs;
use super::convert::print;
use super::terminal::say;
use crate::folder::output::check_output;
use crate::load::names::{adapter_folder, model_folder};
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Adapter folder or hub id.
    #[arg(long, value_name = "DIR or ID")]
    adapter: String,
    /// portable: a folder for vLLM, TGI, llama.cpp, Ollama, mistral.rs; diffusers; kohya; mlx.
    #[arg(long)]
    format: String,
    /// Folder to write to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace an adapter that is in the output folder.
    #[arg(long)]
    overwrite: bool,
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`: which layers there
    /// are, and needed for --rank.
    #[arg(long, value_name = "DIR or ID")]
    model: Option<String>,
    /// Convert to plain LoRA of this rank first, whatever the method; says what is lost.
    #[arg(long)]
    rank: Option<usize>,
    /// Part of an image pipeline that the adapter is for: unet, text_encoder, ….
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    #[command(flatten)]
    place: CpuArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    check_output(&args.output, args.overwrite)?;
    let options = ExportOptions {
        format: args.format.parse()?,
        base: args.model.as_deref().map(model_folder).transpose()?,
        rank: args.rank,
        component: args.component.clone(),
    };
    let adapter = adapter_folder(&args.adapter)?;
    let exported = export(&adapter, &args.output, &options, registry, args.place.placement()?)?;
    if !exported.converted.is_empty() {
        print(&exported.converted)?;
    }
    say!("{} layers, rank {}", exported.layers, exported.rank)?;
    for note in &exported.notes {
        say!("note: {note}")?;
    }
    for file in &exported.files {
        say!("written: {}", file.display())?;
    }
    Ok(())
}
