//! Pictures of prompts, for `peft generate`.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_models::diffusion::folder::INDEX_FILE;
use peft_models::diffusion::schedulers::SchedulerKind;
use peft_tasks::generate::pictures::PictureConfig;

use super::terminal::say;
use crate::load::adapters::AdapterSource;
use crate::load::pipeline::{load_pipeline, with_scheduler};
use crate::run::registry::Registry;

/// The name of the task.
const TASK: &str = "text-to-image";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pictures")]
pub(super) struct PictureArgs {
    /// What the picture is not to show.
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Steps from noise to picture [default: 50]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How closely the picture follows the prompt; at 1 a step costs half [default: 7.5, for SDXL 5]
    #[arg(long, value_name = "NUMBER")]
    guidance_scale: Option<f64>,
    /// In pixels [default: what the model was trained on]
    #[arg(long, value_name = "PIXELS")]
    height: Option<usize>,
    /// In pixels, likewise.
    #[arg(long, value_name = "PIXELS")]
    width: Option<usize>,
    /// ddpm, ddim, pndm, dpm++, euler or euler-a [default: the pipeline's own]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// Layers at the end of the text encoder that are left out.
    #[arg(long, value_name = "N", default_value_t = 0)]
    clip_skip: usize,
    /// Decode the picture in tiles: large ones need less memory.
    #[arg(long)]
    tiling: bool,
    /// How many pictures; from 2 on files are numbered.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Picture to write: .png, .jpg, .webp, ….
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What else was asked for.
pub(super) struct Request<'a> {
    pub(super) folder: &'a Path,
    pub(super) adapters: &'a [AdapterSource],
    pub(super) prompt: &'a str,
    pub(super) seed: u64,
}

/// Whether a picture is meant.
pub(super) fn is_meant(task: Option<&str>, folder: &Path) -> bool {
    task.map_or(folder.join(INDEX_FILE).is_file(), |it| it == TASK)
}

pub(super) fn run(args: &PictureArgs, request: &Request<'_>, registry: &Registry, place: &Placement) -> Result<()> {
    let output = args.output.as_deref().ok_or_else(|| PeftError::config("--output", "is missing: name a picture"))?;
    if args.count == 0 {
        return Err(PeftError::config("--count", "must be at least 1"));
    }
    let files: Vec<PathBuf> = (1..=args.count).map(|at| numbered(output, at, args.count)).collect();
    let defaults = PictureConfig::default();
    let config = PictureConfig {
        steps: args.steps.unwrap_or(defaults.steps),
        guidance_scale: args.guidance_scale,
        height: args.height,
        width: args.width,
        seed: i64::try_from(request.seed).unwrap_or(i64::MAX),
        clip_skip: args.clip_skip,
        tiling: args.tiling,
    };
    if config.guidance_scale.is_some_and(|it| !it.is_finite()) {
        return Err(PeftError::config("--guidance-scale", "must be a finite number"));
    }
    let (architectures, methods) = (&registry.architectures, &registry.methods);
    let mut pipeline = load_pipeline(request.folder, request.adapters, architectures, methods, place)?;
    if let Some(name) = &args.scheduler {
        let kind = SchedulerKind::ALL.into_iter().find(|it| it.name() == name).ok_or_else(|| {
            let names: Vec<&str> = SchedulerKind::ALL.iter().map(|it| it.name()).collect();
            PeftError::config("--scheduler", format!("is `{name}`, expected {}", names.join(", ")))
        })?;
        pipeline.scheduler = with_scheduler(request.folder, kind)?;
    }

    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let seen = |at: usize, count: usize| {
        bar.set_length(count as u64);
        bar.set_position(at as u64);
        Ok(())
    };
    let prompts = vec![request.prompt; args.count];
    let pictures = pipeline.pictures(&prompts, args.negative_prompt.as_deref(), &config, &place.device, seen);
    bar.finish_and_clear();
    for (picture, file) in pictures?.iter().zip(&files) {
        picture.write(file)?;
        say!("{} × {} pixels written to {}", picture.width, picture.height, file.display())?;
    }
    Ok(())
}

/// The name of a picture among several.
fn numbered(output: &Path, at: usize, count: usize) -> PathBuf {
    if count == 1 {
        return output.to_owned();
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let end = output.extension().map(|it| format!(".{}", it.to_string_lossy())).unwrap_or_default();
    output.with_file_name(format!("{stem}-{at}{end}"))
}
