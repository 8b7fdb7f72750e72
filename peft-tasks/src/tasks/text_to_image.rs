//! DreamBooth: a noise predictor, and perhaps its text encoder, learn what a few pictures show.
//!
//! Source: `examples/dreambooth/train_dreambooth_lora.py` of diffusers (0.42), and PEFT's `lora_dreambooth`. Papers: Ruiz et
//! al. 2022, arXiv 2208.12242; min-SNR weights: Hang et al. 2023, arXiv 2303.09556.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use peft_core::{PeftError, Result, TorchGenerator, ops};
use peft_models::diffusion::schedulers::{NoiseSchedule, PredictionType, SchedulerConfig};
use peft_models::diffusion::text_to_image::TextToImageModel;
use peft_models::{Denoiser, DenoiserInput, ModelInput};
use serde::{Deserialize, Serialize};

use crate::tasks::task::{Evaluation, Task, scalar};

/// Latents of pictures: mean and deviation, `[channels, rows, columns]` each.
#[derive(Debug, Clone)]
pub struct LatentPicture {
    /// The likeliest latents, as the noise predictor sees them.
    pub mean: Vec<f32>,
    /// How far others lie around them.
    pub std: Vec<f32>,
}

/// Pictures of one prompt.
#[derive(Debug, Clone)]
pub struct PromptedPictures {
    /// The tokens of the prompt, `[seq]`.
    pub ids: Vec<u32>,
    /// The pictures.
    pub pictures: Vec<LatentPicture>,
}

/// What pictures of a subject show, and how they are learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DreamBoothOptions {
    /// What the pictures show: `a photo of sks dog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_prompt: Option<String>,
    /// A folder of pictures of the class that the subject belongs to, which the model is to keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_data: Option<PathBuf>,
    /// What those show: `a photo of a dog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_prompt: Option<String>,
    /// How much pictures of the class count beside those of the subject.
    pub prior_weight: f64,
    /// Timesteps with a higher signal-to-noise ratio count less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_snr_gamma: Option<f64>,
    /// Height and width that pictures are cut to; by default what the model was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<usize>,
}

impl Default for DreamBoothOptions {
    fn default() -> Self {
        Self {
            instance_prompt: None,
            class_data: None,
            class_prompt: None,
            prior_weight: 1.0,
            min_snr_gamma: None,
            resolution: None,
        }
    }
}

/// How pictures are learned.
#[derive(Debug, Clone)]
pub struct DreamBoothConfig {
    /// What is left of a picture at each timestep.
    pub schedule: NoiseSchedule,
    /// What the noise predictor says.
    pub prediction: PredictionType,
    /// How much pictures of the class count beside those of the subject.
    pub prior_weight: f64,
    /// Timesteps with a higher signal-to-noise ratio count less: γ of the paper.
    pub min_snr_gamma: Option<f64>,
    /// What noise and timesteps of an evaluation depend on.
    pub seed: u64,
}

impl DreamBoothConfig {
    /// As the pipeline's scheduler says, with the reference's weight of the class.
    pub fn new(scheduler: &SchedulerConfig) -> Self {
        Self {
            schedule: scheduler.noise_schedule(),
            prediction: scheduler.prediction_type,
            prior_weight: 1.0,
            min_snr_gamma: None,
            seed: 42,
        }
    }
}

/// The task of DreamBooth. An item is a picture of the subject, with one of the class if there are any.
#[derive(Debug, Clone)]
pub struct DreamBooth {
    subject: Arc<PromptedPictures>,
    class: Option<Arc<PromptedPictures>>,
    /// `[channels, rows, columns]` of all latents.
    shape: [usize; 3],
    config: DreamBoothConfig,
}

