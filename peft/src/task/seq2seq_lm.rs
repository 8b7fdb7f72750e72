//! `seq2seq-lm`: a target text for a source text.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_models::auto::{ArchitectureRegistry, AutoSeq2SeqLm, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_models::{EncoderInput, ModelInput, Seq2SeqLm, Tokens};
use peft_tasks::generate::GenerationConfig;
use peft_tasks::tasks::loss;
use peft_tasks::tasks::sequence_to_sequence::{SequenceToSequence, Written};

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Most tokens of a target, where an evaluation is to write and nobody says how much.
const MAX_NEW_TOKENS: usize = 64;

/// Writes a target for a source. An evaluation generates targets if it is told how long they may be.
pub struct Seq2SeqLmKind;

impl TaskKind for Seq2SeqLmKind {
    type Model = AutoSeq2SeqLm;
    type Task = SequenceToSequence;

    fn name(&self) -> &'static str {
        "seq2seq-lm"
    }

    fn task_type(&self) -> Option<&'static str> {
        Some("SEQ_2_SEQ_LM")
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForConditionalGeneration", "WithLMHeadModel"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoSeq2SeqLm> {
        Ok(architectures.load_seq2seq_lm(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoSeq2SeqLm> {
        architectures.seq2seq_lm(raw, device)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<SequenceToSequence> {
        let task = source.data.seq2seq_lm(source.base)?;
        let usual = source.options.writes.then_some(MAX_NEW_TOKENS);
        let Some(max_new_tokens) = source.options.max_new_tokens.or(usual) else { return Ok(task) };
        let mut config = GenerationConfig::load(source.base)?;
        config.max_new_tokens = Some(max_new_tokens);
        Ok(task.with_writing(Written { tokenizer: source.tokenizer()?.clone(), plan: config.plan_for(source.base)? }))
    }

    fn forward(&self, model: &AutoSeq2SeqLm, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        target_pass(model, &inputs.model_input()?, inputs)
    }

    fn inputs(&self) -> Vec<&'static str> {
        [&ForwardInputs::OF_TEXT[..], &ForwardInputs::OF_TARGET].concat()
    }
}

/// The pass of a decoder behind any encoder, given what that reads.
///
/// # Errors
/// If the inputs say nothing of a target, or what they say does not go together.
pub(super) fn target_pass<S: EncoderInput, M: Seq2SeqLm<S>>(
    model: &M,
    source: &S,
    inputs: &ForwardInputs<'_>,
) -> Result<ForwardOutput> {
    let labels = inputs.target_labels()?;
    let tokens = match (inputs.target_tokens()?, &labels) {
        (Some(tokens), _) => tokens,
        // What a decoder reads while it learns: the labels, one position late.
        (None, Some(labels)) => Tokens::Ids(model.shift_right(labels.clone())?),
        (None, None) => {
            let reason = "it holds neither `labels` nor `decoder_input_ids`, so there is nothing to write";
            return Err(PeftError::bad_file(inputs.path(), reason));
        }
    };
    if let Some(labels) = labels.as_ref().filter(|it| it.dims() != tokens.dims()) {
        let reason = format!("`labels` has the shape {:?}, what the decoder reads {:?}", labels.dims(), tokens.dims());
        return Err(PeftError::bad_file(inputs.path(), reason));
    }
    let target = ModelInput {
        attention_mask: inputs.target_mask(&tokens)?,
        position_ids: inputs.target_positions(&tokens)?,
        task_ids: source.task_ids(),
        ..ModelInput::new(tokens)
    };
    let logits: Tensor<3> = model.logits(source, &target);
    let loss = labels.map(|labels| loss::every_position(logits.clone(), labels));
    Ok(ForwardOutput::logits(logits, loss))
}
