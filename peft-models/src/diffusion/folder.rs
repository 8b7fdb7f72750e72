//! Folders of diffusers: a pipeline, with a folder for each of its parts.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use peft_core::files::checkpoint::{Checkpoint, Placement};
use peft_core::files::plain::read_text;
use peft_core::{ModelSpec, PeftError, Result};
use serde_json::{Map, Value};

use crate::architecture::ModelConfig;
use crate::common::config::RawConfig;
use crate::diffusion::clip_text::{self, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection};
use crate::diffusion::vae::{AutoencoderKl, AutoencoderKlConfig};

/// The file that names the parts of a pipeline.
pub const INDEX_FILE: &str = "model_index.json";

/// The folder of a part: that of a pipeline has it inside; any other is taken for the part itself.
pub fn part(folder: &Path, name: &str) -> PathBuf {
    let inside = folder.join(name);
    if !folder.join("config.json").is_file() && inside.join("config.json").is_file() {
        inside
    } else {
        folder.to_owned()
    }
}

/// `model_index.json`: the class of a pipeline, and of its parts.
#[derive(Debug, Clone)]
pub struct PipelineIndex {
    path: PathBuf,
    json: Map<String, Value>,
}

impl PipelineIndex {
    /// Reads the index of a folder.
    ///
    /// # Errors
    /// If there is none, or it is no JSON object.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(INDEX_FILE);
        if !path.is_file() {
            let reason = format!("it has no `{INDEX_FILE}`; give the folder of a pipeline of diffusers");
            return Err(PeftError::bad_file(folder.as_ref(), reason));
        }
        let json = serde_json::from_str(&read_text(&path)?).map_err(|error| PeftError::bad_file(&path, error))?;
        Ok(Self { path, json })
    }

    /// The class of the pipeline: `StableDiffusionPipeline`.
    ///
    /// # Errors
    /// If the file names none.
    pub fn class_name(&self) -> Result<&str> {
        let class = self.json.get("_class_name").and_then(Value::as_str);
        class.ok_or_else(|| PeftError::bad_file(&self.path, "it names no `_class_name`"))
    }

    /// The class of a part, if the pipeline has it.
    pub fn class_of(&self, part: &str) -> Option<&str> {
        self.json.get(part)?.as_array()?.get(1)?.as_str()
    }

    /// A setting of the pipeline, such as `force_zeros_for_empty_prompt`.
    pub fn setting(&self, name: &str) -> Option<&Value> {
        self.json.get(name)
    }
}

/// Reads a part that must be whole: a tensor more in the file would make another model of it.
fn load<C: ModelConfig, M: Module>(
    folder: &Path,
    place: &Placement,
    prefix: &str,
    new: impl Fn(&C, &Device) -> Result<M>,
    renamed: impl Fn(&str) -> Option<String>,
) -> Result<M> {
    let raw = RawConfig::read(folder)?;
    let config = C::from_raw(&raw).map_err(|error| error.in_file(raw.path()))?;
    let model = new(&config, &place.device)?;
    let checkpoint = Checkpoint::open(folder)?.with_dtype(place.dtype);
    let checkpoint = checkpoint.with_shards(place.shards.clone()).with_quantization(place.quantize.clone())?;
    let mut checkpoint = checkpoint.with_llm_int8_threshold(place.llm_int8_threshold)?;
    for param in ModelSpec::of(&model).iter() {
        if let Some(key) = renamed(&param.path()) {
            checkpoint.also_under(param.path(), key);
        }
    }
    let (model, report) = checkpoint.load(model, prefix, &[])?;
    // A buffer of positions, which earlier releases of transformers wrote.
    let spare = report.unexpected.iter().find(|it| !it.ends_with("position_ids"));
    match spare {
        None => Ok(model),
        Some(key) => {
            let reason = format!("the checkpoint holds `{key}`, which this configuration does not ask for");
            Err(PeftError::bad_file(raw.path(), reason))
        }
    }
}

/// How the projections of attention were called before diffusers 0.15. Published autoencoders of Stable Diffusion have
/// these names.
const OLD_ATTENTION: [(&str, &str); 4] =
    [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];

/// Reads an autoencoder: its own folder, or that of a pipeline, which has it in `vae/`.
///
/// # Errors
/// If the files are missing or do not fit.
pub fn load_vae(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<AutoencoderKl> {
    let folder = part(folder.as_ref(), "vae");
    let old = |path: &str| {
        let (own, old) = OLD_ATTENTION.iter().find(|(own, _)| path.contains(own))?;
        Some(path.replace(own, old))
    };
    load(&folder, &place.into(), "", |config: &AutoencoderKlConfig, device| Ok(AutoencoderKl::new(config, device)), old)
}

/// Reads a text encoder without a head, from its own folder.
///
/// # Errors
/// If the files are missing or do not fit.
pub fn load_clip_text(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<ClipTextModel> {
    let new = |config: &ClipTextConfig, device: &Device| Ok(ClipTextModel::new(config, device));
    load(folder.as_ref(), &place.into(), clip_text::BASE_PREFIX, new, |_| None)
}

/// Reads a text encoder with its projection, from its own folder.
///
/// # Errors
/// If the files are missing or do not fit.
pub fn load_clip_text_with_projection(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
) -> Result<ClipTextModelWithProjection> {
    load(folder.as_ref(), &place.into(), clip_text::BASE_PREFIX, ClipTextModelWithProjection::new, |_| None)
}
