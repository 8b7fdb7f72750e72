//! `text-to-image`: a subject of a few pictures.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use peft_core::files::checkpoint::{Placement, Stored};
use peft_core::spec::keys::KEY_PREFIX;
use peft_core::{AdapterFolder, ModelSpec, PeftError, Result, read_config, write_folder_in};
use peft_models::architecture::ModelConfig;
use peft_models::auto::{ArchitectureRegistry, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_models::diffusion::clip_text::{ClipTextConfig, ClipTextModel};
use peft_models::diffusion::folder::{PipelineIndex, load_clip_text};
use peft_models::diffusion::text_to_image::TextToImageModel;
use peft_tasks::data::image::listing::pictures_in;
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::text_to_image::DreamBooth;
use peft_tasks::train::identity::files_mark;
use serde_json::{Map, Value};

use crate::task::kind::{TaskKind, TaskSource};

/// Learns a subject of a few pictures: DreamBooth.
pub struct TextToImageKind;

/// The parts that are trained, by their folders.
const PARTS: [&str; 2] = ["unet", "text_encoder"];

impl TaskKind for TextToImageKind {
    type Model = TextToImageModel;
    type Task = DreamBooth;

    fn name(&self) -> &'static str {
        "text-to-image"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["dreambooth"]
    }

    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["StableDiffusionPipeline"]
    }

    fn reads_text(&self) -> bool {
        // The pipeline's tokenizer lies in a folder of its own, and texts are prompts.
        false
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<TextToImageModel> {
        check(base)?;
        let unet = architectures.load_denoiser(base.join("unet"), place.clone())?.0;
        let text_encoder = load_clip_text(base.join("text_encoder"), place.clone())?;
        Ok(TextToImageModel::new(unet, text_encoder).with_folder(base))
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<TextToImageModel> {
        let base = raw.path().parent().unwrap_or(Path::new("."));
        check(base)?;
        let unet = architectures.denoiser(&RawConfig::read(base.join("unet"))?, device)?;
        let raw = RawConfig::read(base.join("text_encoder"))?;
        let config = ClipTextConfig::from_raw(&raw).map_err(|error| error.in_file(raw.path()))?;
        Ok(TextToImageModel::new(unet, ClipTextModel::new(&config, device)))
    }

    fn check_data(&self, data: &Path) -> Result<()> {
        pictures_in(data).map(|_| ())
    }

    fn mark_data(&self, data: &TextData) -> Result<String> {
        files_mark(&pictures_in(&data.file)?)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<DreamBooth> {
        let options = source.options;
        DreamBooth::read(&source.data.file, source.base, &options.dreambooth, options.seed, source.device)
    }

    fn finish(&self, folder: &Path, spec: &ModelSpec) -> Result<()> {
        split(folder, spec)
    }
}

/// Refuses pipelines whose parts are not all trained here.
fn check(base: &Path) -> Result<()> {
    let index = PipelineIndex::read(base)?;
    let class = index.class_name()?;
    if class == "StableDiffusionPipeline" {
        return Ok(());
    }
    Err(PeftError::unsupported(format!("training `{class}`"), "only StableDiffusionPipeline is trained"))
}

/// Writes a folder of PEFT for each part that an adapter of both changes: `unet/` and `text_encoder/`.
fn split(folder: &Path, spec: &ModelSpec) -> Result<()> {
    let config = read_config(folder)?;
    let adapter = AdapterFolder::open(folder)?;
    for part in PARTS {
        let prefix = format!("{KEY_PREFIX}{part}.");
        let keys: Vec<String> = adapter.tensors.keys().into_iter().filter(|it| it.starts_with(&prefix)).collect();
        if keys.is_empty() {
            continue;
        }
        let tensors = keys.iter().map(|key| {
            let data = adapter.tensors.floats(key)?;
            Ok(Stored { key: format!("{KEY_PREFIX}{}", &key[prefix.len()..]), data })
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let is_adapted = |module: &str| {
            let within = format!("{KEY_PREFIX}{part}.{module}.");
            keys.iter().any(|it| it.starts_with(&within))
        };
        let modules = spec.layers().filter_map(|it| it.module.strip_prefix(part)?.strip_prefix('.'));
        let modules: Vec<Value> = modules.filter(|it| is_adapted(it)).map(Value::from).collect();
        let config = config_of(&config, part, modules);
        write_folder_in(folder.join(part), &config, tensors, Default::default())?;
    }
    Ok(())
}

/// The configuration of one part, whose layers are named without the part.
fn config_of(both: &Map<String, Value>, part: &str, modules: Vec<Value>) -> Map<String, Value> {
    let mut config = both.clone();
    config.insert("target_modules".to_owned(), Value::Array(modules));
    let base = both.get("base_model_name_or_path").and_then(Value::as_str);
    if let Some(base) = base {
        let inside: PathBuf = [base, part].iter().collect();
        config.insert("base_model_name_or_path".to_owned(), inside.display().to_string().into());
    }
    let (dotted, escaped) = (format!("{part}."), format!(r"{part}\."));
    for field in ["rank_pattern", "alpha_pattern"] {
        let Some(Value::Object(patterns)) = both.get(field) else { continue };
        let within = patterns.iter().map(|(name, value)| {
            let name = [&escaped, &dotted].iter().find_map(|it| name.strip_prefix(it.as_str())).unwrap_or(name);
            (name.to_owned(), value.clone())
        });
        config.insert(field.to_owned(), Value::Object(within.collect()));
    }
    config
}
