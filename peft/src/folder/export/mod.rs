//! A LoRA adapter in the forms of other programs.
//!
//! `adapter_config.json` and `adapter_model.safetensors` are read by PEFT and by those that follow it, each with
//! exceptions of its own; [`inspect`](crate::folder::inspect) lists them. What is written here avoids the exceptions, or is the
//! form of another program altogether. It computes the same update: where a form lacks something, the number goes into
//! `lora_B`, ranks are filled up with zeros, and what cannot be said is refused.

mod image;
mod mlx;
mod pairs;
mod portable;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::Device;
use peft_core::{PeftError, Result};
use peft_lora::combine::convert::{Conversion, Rank};

use crate::folder::combine;
use pairs::Pairs;

/// Who is to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Everything that reads folders of PEFT: vLLM, TGI, LoRAX, llama.cpp, Ollama, mistral.rs.
    Portable,
    /// diffusers: `pytorch_lora_weights.safetensors` with keys `unet.….lora_A.weight`.
    Diffusers,
    /// kohya's scripts and the programs that follow them: keys `lora_unet_….lora_down.weight` and an `alpha` each.
    Kohya,
    /// mlx-lm: `adapters.safetensors` with factors the other way round.
    Mlx,
}

impl FromStr for Format {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "portable" => Ok(Self::Portable),
            "diffusers" => Ok(Self::Diffusers),
            "kohya" => Ok(Self::Kohya),
            "mlx" => Ok(Self::Mlx),
            _ => Err(PeftError::config("format", format!("is `{name}`, expected portable, diffusers, kohya or mlx"))),
        }
    }
}

/// How to write it.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Who is to read it.
    pub format: Format,
    /// Folder of the base model. Without it nobody knows which layers the adapter leaves out.
    pub base: Option<PathBuf>,
    /// Turns the adapter into plain LoRA of this rank first, whatever it is. Needs the base.
    pub rank: Option<usize>,
    /// Part of an image pipeline that the adapter is for: `unet`, `text_encoder`, …. By default it is told by the names
    /// of the layers.
    pub component: Option<String>,
}

impl ExportOptions {
    /// Everything but the format by default.
    pub fn new(format: Format) -> Self {
        Self { format, base: None, rank: None, component: None }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Number of layers that have factors.
    pub layers: usize,
    /// Rank, the highest where they differ.
    pub rank: usize,
    /// What the conversion to LoRA lost, layer by layer, if there was one.
    pub converted: Vec<Conversion>,
    /// What a user should know although nothing is wrong.
    pub notes: Vec<String>,
}

/// Writes the adapter in the folder `adapter` in another form into the folder `output`.
///
/// # Errors
/// If the folder cannot be read, or holds what the form cannot say; the message names it and the next step.
pub fn export(adapter: &Path, output: &Path, options: &ExportOptions, device: &Device) -> Result<Exported> {
    if combine::is_same(adapter, output) {
        return Err(PeftError::config("output", "is the adapter's own folder: give another one"));
    }
    let plain = tempfile::tempdir().map_err(PeftError::io("create", "a temporary folder"))?;
    let (adapter, converted) = match options.rank {
        None => (adapter, Vec::new()),
        Some(rank) => {
            let Some(base) = &options.base else {
                return Err(PeftError::config("rank", "needs the base model to convert the adapter: name it too"));
            };
            (plain.path(), combine::convert(adapter, base, Rank::Fixed(rank), plain.path(), device)?)
        }
    };
    let pairs = Pairs::read(adapter)?;
    let mut exported = match options.format {
        Format::Portable => portable::write(pairs, output, options.base.as_deref())?,
        Format::Diffusers => image::write_diffusers(&pairs, output, options.component.as_deref())?,
        Format::Kohya => image::write_kohya(&pairs, output, options.component.as_deref())?,
        Format::Mlx => mlx::write(&pairs, output)?,
    };
    exported.converted = converted;
    Ok(exported)
}