impl DreamBooth {
    /// Pictures of a subject and perhaps of its class, all of one size.
    ///
    /// # Errors
    /// If there is no picture, or prompts or sizes differ in length.
    pub fn new(
        subject: PromptedPictures,
        class: Option<PromptedPictures>,
        shape: [usize; 3],
        config: DreamBoothConfig,
    ) -> Result<Self> {
        let count: usize = shape.iter().product();
        for (what, pictures) in [("subject", Some(&subject)), ("class", class.as_ref())] {
            let Some(pictures) = pictures else { continue };
            if pictures.pictures.is_empty() {
                return Err(PeftError::Invalid(format!("there is no picture of the {what}")));
            }
            if pictures.ids.len() != subject.ids.len() {
                return Err(PeftError::Invalid("the prompts have unlike lengths".to_owned()));
            }
            if pictures.pictures.iter().any(|it| it.mean.len() != count || it.std.len() != count) {
                return Err(PeftError::Invalid(format!("latents of the {what} are not {shape:?}")));
            }
        }
        if !config.prior_weight.is_finite() || config.prior_weight < 0.0 {
            return Err(PeftError::config("prior_weight", format!("is {}", config.prior_weight)));
        }
        if config.min_snr_gamma.is_some_and(|it| !it.is_finite() || it <= 0.0) {
            return Err(PeftError::config("min_snr_gamma", "must be a positive number"));
        }
        Ok(Self { subject: Arc::new(subject), class: class.map(Arc::new), shape, config })
    }

    /// How many items there are: as many as the larger set has pictures, the other one is gone through again.
    pub fn len(&self) -> usize {
        let class = self.class.as_ref().map_or(0, |it| it.pictures.len());
        self.subject.pictures.len().max(class)
    }

    /// Never: there is at least one picture.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Pictures of the subject, then those of the class.
    fn rows<'a>(&'a self, items: &[usize]) -> Vec<(&'a LatentPicture, &'a [u32])> {
        let sets = [Some(&self.subject), self.class.as_ref()].into_iter().flatten();
        let of = |set: &'a PromptedPictures| {
            items.iter().map(move |item| (&set.pictures[item % set.pictures.len()], set.ids.as_slice()))
        };
        sets.flat_map(|set| of(set)).collect()
    }

    /// The loss of items with given noise, summed over them: what [`Task::loss_sum`] is for noise that it draws.
    ///
    /// # Shapes
    /// - posterior, noise: `[rows, channels, rows, columns]`; rows are the items' pictures of the subject, then those of the
    ///   class
    /// - timesteps: one for each row
    pub fn loss_of(
        &self,
        model: &TextToImageModel,
        items: &[usize],
        posterior: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
        device: &Device,
    ) -> Tensor<1> {
        let (mean, std, ids) = self.batch(items, device);
        let text = model.text_encoder.text_model.forward(&ModelInput::ids(ids));
        let losses = noise_losses(&model.unet, &self.config, mean + std * posterior, noise, timesteps, text);
        let losses = match self.config.min_snr_gamma {
            None => losses,
            Some(gamma) => {
                // Weights are the subject's: the class is to stay what it is at every timestep.
                let weight = |(at, timestep): (usize, &usize)| match at < items.len() {
                    true => snr_weight(&self.config, gamma, *timestep),
                    false => 1.0,
                };
                let weights: Vec<f32> = timesteps.iter().enumerate().map(weight).collect();
                losses * Tensor::from_floats(weights.as_slice(), device)
            }
        };
        let subject = losses.clone().narrow(0, 0, items.len()).sum();
        match &self.class {
            Some(_) => subject + losses.narrow(0, items.len(), items.len()).sum().mul_scalar(self.config.prior_weight),
            None => subject,
        }
    }

    /// The shape of the latents of a batch of items.
    fn dims(&self, items: &[usize]) -> [usize; 4] {
        let [channels, rows, columns] = self.shape;
        let sets = if self.class.is_some() { 2 } else { 1 };
        [sets * items.len(), channels, rows, columns]
    }

    /// Mean and deviation of the latents of rows, `[rows, channels, rows, columns]`, and their tokens `[rows, seq]`.
    fn batch(&self, items: &[usize], device: &Device) -> (Tensor<4>, Tensor<4>, Tensor<2, Int>) {
        let (rows, dims) = (self.rows(items), self.dims(items));
        let joined = |of: fn(&LatentPicture) -> &[f32]| {
            let all: Vec<f32> = rows.iter().flat_map(|(picture, _)| of(picture)).copied().collect();
            Tensor::<4>::from_data(TensorData::new(all, dims), device)
        };
        let ids: Vec<i64> = rows.iter().flat_map(|(_, ids)| ids.iter().map(|it| i64::from(*it))).collect();
        let seq = self.subject.ids.len();
        let ids = Tensor::from_data(TensorData::new(ids, [rows.len(), seq]), device);
        (joined(|it| &it.mean), joined(|it| &it.std), ids)
    }
}

