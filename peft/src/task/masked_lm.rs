//! `masked-lm`: the tokens behind masks.

use std::path::Path;

use burn::tensor::Device;
use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_models::MaskedLm;
use peft_models::auto::{ArchitectureRegistry, AutoMaskedLm, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_tasks::tasks::loss;
use peft_tasks::tasks::masked_language_modelling::MaskedLanguageModelling;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Predicts the tokens behind masks. PEFT has no `task_type` for it.
pub struct MaskedLmKind;

impl TaskKind for MaskedLmKind {
    type Model = AutoMaskedLm;
    type Task = MaskedLanguageModelling;

    fn name(&self) -> &'static str {
        "masked-lm"
    }

    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForMaskedLM", "ForPreTraining"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoMaskedLm> {
        Ok(architectures.load_masked_lm(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoMaskedLm> {
        architectures.masked_lm(raw, device)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<MaskedLanguageModelling> {
        let options = source.options;
        source.data.masked_lm(source.base, options.masked_share, options.seed)
    }

    fn forward(&self, model: &AutoMaskedLm, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let logits = model.logits(&inputs.model_input()?);
        let loss = inputs.labels(logits.dims()[2])?.map(|labels| loss::every_position(logits.clone(), labels));
        Ok(ForwardOutput::logits(logits, loss))
    }
}
