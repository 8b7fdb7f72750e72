//! A pipeline of diffusers with adapters on its parts.

use std::path::{Path, PathBuf};

use burn::module::Module;
use peft_core::files::checkpoint::Placement;
use peft_core::{Adaptable, AdapterFolder, CONFIG_FILE, MethodRegistry, PeftError, Result, nn};
use peft_models::auto::{ArchitectureRegistry, AutoDenoiser};
use peft_models::diffusion::clip_text::{ClipTextModel, ClipTextModelWithProjection};
use peft_models::diffusion::folder::{PipelineIndex, load_clip_text, load_clip_text_with_projection, load_vae};
use peft_models::diffusion::schedulers::{SchedulerConfig, SchedulerKind};
use peft_tasks::data::clip_tokenizer::ClipTokenizer;
use peft_tasks::generate::pictures::{StableDiffusion, TextEncoder};
use serde_json::Value;

use crate::load::adapters::{AdapterSource, with_adapters};
#[cfg(feature = "lora")]
use crate::load::image_lora::{self, Part};

/// The parts of a pipeline that take adapters.
pub const PARTS: [&str; 3] = ["unet", "text_encoder", "text_encoder_2"];

/// Pipelines that can be run.
const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionXLPipeline"];

/// Adapters of a pipeline, part by part.
#[derive(Debug, Default)]
pub struct PipelineAdapters {
    unet: Vec<AdapterSource>,
    text_encoder: Vec<AdapterSource>,
    text_encoder_2: Vec<AdapterSource>,
    /// Folders of PEFT that files of other programs were read into.
    unpacked: Vec<tempfile::TempDir>,
}

impl PipelineAdapters {
    fn of(&mut self, part: &str) -> &mut Vec<AdapterSource> {
        match part {
            "unet" => &mut self.unet,
            "text_encoder" => &mut self.text_encoder,
            _ => &mut self.text_encoder_2,
        }
    }
}

/// The base models of a pipeline, without adapters.
struct Bases {
    unet: AutoDenoiser,
    text_encoder: Option<ClipTextModel>,
    text_encoder_2: Option<ClipTextModelWithProjection>,
}

/// The folder of a pipeline's part, where its index names one.
fn folder_of(folder: &Path, index: &PipelineIndex, part: &str) -> Option<PathBuf> {
    index.class_of(part).map(|_| folder.join(part))
}

/// Reads a pipeline of diffusers, with adapters on its noise predictor and text encoders.
///
/// An adapter is a folder with a folder of PEFT for each part (`unet/`, `text_encoder/`), a folder of PEFT for one part,
/// which is told by the names of its layers, or a LoRA file of diffusers or kohya.
///
/// # Errors
/// If the folder holds no pipeline that can be run, a file is damaged, or an adapter does not fit.
pub fn load_pipeline(
    folder: &Path,
    adapters: &[AdapterSource],
    architectures: &ArchitectureRegistry,
    methods: &MethodRegistry,
    place: &Placement,
) -> Result<StableDiffusion<AutoDenoiser>> {
    let index = PipelineIndex::read(folder)?;
    let class = index.class_name()?;
    if !PIPELINES.contains(&class) {
        let reason = format!("known are {}", PIPELINES.join(" and "));
        return Err(PeftError::unsupported(format!("the pipeline `{class}` of {}", folder.display()), reason));
    }
    if index.class_of("safety_checker").is_some() {
        tracing::info!("the safety checker of the pipeline is not run");
    }
    let bases = Bases {
        unet: architectures.load_denoiser(folder.join("unet"), place.clone())?.0,
        text_encoder: folder_of(folder, &index, "text_encoder")
            .map(|it| load_clip_text(it, place.clone()))
            .transpose()?,
        text_encoder_2: folder_of(folder, &index, "text_encoder_2")
            .map(|it| load_clip_text_with_projection(it, place.clone()))
            .transpose()?,
    };
    let adapters = sorted(adapters, &bases)?;
    let tokenizer = |part: &str| ClipTokenizer::load(folder.join(part));
    let text_encoder = match bases.text_encoder {
        Some(model) => Some(TextEncoder {
            model: adapted(model, &adapters.text_encoder, methods)?,
            tokenizer: tokenizer("tokenizer")?,
        }),
        None => None,
    };
    let text_encoder_2 = match bases.text_encoder_2 {
        Some(model) => Some(TextEncoder {
            model: adapted(model, &adapters.text_encoder_2, methods)?,
            tokenizer: tokenizer("tokenizer_2")?,
        }),
        None => None,
    };
    Ok(StableDiffusion {
        denoiser: adapted(bases.unet, &adapters.unet, methods)?,
        zeros_for_no_prompt: text_encoder_2.is_some()
            && index.setting("force_zeros_for_empty_prompt").and_then(Value::as_bool).unwrap_or(true),
        text_encoder,
        text_encoder_2,
        vae: nn::eval(&load_vae(folder, place.clone())?),
        scheduler: SchedulerConfig::read(folder.join("scheduler"))?,
    })
}

