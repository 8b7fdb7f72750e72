//! `speech-to-text`: what is said in a recording.

use std::path::Path;

use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_models::auto::{ArchitectureRegistry, AutoSpeechSeq2Seq, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_models::{AudioInput, Seq2SeqLm};
use peft_tasks::data::reading::files_of;
use peft_tasks::data::text_data::TextData;
use peft_tasks::generate::speech::{SpeechConfig, SpeechRequest, SpeechTask};
use peft_tasks::tasks::speech_to_text::{SpeechToText, WrittenSpeech};
use peft_tasks::train::identity::files_mark;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskOptions, TaskSource};
use crate::task::seq2seq_lm::target_pass;

/// Writes what is said in recordings. An evaluation writes transcripts if it is told to.
pub struct SpeechToTextKind;

/// What is asked of transcripts: what nobody asked for is as the model's files say.
fn request(options: &TaskOptions) -> SpeechRequest {
    SpeechRequest {
        language: options.language.clone(),
        task: options.translate.then_some(SpeechTask::Translate),
        timestamps: None,
    }
}

impl TaskKind for SpeechToTextKind {
    type Model = AutoSpeechSeq2Seq;
    type Task = SpeechToText;

    fn name(&self) -> &'static str {
        "speech-to-text"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["automatic-speech-recognition"]
    }

    /// None, as in PEFT's guide: the wrapper of `SEQ_2_SEQ_LM` asks for `input_ids`.
    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn other_task_types(&self) -> &'static [&'static str] {
        &["SEQ_2_SEQ_LM"]
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["WhisperForConditionalGeneration", "ForSpeechSeq2Seq"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoSpeechSeq2Seq> {
        Ok(architectures.load_speech_seq2seq(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoSpeechSeq2Seq> {
        architectures.speech_seq2seq(raw, device)
    }

    fn mark_data(&self, data: &TextData) -> Result<String> {
        let mut files = files_of(&data.file)?;
        files.extend(data.recordings()?);
        files_mark(&files)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<SpeechToText> {
        let request = request(source.options);
        let task = source.data.speech_to_text(source.base, &request)?;
        if !source.options.writes && source.options.max_new_tokens.is_none() {
            return Ok(task);
        }
        let mut config = SpeechConfig::load(source.base)?;
        config.generation.max_new_tokens = source.options.max_new_tokens;
        let plan = config.plan(&config.transcribing(request))?;
        Ok(task.with_writing(WrittenSpeech { tokenizer: source.tokenizer()?.clone(), plan }))
    }

    fn forward(&self, model: &AutoSpeechSeq2Seq, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let source = AudioInput { input_features: inputs.required_floats::<3>("input_features")? };
        model.check_source(&source).map_err(|error| PeftError::bad_file(inputs.path(), error))?;
        target_pass(model, &source, inputs)
    }

    /// `attention_mask` says which frames are filling; the reference takes it and passes over it.
    fn inputs(&self) -> Vec<&'static str> {
        let of_source = ["input_features", "attention_mask"];
        [&of_source[..], &ForwardInputs::OF_TARGET, &["decoder_position_ids", "labels"]].concat()
    }
}
