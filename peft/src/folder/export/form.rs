//! The forms of other programs, and what was written in one of them.

use std::path::PathBuf;
use std::str::FromStr;

use peft_core::{PeftError, Result};
use peft_lora::combine::convert::Conversion;

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