/// The settings of a pipeline's scheduler for a scheduler of another class.
///
/// # Errors
/// If the pipeline has no scheduler, or the other one cannot be as its file says.
pub fn with_scheduler(folder: &Path, kind: SchedulerKind) -> Result<SchedulerConfig> {
    SchedulerConfig::read_as(folder.join("scheduler"), kind)
}

/// A part with its adapters, as it is run.
fn adapted<M: Module + Adaptable>(base: M, adapters: &[AdapterSource], methods: &MethodRegistry) -> Result<M> {
    match adapters.is_empty() {
        true => Ok(nn::eval(&base)),
        // Folded in once, an adapter costs no step anything.
        false => {
            let model = with_adapters(base, adapters, methods)?;
            Ok(nn::eval(&model.merge().unwrap_or_else(|_| model.model().clone())))
        }
    }
}

/// Which part each adapter is for.
fn sorted(adapters: &[AdapterSource], bases: &Bases) -> Result<PipelineAdapters> {
    let mut all = PipelineAdapters::default();
    for adapter in adapters {
        let strength = adapter.strength;
        let source = |folder: PathBuf| AdapterSource { folder, strength };
        let inside: Vec<&str> =
            PARTS.into_iter().filter(|part| adapter.folder.join(part).join(CONFIG_FILE).is_file()).collect();
        if !inside.is_empty() {
            for part in inside {
                all.of(part).push(source(adapter.folder.join(part)));
            }
        } else if adapter.folder.join(CONFIG_FILE).is_file() {
            let keys = AdapterFolder::open(&adapter.folder)?.tensors.keys();
            let is_text = keys
                .iter()
                .all(|it| it.contains("self_attn.") || it.contains(".mlp.") || it.contains("token_embedding"));
            all.of(if is_text { "text_encoder" } else { "unet" }).push(source(adapter.folder.clone()));
        } else {
            unpack(adapter, bases, &mut all)?;
        }
    }
    let missing = [
        ("text_encoder", bases.text_encoder.is_none() && !all.text_encoder.is_empty()),
        ("text_encoder_2", bases.text_encoder_2.is_none() && !all.text_encoder_2.is_empty()),
    ];
    match missing.into_iter().find(|it| it.1) {
        Some((part, _)) => Err(PeftError::Invalid(format!("an adapter is for `{part}`, which the pipeline has not"))),
        None => Ok(all),
    }
}

#[cfg(feature = "lora")]
fn unpack(adapter: &AdapterSource, bases: &Bases, all: &mut PipelineAdapters) -> Result<()> {
    let Some(file) = image_lora::lora_file(&adapter.folder) else {
        let reason = format!(
            "it is no adapter of a pipeline: expected `unet/` or `text_encoder/` with `{CONFIG_FILE}`, a folder with \
             `{CONFIG_FILE}`, or `{}`",
            image_lora::DIFFUSERS_FILE
        );
        return Err(PeftError::bad_file(&adapter.folder, reason));
    };
    let mut specs = vec![("unet", bases.unet.spec())];
    specs.extend(bases.text_encoder.iter().map(|it| ("text_encoder", it.spec())));
    specs.extend(bases.text_encoder_2.iter().map(|it| ("text_encoder_2", it.spec())));
    let parts: Vec<Part<'_>> = specs.iter().map(|(name, spec)| Part { name, spec }).collect();
    let output = tempfile::tempdir().map_err(PeftError::io("create", "a temporary folder"))?;
    for part in image_lora::unpack(&file, &parts, output.path())? {
        all.of(&part).push(AdapterSource { folder: output.path().join(&part), strength: adapter.strength });
    }
    all.unpacked.push(output);
    Ok(())
}

#[cfg(not(feature = "lora"))]
fn unpack(adapter: &AdapterSource, _: &Bases, _: &mut PipelineAdapters) -> Result<()> {
    Err(PeftError::bad_file(&adapter.folder, format!("it has no `{CONFIG_FILE}`")))
}
