//! `peft export`

use std::path::PathBuf;

use peft::core::Result;
use peft::folder::export::{ExportOptions, export};

use super::common::{Adapter, device, model_folder};
use super::convert::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Adapter folder or hub id.
    #[arg(long, value_name = "DIR or ID")]
    adapter: String,
    /// portable: a folder for vLLM, TGI, llama.cpp, Ollama, mistral.rs; diffusers; kohya; mlx.
    #[arg(long)]
    format: String,
    /// Folder to write to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Folder of the base model, or its id on the hub: which layers there are, and needed for --rank.
    #[arg(long, value_name = "DIR or ID")]
    model: Option<String>,
    /// Convert to plain LoRA of this rank first, whatever the method; says what is lost.
    #[arg(long)]
    rank: Option<usize>,
    /// Part of an image pipeline that the adapter is for: unet, text_encoder, ….
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = ExportOptions {
        format: args.format.parse()?,
        base: args.model.as_deref().map(model_folder).transpose()?,
        rank: args.rank,
        component: args.component.clone(),
    };
    let adapter = Adapter::unscaled(&args.adapter).folder()?;
    let exported = export(&adapter, &args.output, &options, &device(Some("flex"))?)?;
    if !exported.converted.is_empty() {
        print(&exported.converted);
    }
    println!("{} layers, rank {}", exported.layers, exported.rank);
    for note in &exported.notes {
        println!("note: {note}");
    }
    for file in &exported.files {
        println!("written: {}", file.display());
    }
    Ok(())
}