/// The weight of a timestep: `min(SNR, γ) / SNR`, and 1 more where velocities are predicted.
pub fn snr_weight(config: &DreamBoothConfig, gamma: f64, timestep: usize) -> f32 {
    let ratio = config.schedule.snr(timestep);
    let weight = ratio.min(gamma) / ratio;
    (if config.prediction == PredictionType::VPrediction { weight + 1.0 } else { weight }) as f32
}

/// The mean squared error of what is predicted of each row, `[batch]`.
///
/// # Shapes
/// - latents, noise: `[batch, channels, rows, columns]`
/// - timesteps: one for each row
/// - text: `[batch, seq, d_text]`
pub fn noise_losses(
    unet: &impl Denoiser,
    config: &DreamBoothConfig,
    latents: Tensor<4>,
    noise: Tensor<4>,
    timesteps: &[usize],
    text: Tensor<3>,
) -> Tensor<1> {
    let schedule = &config.schedule;
    let noisy = schedule.add_noise(latents.clone(), noise.clone(), timesteps);
    let target = match config.prediction {
        PredictionType::Epsilon => noise,
        PredictionType::VPrediction => schedule.velocity(latents, noise, timesteps),
        PredictionType::Sample => latents,
    };
    let times: Vec<f32> = timesteps.iter().map(|it| *it as f32).collect();
    let input = DenoiserInput {
        timestep: Tensor::from_floats(times.as_slice(), &noisy.device()),
        sample: noisy,
        encoder_hidden_states: text,
        added: None,
    };
    let error = (unet.predict(&input) - target).square();
    let [batch, channels, rows, columns] = error.dims();
    error.reshape([batch, channels * rows * columns]).mean_dim(1).reshape([batch])
}

impl Task<TextToImageModel> for DreamBooth {
    fn lengths(&self) -> Vec<usize> {
        vec![1; self.len()]
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.len()
    }

    fn unit(&self) -> &'static str {
        "pictures"
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn loss_sum(&self, model: &TextToImageModel, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let dims = self.dims(items);
        let normal = || ops::random(dims, Distribution::Normal(0.0, 1.0), device);
        let count = self.config.schedule.len();
        let timesteps = ops::drawn(dims[0], device).into_iter().map(|it| ((it * count as f32) as usize).min(count - 1));
        let timesteps: Vec<usize> = timesteps.collect();
        Ok(self.loss_of(model, items, normal(), normal(), &timesteps, device))
    }

    fn evaluate(&self, model: &TextToImageModel, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let all: Vec<usize> = (0..self.len()).collect();
        // The same noise every time, so that evaluations can be compared.
        let mut generator = TorchGenerator::new(self.config.seed as i64);
        let count = self.config.schedule.len();
        let mut total = 0.0;
        for items in all.chunks(batch_size.max(1)) {
            let dims = self.dims(items);
            let mut normal =
                || Tensor::<4>::from_data(TensorData::new(generator.normal(dims.iter().product()), dims), device);
            let (posterior, noise) = (normal(), normal());
            let timesteps: Vec<usize> = (0..dims[0]).map(|_| generator.next_u32() as usize % count).collect();
            total += scalar(&self.loss_of(model, items, posterior, noise, &timesteps, device));
        }
        Ok(Evaluation { loss: total / self.len() as f64, ..Evaluation::default() })
    }
}
