//! `token-cls`: a tag for every word.

use std::path::Path;

use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::{Labels, Result};
use peft_models::TokenClassifier;
use peft_models::auto::{ArchitectureRegistry, AutoTokenClassifier, ClassifierOptions};
use peft_models::common::config::{LabelConfig, RawConfig};
use peft_tasks::data::labels::{LabelKind, LabelSet};
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::loss;
use peft_tasks::tasks::token_classification::TokenClassification;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Tags words.
pub struct TokenClassificationKind;

impl TaskKind for TokenClassificationKind {
    type Model = AutoTokenClassifier;
    type Task = TokenClassification;

    fn name(&self) -> &'static str {
        "token-cls"
    }

    fn task_type(&self) -> Option<&'static str> {
        Some("TOKEN_CLS")
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForTokenClassification"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AutoTokenClassifier> {
        Ok(architectures.load_token_classifier(base, place, head)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoTokenClassifier> {
        architectures.token_classifier(raw, device)
    }

    fn learn_labels(&self, data: &TextData, _base: &Path) -> Result<Option<LabelSet>> {
        Ok(Some(LabelSet::new(LabelKind::Single, data.tag_names()?)))
    }

    fn head<'a>(&self, model: &'a AutoTokenClassifier) -> Option<&'a LabelConfig> {
        Some(model.labels())
    }

    fn labels_to_save(&self, labels: &LabelSet) -> Labels {
        Labels { problem_type: None, names: labels.names.clone() }
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<TokenClassification> {
        source.data.token_classification(source.base, &source.labels()?.names)
    }

    fn forward(&self, model: &AutoTokenClassifier, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let logits = model.logits(&inputs.model_input()?);
        let loss = inputs.labels(logits.dims()[2])?.map(|labels| loss::every_position(logits.clone(), labels));
        Ok(ForwardOutput::logits(logits, loss))
    }
}
