//! Stable Diffusion as a whole: prompts, pictures, LoRA of several programs, DreamBooth.

mod dreambooth;
mod layouts;
mod pipeline;

use std::path::PathBuf;

use peft::core::files::checkpoint::Placement;
use peft::load::AdapterSource;
use peft::load::pipeline::load_pipeline;
use peft::models::auto::AutoDenoiser;
use peft::tasks::generate::pictures::StableDiffusion;

use crate::support::{device, fixtures, registry};

/// A file or folder of what was recorded of diffusers.
fn recorded(name: &str) -> PathBuf {
    fixtures().join("diffusion").join(name)
}

/// The recorded pipeline with these adapters.
fn pipeline(adapters: &[PathBuf]) -> StableDiffusion<AutoDenoiser> {
    pipeline_of("pipeline", adapters)
}

/// Another one.
fn pipeline_of(folder: &str, adapters: &[PathBuf]) -> StableDiffusion<AutoDenoiser> {
    let adapters: Vec<AdapterSource> = adapters.iter().map(AdapterSource::new).collect();
    let registry = registry();
    let place = Placement::from(&device());
    load_pipeline(&recorded(folder), &adapters, &registry.architectures, &registry.methods, &place).unwrap()
}
