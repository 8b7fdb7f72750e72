//! `similarity`: which texts are alike.

use std::path::Path;

use burn::tensor::Device;
use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_models::FeatureExtractor;
use peft_models::auto::{ArchitectureRegistry, AutoFeatureExtractor, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_tasks::tasks::similarity::Similarity;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Turns texts into vectors, and learns which of them belong together. A recorded forward pass gives hidden states.
pub struct SimilarityKind;

impl TaskKind for SimilarityKind {
    type Model = AutoFeatureExtractor;
    type Task = Similarity;

    fn name(&self) -> &'static str {
        "similarity"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["feature-extraction"]
    }

    fn task_type(&self) -> Option<&'static str> {
        Some("FEATURE_EXTRACTION")
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["CLIPTextModel", "CLIPTextModelWithProjection"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoFeatureExtractor> {
        Ok(architectures.load_feature_extractor(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoFeatureExtractor> {
        architectures.feature_extractor(raw, device)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<Similarity> {
        source.data.similarity(source.base)
    }

    fn forward(&self, model: &AutoFeatureExtractor, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let hidden = model.last_hidden_state(&inputs.model_input()?);
        Ok(ForwardOutput { name: "last_hidden_state", data: hidden.into_data(), loss: None })
    }
}
