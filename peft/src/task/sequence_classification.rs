//! `seq-cls`: one label, several, or a number for a whole sequence.

use std::path::Path;

use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_models::SequenceClassifier;
use peft_models::auto::{ArchitectureRegistry, AutoSequenceClassifier, ClassifierOptions};
use peft_models::common::config::{LabelConfig, RawConfig};
use peft_tasks::data::labels::LabelSet;
use peft_tasks::data::text_data::TextData;
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::tasks::loss::{self, ProblemType};
use peft_tasks::tasks::sequence_classification::SequenceClassification;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Labels whole sequences.
pub struct SequenceClassificationKind;

impl TaskKind for SequenceClassificationKind {
    type Model = AutoSequenceClassifier;
    type Task = SequenceClassification;

    fn name(&self) -> &'static str {
        "seq-cls"
    }

    fn task_type(&self) -> Option<&'static str> {
        Some("SEQ_CLS")
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForSequenceClassification"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AutoSequenceClassifier> {
        Ok(architectures.load_sequence_classifier(base, place, head)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoSequenceClassifier> {
        architectures.sequence_classifier(raw, device)
    }

    fn learn_labels(&self, data: &TextData, _base: &Path) -> Result<Option<LabelSet>> {
        data.label_set().map(Some)
    }

    fn head<'a>(&self, model: &'a AutoSequenceClassifier) -> Option<&'a LabelConfig> {
        Some(model.labels())
    }

    fn head_for(&self, labels: &LabelSet, tokenizer: Option<&Tokenizer>) -> ClassifierOptions {
        ClassifierOptions {
            num_labels: Some(labels.outputs()),
            problem_type: Some(labels.kind.problem_type().to_owned()),
            pad_token_id: tokenizer.map(|it| it.fill_id().into()),
            ..ClassifierOptions::default()
        }
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<SequenceClassification> {
        source.data.sequence_classification(source.base, source.labels()?)
    }

    fn forward(&self, model: &AutoSequenceClassifier, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let input = inputs.model_input()?;
        // The reference refuses this too: without a padding token nobody knows where a row ends.
        if input.dims()[0] > 1 && !model.is_encoder() && model.labels().pad_token_id.is_none() {
            let reason = "is not in config.json, which a decoder needs to classify more than one row";
            return Err(PeftError::config("pad_token_id", reason));
        }
        let logits = model.logits(&input);
        let loss = match inputs.class_labels(model.num_labels())? {
            Some(labels) => {
                let problem = ProblemType::resolve(model.problem_type(), model.num_labels(), &labels)?;
                Some(loss::classification(logits.clone(), labels, problem)?)
            }
            None => None,
        };
        Ok(ForwardOutput::logits(logits, loss))
    }
}
