//! `unet`: the noise predictor of a picture model.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_models::auto::{ArchitectureRegistry, AutoDenoiser, ClassifierOptions};
use peft_models::common::config::RawConfig;
use peft_models::{AddedConditions, Denoiser, DenoiserInput};
use peft_tasks::tasks::task::{Evaluation, Task};

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Says what of a picture is noise. Adapters are read, merged and compared by it; they are trained with the text encoder
/// and the pictures beside it.
pub struct UNetKind;

/// Nothing is learned of a noise predictor alone.
pub enum NoData {}

impl<M: Module> Task<M> for NoData {
    fn lengths(&self) -> Vec<usize> {
        match *self {}
    }

    fn tokens(&self, _items: &[usize]) -> usize {
        match *self {}
    }

    fn targets(&self, _virtual_tokens: usize, _items: &[usize]) -> usize {
        match *self {}
    }

    fn loss_sum(&self, _model: &M, _items: &[usize], _device: &Device) -> Result<Tensor<1>> {
        match *self {}
    }

    fn evaluate(&self, _model: &M, _batch_size: usize, _device: &Device) -> Result<Evaluation> {
        match *self {}
    }
}

impl TaskKind for UNetKind {
    type Model = AutoDenoiser;
    type Task = NoData;

    fn name(&self) -> &'static str {
        "unet"
    }

    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["UNet2DConditionModel"]
    }

    fn reads_text(&self) -> bool {
        false
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        _head: &ClassifierOptions,
    ) -> Result<AutoDenoiser> {
        Ok(architectures.load_denoiser(base, place)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoDenoiser> {
        architectures.denoiser(raw, device)
    }

    fn task(&self, _source: &TaskSource<'_>) -> Result<NoData> {
        let reason = "there is nothing to learn without pictures and their prompts: train with --task text-to-image";
        Err(PeftError::unsupported("training a noise predictor alone", reason))
    }

    fn inputs(&self) -> Vec<&'static str> {
        vec!["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", "labels"]
    }

    fn forward(&self, model: &AutoDenoiser, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let input = denoiser_input(model, inputs)?;
        let sample = model.predict(&input);
        let loss = match inputs.floats::<4>("labels")? {
            None => None,
            Some(labels) if labels.dims() == sample.dims() => Some((sample.clone() - labels).square().mean()),
            Some(labels) => {
                let shapes = format!("`labels` has the shape {:?}, the output {:?}", labels.dims(), sample.dims());
                return Err(PeftError::bad_file(inputs.path(), shapes));
            }
        };
        Ok(ForwardOutput { name: "sample", data: sample.into_data(), loss })
    }
}

/// The inputs of a noise predictor, which must be of the widths that it reads.
fn denoiser_input(model: &AutoDenoiser, inputs: &ForwardInputs<'_>) -> Result<DenoiserInput> {
    let about = model.about();
    let bad = |reason: String| PeftError::bad_file(inputs.path(), reason);
    let sample = inputs.required_floats::<4>("sample")?;
    let [batch, channels, _, _] = sample.dims();
    if channels != about.in_channels {
        return Err(bad(format!("`sample` has {channels} channels, the model reads {}", about.in_channels)));
    }
    let text = inputs.required_floats::<3>("encoder_hidden_states")?;
    let [rows, _, width] = text.dims();
    if rows != batch || width != about.d_text {
        let wanted = format!("[{batch}, seq, {}]", about.d_text);
        return Err(bad(format!("`encoder_hidden_states` has the shape {:?}, wanted is {wanted}", text.dims())));
    }
    let given = (inputs.floats::<2>("text_embeds")?, inputs.floats::<2>("time_ids")?);
    let added = match (about.added, given) {
        (None, (None, None)) => None,
        (None, _) => return Err(bad("`text_embeds` and `time_ids` are for models like SDXL, and this is none".into())),
        (Some(widths), (Some(text_embeds), Some(time_ids))) => {
            let ([rows, width], [more, numbers]) = (text_embeds.dims(), time_ids.dims());
            if rows != batch || more != batch || width + numbers * widths.number != widths.total {
                let reason = format!(
                    "`text_embeds` [{rows}, {width}] and `time_ids` [{more}, {numbers}] do not give {batch} rows of {} \
                     numbers, with {} for each of `time_ids`",
                    widths.total, widths.number
                );
                return Err(bad(reason));
            }
            Some(AddedConditions { text_embeds, time_ids })
        }
        (Some(_), _) => return Err(bad("the model needs `text_embeds` and `time_ids`".into())),
    };
    Ok(DenoiserInput { timestep: inputs.timesteps(batch)?, sample, encoder_hidden_states: text, added })
}
