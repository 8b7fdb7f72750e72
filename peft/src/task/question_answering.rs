//! `question-answering`: where a text answers a question.

use std::path::Path;

use burn::tensor::Device;
use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_models::auto::{ArchitectureRegistry, AutoQuestionAnswerer, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_models::{ModelInput, QuestionAnswerer};
use peft_tasks::tasks::loss;
use peft_tasks::tasks::question_answering::QuestionAnswering;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Finds the span of a context that answers a question.
pub struct QuestionAnsweringKind;

impl TaskKind for QuestionAnsweringKind {
    type Model = AutoQuestionAnswerer;
    type Task = QuestionAnswering;

    fn name(&self) -> &'static str {
        "question-answering"
    }

    fn task_type(&self) -> Option<&'static str> {
        Some("QUESTION_ANS")
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForQuestionAnswering"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AutoQuestionAnswerer> {
        Ok(architectures.load_question_answerer(base, place, head.seed)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoQuestionAnswerer> {
        architectures.question_answerer(raw, device)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<QuestionAnswering> {
        source.data.question_answering(source.base, source.options.adapted)
    }

    fn forward(&self, model: &AutoQuestionAnswerer, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let input = inputs.model_input()?;
        // The reference's wrapper of this task loses both on the way; a merged model has no wrapper.
        let input = ModelInput {
            token_type_ids: input.token_type_ids.clone().filter(|_| !inputs.adapted),
            position_ids: input.position_ids.clone().filter(|_| !inputs.adapted),
            ..input
        };
        let logits = model.logits(&input);
        let places = inputs.places("start_positions")?.zip(inputs.places("end_positions")?);
        let loss = places.map(|(starts, ends)| loss::question_answering(logits.clone(), starts, ends));
        Ok(ForwardOutput::logits(logits, loss))
    }

    fn inputs(&self) -> Vec<&'static str> {
        [&ForwardInputs::OF_TEXT[..], &["start_positions", "end_positions"]].concat()
    }

    fn labels_input(&self) -> &'static str {
        "`start_positions` and `end_positions`"
    }
}
