//! `image-to-text`: a caption of a picture, or an answer to a question about it.

use std::path::Path;

use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_models::auto::{ArchitectureRegistry, AutoImageToText, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_models::{ImageToText, ModelInput, Tokens};
use peft_tasks::data::image::listing;
use peft_tasks::data::text_data::TextData;
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::generate::{GenerationConfig, GenerationPlan};
use peft_tasks::tasks::image_to_text::Captioning;
use peft_tasks::tasks::loss;
use peft_tasks::tasks::sequence_to_sequence::Written;

use crate::task::image_classification::{images, mark};
use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Most tokens of a caption, where an evaluation is to write and nobody says how much.
const MAX_NEW_TOKENS: usize = 32;

/// Writes text about pictures. An evaluation writes captions if it is told to.
pub struct ImageToTextKind;

impl TaskKind for ImageToTextKind {
    type Model = AutoImageToText;
    type Task = Captioning;

    fn name(&self) -> &'static str {
        "image-to-text"
    }

    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["Blip2ForConditionalGeneration"]
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoImageToText> {
        Ok(architectures.load_image_to_text(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoImageToText> {
        architectures.image_to_text(raw, device)
    }

    fn check_data(&self, data: &Path) -> Result<()> {
        listing::check(data)
    }

    fn mark_data(&self, data: &TextData) -> Result<String> {
        mark(data)
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<Captioning> {
        let data = images(source.data).augment(source.options.augment.clone());
        let tokenizer = source.tokenizer()?;
        let task = data.captioning(source.base, tokenizer)?;
        let usual = source.options.writes.then_some(MAX_NEW_TOKENS);
        let Some(max_new_tokens) = source.options.max_new_tokens.or(usual) else { return Ok(task) };
        let mut config = GenerationConfig::load_text_config(source.base)?;
        config.max_new_tokens = Some(max_new_tokens);
        let mut plan = config.plan()?;
        end_captions(&mut plan, tokenizer);
        Ok(task.with_writing(Written { tokenizer: tokenizer.clone(), plan }))
    }

    fn inputs(&self) -> Vec<&'static str> {
        vec!["pixel_values", "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "labels"]
    }

    fn forward(&self, model: &AutoImageToText, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let pixels = inputs.pixel_values(model.num_channels(), model.smallest_picture())?;
        let text = inputs.model_input()?;
        check_places(model, &text, inputs)?;
        let read = model.read(pixels, &text);
        if !model.has_encoder() {
            let logits = model.logits(&read, None);
            let loss = inputs.labels(logits.dims()[2])?.map(|labels| loss::causal_lm(logits.clone(), labels));
            return Ok(ForwardOutput::logits(logits, loss));
        }
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
            let reason =
                format!("`labels` has the shape {:?}, what the decoder reads {:?}", labels.dims(), tokens.dims());
            return Err(PeftError::bad_file(inputs.path(), reason));
        }
        let attention_mask = inputs.target_mask(&tokens)?;
        let target = ModelInput { attention_mask, ..ModelInput::new(tokens) };
        let logits = model.logits(&read, Some(&target));
        let loss = labels.map(|labels| loss::every_position(logits.clone(), labels));
        Ok(ForwardOutput::logits(logits, loss))
    }
}

/// Has captions end with the token that they are learned with, where the model names none.
pub(crate) fn end_captions(plan: &mut GenerationPlan, tokenizer: &Tokenizer) {
    if plan.eos.is_empty() {
        plan.eos.extend(tokenizer.eos_id());
    }
}

/// Refuses rows whose places for the picture are not as many as its vectors.
fn check_places(model: &AutoImageToText, text: &ModelInput, inputs: &ForwardInputs<'_>) -> Result<()> {
    let Tokens::Ids(ids) = &text.tokens else {
        return Err(PeftError::bad_file(inputs.path(), "it holds no `input_ids`, which say where the picture stands"));
    };
    let Some(token) = model.image_token() else {
        return Err(PeftError::config(
            "image_token_index",
            "is not in config.json: nobody knows where the picture stands",
        ));
    };
    let counts = ids.clone().equal_elem(token).int().sum_dim(1).into_data();
    match counts.iter::<i64>().position(|it| it != model.image_tokens() as i64) {
        Some(row) => {
            let reason = format!(
                "row {row} of `input_ids` has {} places for the picture (token {token}), expected {}",
                counts.iter::<i64>().nth(row).unwrap_or_default(),
                model.image_tokens()
            );
            Err(PeftError::bad_file(inputs.path(), reason))
        }
        None => Ok(()),
    }
}
