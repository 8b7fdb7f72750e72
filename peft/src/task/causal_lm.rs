//! `causal-lm`: the next token.

use std::path::Path;

use burn::tensor::Device;
use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_models::CausalLm;
use peft_models::auto::{ArchitectureRegistry, AutoCausalLm, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_tasks::tasks::language_modelling::LanguageModelling;
use peft_tasks::tasks::loss;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Predicts the next token: texts, prompts with completions, conversations.
pub struct CausalLmKind;

impl TaskKind for CausalLmKind {
    type Model = AutoCausalLm;
    type Task = LanguageModelling;

    fn name(&self) -> &'static str {
        "causal-lm"
    }

    fn task_type(&self) -> Option<&'static str> {
        Some("CAUSAL_LM")
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForCausalLM", "LMHeadModel"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoCausalLm> {
        Ok(architectures.load_causal_lm(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoCausalLm> {
        architectures.causal_lm(raw, device)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<LanguageModelling> {
        source.data.causal_lm(source.base)
    }

    fn forward(&self, model: &AutoCausalLm, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let logits = model.logits(&inputs.model_input()?, None);
        let loss = inputs.labels(logits.dims()[2])?.map(|labels| loss::causal_lm(logits.clone(), labels));
        Ok(ForwardOutput::logits(logits, loss))
    }
}
