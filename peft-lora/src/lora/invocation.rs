//! Where an activated LoRA can act: which tokens a layer sees is known inside a causal language model's stack only.

use peft_core::{ModelSpec, ParamKind, PeftError, Result};

use crate::lora::config::LoraConfig;
use crate::lora::layers::Layer;

const FIELD: &str = "alora_invocation_tokens";
const TASK: &str = "CAUSAL_LM";

impl LoraConfig {
    /// Refuses what cannot go with a sequence that the adapter waits for.
    pub(crate) fn check_invocation(&self, layers: &[Layer], spec: &ModelSpec) -> Result<()> {
        let Some(sequence) = self.invocation() else { return Ok(()) };
        let refuse = |reason: String| Err(PeftError::config(FIELD, reason));
        if let Some(token) = sequence.iter().find(|it| **it < 0) {
            return refuse(format!("holds {token}, which is no token"));
        }
        if self.use_dora {
            return refuse("cannot be combined with `use_dora`".into());
        }
        if self.target_parameters.as_ref().is_some_and(|it| !it.is_empty()) {
            return refuse("cannot be combined with `target_parameters`: only linear layers see tokens".into());
        }
        if self.counts_from_its_start() {
            // The reference moves the base, also where the adapter does not act.
            let start = self.init_lora_weights.as_str().unwrap_or_default();
            return refuse(format!("cannot be combined with init_lora_weights = {start}, which moves the base"));
        }
        // In other tasks the reference warns, and never activates the adapter.
        let tasks = [self.task_type.as_deref(), spec.task_type.as_deref()];
        if let Some(task) = tasks.into_iter().flatten().find(|it| *it != TASK) {
            return refuse(format!("is known for the task {TASK} only, not for {task}"));
        }
        if spec.prompts.is_none() {
            return refuse("needs a model that says which tokens it reads: one with a table for prompts".into());
        }
        for param in layers.iter().map(|it| &it.param) {
            let module = &param.module;
            if matches!(param.kind, ParamKind::Embedding | ParamKind::Conv) {
                return refuse(format!(
                    "acts in linear layers only, and `{module}` is none: leave it out of the targets"
                ));
            }
            if spec.is_head(module) {
                let reason = "is chosen for some tokens only, behind the model: leave it out of the targets";
                return refuse(format!("cannot act in the head: what goes into `{module}` {reason}"));
            }
            if param.is_transposed_on_disk() {
                let reason = "may read its whole weight: make it one of `peft_core::nn`";
                return refuse(format!("cannot act in `{module}`, which is a layer of `burn::nn` and {reason}"));
            }
        }
        Ok(())
    }
}
