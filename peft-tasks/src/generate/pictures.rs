//! Pictures of texts: classifier-free guidance, step by step.
//!
//! Source: `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py` and `stable_diffusion_xl` (0.42). Paper: Ho
//! and Salimans 2022, arXiv 2207.12598.

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::{PeftError, Result, TorchGenerator};
use peft_models::diffusion::clip_text::{ClipTextModel, ClipTextModelWithProjection};
use peft_models::diffusion::schedulers::{Scheduler, SchedulerConfig};
use peft_models::diffusion::vae::AutoencoderKl;
use peft_models::{AddedConditions, Denoiser, DenoiserInput, ModelInput};

use crate::data::clip_tokenizer::ClipTokenizer;
use crate::data::image::Picture;

/// How a picture is made.
#[derive(Debug, Clone)]
pub struct PictureConfig {
    /// Steps from noise to picture.
    pub steps: usize,
    /// How much farther than without the prompt a step goes in its direction; at 1 and below, the negative prompt has no part.
    /// By default 7.5, and 5 for SDXL.
    pub guidance_scale: Option<f64>,
    /// Height in pixels; by default that of the pictures that the model was trained on.
    pub height: Option<usize>,
    /// Width in pixels, likewise.
    pub width: Option<usize>,
    /// What the noise depends on: torch's generator on a CPU gives the same.
    pub seed: i64,
    /// Layers at the end of the text encoder that are left out.
    pub clip_skip: usize,
    /// Whether the picture is decoded in tiles, which takes less memory.
    pub tiling: bool,
}

impl Default for PictureConfig {
    /// The pipelines' defaults.
    fn default() -> Self {
        Self { steps: 50, guidance_scale: None, height: None, width: None, seed: 0, clip_skip: 0, tiling: false }
    }
}

/// What a step is told.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The text, `[batch, seq, d_text]`.
    pub text: Tensor<3>,
    /// The pooled text of SDXL, `[batch, width]`.
    pub pooled: Option<Tensor<2>>,
}

/// A text encoder and its tokenizer.
pub struct TextEncoder<M> {
    /// The model.
    pub model: M,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
}

impl<M> TextEncoder<M> {
    /// A row of tokens for each text, `[texts, seq]`. What is cut off is logged.
    ///
    /// # Errors
    /// If a tokenizer gives up.
    pub fn ids(&self, texts: &[&str], device: &Device) -> Result<Tensor<2, Int>> {
        let mut all = Vec::new();
        for text in texts {
            let (ids, cut) = self.tokenizer.ids(text)?;
            if cut > 0 {
                let length = self.tokenizer.max_length();
                tracing::warn!("{cut} tokens of {text:?} are cut off: the text encoder reads {length}");
            }
            all.extend(ids.into_iter().map(i64::from));
        }
        Ok(Tensor::from_data(TensorData::new(all, [texts.len(), self.tokenizer.max_length()]), device))
    }
}

/// All parts of a pipeline.
pub struct StableDiffusion<D> {
    /// The noise predictor.
    pub denoiser: D,
    /// The text encoder; SDXL has both.
    pub text_encoder: Option<TextEncoder<ClipTextModel>>,
    /// SDXL's second text encoder.
    pub text_encoder_2: Option<TextEncoder<ClipTextModelWithProjection>>,
    /// Between latents and pictures.
    pub vae: AutoencoderKl,
    /// What makes the steps.
    pub scheduler: SchedulerConfig,
    /// Whether an absent negative prompt is zeros and not the empty text: SDXL's `force_zeros_for_empty_prompt`.
    pub zeros_for_no_prompt: bool,
}

