//! The parts of a pipeline that learn: noise predictor and text encoder.

use std::path::Path;

use burn::module::Module;
use peft_core::{Adaptable, ModelSpec, PeftError, Result};

use crate::architecture::AutoDenoiser;
use crate::common::pretrained::Pretrained;
use crate::diffusion::clip_text::ClipTextModel;

/// How transformers 5 spells paths of the text encoder.
const OTHER_NAMES: &[(&str, &str)] = &[(r"^text_encoder\.text_model\.", "text_encoder.")];

/// The parts of a pipeline that take adapters, as one model: paths begin with the name of the part.
#[derive(Module, Debug)]
pub struct TextToImageModel {
    /// The noise predictor.
    pub unet: AutoDenoiser,
    /// The text encoder.
    pub text_encoder: ClipTextModel,
    #[module(skip)]
    folder: Option<std::path::PathBuf>,
}

impl TextToImageModel {
    /// Both parts.
    pub fn new(unet: AutoDenoiser, text_encoder: ClipTextModel) -> Self {
        Self { unet, text_encoder, folder: None }
    }

    /// Remembers the folder of the pipeline.
    pub fn with_folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }
}

impl Adaptable for TextToImageModel {
    fn spec(&self) -> ModelSpec {
        let spec = ModelSpec::of(self).with_other_names(OTHER_NAMES);
        match &self.folder {
            Some(folder) => spec.with_base_name(folder.display().to_string()),
            None => spec,
        }
    }
}

impl Pretrained for TextToImageModel {
    fn folder(&self) -> Result<&Path> {
        self.folder.as_deref().ok_or_else(|| {
            PeftError::Invalid("this model was not loaded from a folder, so that it has no tokenizer".to_owned())
        })
    }
}