impl<D: Denoiser> StableDiffusion<D> {
    /// Pictures of prompts, one each.
    ///
    /// `seen` is called before every call of the noise predictor, with its number and how many there are; an error ends the
    /// run.
    ///
    /// # Errors
    /// If parts do not fit together, or sizes or steps are none.
    pub fn pictures(
        &self,
        prompts: &[&str],
        negative: Option<&str>,
        config: &PictureConfig,
        device: &Device,
        seen: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<Picture>> {
        let latents = self.latents(prompts, negative, config, device, seen)?;
        let latents = self.vae.unscaled(latents);
        let decoded = if config.tiling { self.vae.decode_tiled(latents) } else { self.vae.decode(latents) };
        to_pictures(decoded)
    }

    /// The latents of such pictures, as the noise predictor sees them; `[prompts, channels, rows, columns]`.
    ///
    /// # Errors
    /// As [`pictures`](Self::pictures).
    pub fn latents(
        &self,
        prompts: &[&str],
        negative: Option<&str>,
        config: &PictureConfig,
        device: &Device,
        seen: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Tensor<4>> {
        let about = self.denoiser.about();
        let channels = self.vae.config().latent_channels;
        if about.in_channels != channels || about.out_channels != channels {
            let what = format!(
                "a noise predictor of {} and {} channels for latents of {channels}",
                about.in_channels, about.out_channels
            );
            return Err(PeftError::unsupported(what, "only models that see the latents and nothing else are"));
        }
        let [height, width] = self.size(config)?;
        let scale = self.vae.scale();
        let shape = [prompts.len(), channels, height / scale, width / scale];
        if prompts.is_empty() {
            return Err(PeftError::Invalid("there is no prompt".to_owned()));
        }

        let guidance_scale = config.guidance_scale.unwrap_or(if self.text_encoder_2.is_some() { 5.0 } else { 7.5 });
        let guided = guidance_scale > 1.0;
        let positive = self.encoded(prompts, config.clip_skip, device)?;
        let conditions = match guided {
            false => positive,
            true => {
                let negative = self.negative(&positive, negative, prompts.len(), device)?;
                let pooled = |it: &Conditions| it.pooled.clone();
                Conditions {
                    pooled: pooled(&negative).zip(pooled(&positive)).map(|(a, b)| Tensor::cat(vec![a, b], 0)),
                    text: Tensor::cat(vec![negative.text, positive.text], 0),
                }
            }
        };
        let sizes = [height, width, 0, 0, height, width].map(|it| it as f32);

        let mut scheduler = self.scheduler.schedule(config.steps)?;
        let mut generator = TorchGenerator::new(config.seed);
        let mut noise = || {
            let count = shape.iter().product();
            Tensor::<4>::from_data(TensorData::new(generator.normal(count), shape), device)
        };
        let first = noise().mul_scalar(scheduler.init_noise_sigma());
        let guidance = guided.then_some(guidance_scale);
        denoise(&self.denoiser, scheduler.as_mut(), first, &conditions, sizes, guidance, &mut noise, seen)
    }

    /// Height and width of a picture.
    fn size(&self, config: &PictureConfig) -> Result<[usize; 2]> {
        let scale = self.vae.scale();
        let trained = self.denoiser.about().sample_size;
        let given = [("height", config.height), ("width", config.width)];
        let mut size = [0; 2];
        for (axis, (field, given)) in given.into_iter().enumerate() {
            size[axis] = given.or(trained.map(|it| it[axis] * scale)).ok_or_else(|| {
                PeftError::config(field, "is not given, and the noise predictor's `sample_size` is not set")
            })?;
            if size[axis] == 0 || size[axis] % scale != 0 {
                return Err(PeftError::config(field, format!("is {}, expected a multiple of {scale}", size[axis])));
            }
        }
        Ok(size)
    }

    /// What the text encoders make of texts.
    ///
    /// # Errors
    /// If a tokenizer gives up, or there is no text encoder.
    pub fn encoded(&self, texts: &[&str], clip_skip: usize, device: &Device) -> Result<Conditions> {
        let is_sdxl = self.text_encoder_2.is_some();
        let mut widths = Vec::new();
        if let Some(encoder) = &self.text_encoder {
            let input = ModelInput::ids(encoder.ids(texts, device)?);
            let stack = &encoder.model.text_model;
            // SDXL reads the last but one layer, without the norm.
            widths.push(match is_sdxl {
                true => stack.hidden(&input, clip_skip + 1),
                false => stack.final_layer_norm.forward(stack.hidden(&input, clip_skip)),
            });
        }
        let mut pooled = None;
        if let Some(encoder) = &self.text_encoder_2 {
            let ids = encoder.ids(texts, device)?;
            let input = ModelInput::ids(ids.clone());
            let stack = &encoder.model.text_model;
            widths.push(stack.hidden(&input, clip_skip + 1));
            pooled = Some(encoder.model.text_embeds(stack.forward(&input), ids));
        }
        if widths.is_empty() {
            return Err(PeftError::Invalid("the pipeline has no text encoder".to_owned()));
        }
        let text = Tensor::cat(widths, 2);
        let (width, wanted) = (text.dims()[2], self.denoiser.about().d_text);
        if width != wanted {
            let reason =
                format!("the text encoder gives {width} numbers for each token, the noise predictor reads {wanted}");
            return Err(PeftError::Invalid(reason));
        }
        Ok(Conditions { text, pooled })
    }

    fn negative(
        &self,
        positive: &Conditions,
        negative: Option<&str>,
        count: usize,
        device: &Device,
    ) -> Result<Conditions> {
        match negative {
            None if self.zeros_for_no_prompt => Ok(Conditions {
                text: positive.text.zeros_like(),
                pooled: positive.pooled.as_ref().map(Tensor::zeros_like),
            }),
            // As in diffusers, layers are left out for the prompt only.
            _ => self.encoded(&vec![negative.unwrap_or_default(); count], 0, device),
        }
    }
}

/// All steps from noise to latents.
///
/// With `guidance`, the first half of `conditions` is what a picture is not to show.
///
/// # Errors
/// What `seen` gives; or if the model gives numbers that are none.
#[allow(clippy::too_many_arguments)]
pub fn denoise<D: Denoiser>(
    denoiser: &D,
    scheduler: &mut dyn Scheduler,
    first: Tensor<4>,
    conditions: &Conditions,
    sizes: [f32; 6],
    guidance: Option<f64>,
    noise: &mut dyn FnMut() -> Tensor<4>,
    mut seen: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Tensor<4>> {
    let device = first.device();
    let rows = conditions.text.dims()[0];
    let added = match (denoiser.about().added, &conditions.pooled) {
        (None, _) => None,
        (Some(_), Some(pooled)) => Some(AddedConditions {
            text_embeds: pooled.clone(),
            time_ids: Tensor::<2>::from_floats([sizes], &device).expand([rows, sizes.len()]),
        }),
        (Some(_), None) => {
            let reason = "the noise predictor needs the pooled text of a second text encoder, and there is none";
            return Err(PeftError::Invalid(reason.to_owned()));
        }
    };
    if let (Some(widths), Some(added)) = (denoiser.about().added, &added) {
        let given = added.text_embeds.dims()[1] + sizes.len() * widths.number;
        if given != widths.total {
            let reason =
                format!("the further conditions have {given} numbers, the noise predictor reads {}", widths.total);
            return Err(PeftError::Invalid(reason));
        }
    }
    let timesteps = scheduler.timesteps().to_vec();
    let mut sample = first;
    for (at, timestep) in timesteps.iter().enumerate() {
        seen(at, timesteps.len())?;
        let scaled = scheduler.scale_model_input(sample.clone(), at);
        let input = DenoiserInput {
            sample: if guidance.is_some() { Tensor::cat(vec![scaled.clone(), scaled], 0) } else { scaled },
            timestep: Tensor::from_floats([*timestep], &device),
            encoder_hidden_states: conditions.text.clone(),
            added: added.clone(),
        };
        let output = denoiser.predict(&input);
        let output = match guidance {
            Some(scale) => {
                let count = rows / 2;
                let (negative, positive) = (output.clone().narrow(0, 0, count), output.narrow(0, count, count));
                negative.clone() + (positive - negative).mul_scalar(scale)
            }
            None => output,
        };
        sample = scheduler.step(at, output, sample, noise);
    }
    Ok(sample)
}

/// Pictures of numbers from −1 to 1, `[batch, 3, height, width]`; one channel is grey.
///
/// # Errors
/// If there are other channels, or numbers that are none.
pub fn to_pictures(decoded: Tensor<4>) -> Result<Vec<Picture>> {
    let [batch, channels, height, width] = decoded.dims();
    if channels != 1 && channels != 3 {
        let what = format!("pictures of {channels} channels");
        return Err(PeftError::unsupported(what, "only grey and coloured ones are"));
    }
    let data = decoded.permute([0, 2, 3, 1]).into_data().convert::<f32>();
    let numbers = data.as_slice::<f32>().map_err(|error| PeftError::Invalid(format!("{error:?}")))?;
    if numbers.iter().any(|it| it.is_nan()) {
        return Err(PeftError::NotFinite("the picture is NaN in places".to_owned()));
    }
    let byte = |number: &f32| ((number / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let bytes: Vec<u8> = numbers.iter().map(byte).collect();
    let picture = |bytes: &[u8]| Picture {
        width: width as u32,
        height: height as u32,
        rgb: if channels == 3 { bytes.to_vec() } else { bytes.iter().flat_map(|it| [*it; 3]).collect() },
    };
    let each = bytes.len() / batch.max(1);
    Ok(bytes.chunks(each.max(1)).map(picture).collect())
}
