//! Pictures of a subject and of its class, as latents.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{PeftError, Result, nn};
use peft_models::diffusion::folder::load_vae;
use peft_models::diffusion::schedulers::SchedulerConfig;
use peft_models::diffusion::vae::AutoencoderKl;

use crate::data::clip_tokenizer::ClipTokenizer;
use crate::data::image::geometry::Rectangle;
use crate::data::image::listing::pictures_in;
use crate::data::image::{Picture, Resampling};
use crate::tasks::text_to_image::{DreamBooth, DreamBoothConfig, DreamBoothOptions, LatentPicture, PromptedPictures};

impl DreamBooth {
    /// The pictures in a folder, for the pipeline in the folder `base`, whose autoencoder turns each of them into latents
    /// once.
    ///
    /// Pictures are resized by their shorter side and cut in the middle. The reference cuts anywhere unless it is told
    /// `--center_crop`, and encodes a picture anew in every step.
    ///
    /// # Errors
    /// If there is no picture or no prompt, a file is damaged, or the pipeline has no autoencoder.
    pub fn read(folder: &Path, base: &Path, options: &DreamBoothOptions, seed: u64, device: &Device) -> Result<Self> {
        let prompt = options.instance_prompt.as_deref().ok_or_else(|| {
            PeftError::config(
                "instance_prompt",
                "is not given: say what the pictures show, such as `a photo of sks dog`",
            )
        })?;
        let class = match (&options.class_data, &options.class_prompt) {
            (Some(folder), Some(prompt)) => Some((folder.as_path(), prompt.as_str())),
            (None, None) => None,
            _ => return Err(PeftError::config("class_prompt", "goes with `class_data`: give both or none")),
        };
        let device = device.clone().without_autodiff();
        let vae = nn::eval(&load_vae(base, &device)?);
        let size = match options.resolution {
            Some(size) => size,
            None => sample_size(base, &vae)?,
        };
        if size == 0 || size % vae.scale() != 0 {
            let reason = format!("is {size}, expected a multiple of {}", vae.scale());
            return Err(PeftError::config("resolution", reason));
        }
        let tokenizer = ClipTokenizer::load(base.join("tokenizer"))?;
        let prompted = |folder: &Path, prompt: &str| -> Result<PromptedPictures> {
            let (ids, cut) = tokenizer.ids(prompt)?;
            if cut > 0 {
                tracing::warn!("{cut} tokens of {prompt:?} are cut off");
            }
            let files = pictures_in(folder)?;
            let pictures = files.iter().map(|file| encoded(&Picture::read(file)?, size, &vae, &device));
            Ok(PromptedPictures { ids, pictures: pictures.collect::<Result<_>>()? })
        };
        let side = size / vae.scale();
        let shape = [vae.config().latent_channels, side, side];
        let subject = prompted(folder, prompt)?;
        let class = class.map(|(folder, prompt)| prompted(folder, prompt)).transpose()?;
        let scheduler = SchedulerConfig::read(base.join("scheduler"))?;
        let config = DreamBoothConfig {
            prior_weight: options.prior_weight,
            min_snr_gamma: options.min_snr_gamma,
            seed,
            ..DreamBoothConfig::new(&scheduler)
        };
        Self::new(subject, class, shape, config)
    }
}

/// The size of the pictures that the noise predictor was trained on.
fn sample_size(base: &Path, vae: &AutoencoderKl) -> Result<usize> {
    let raw = peft_models::common::config::RawConfig::read(base.join("unet"))?;
    let side = raw.json.get("sample_size").and_then(|it| it.as_u64().or_else(|| it.get(0)?.as_u64()));
    let side = side.ok_or_else(|| {
        PeftError::config("resolution", "is not given, and the noise predictor's `sample_size` is not set")
    })?;
    Ok(side as usize * vae.scale())
}

/// The latents of a picture, as the noise predictor sees them.
fn encoded(picture: &Picture, size: usize, vae: &AutoencoderKl, device: &Device) -> Result<LatentPicture> {
    let pixels = pixels(picture, size)?;
    let channels = vae.config().in_channels;
    if channels != 3 && channels != 1 {
        return Err(PeftError::unsupported(format!("an autoencoder of {channels} channels"), "only 1 and 3 are"));
    }
    let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, size, size]), device);
    // Grey as the mean of equal channels.
    let pixels = if channels == 1 { pixels.mean_dim(1) } else { pixels };
    let posterior = vae.encode(pixels);
    let numbers = |tensor: Tensor<4>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
    let mean = numbers(vae.scaled(posterior.mean));
    if mean.iter().any(|it| !it.is_finite()) {
        return Err(PeftError::NotFinite("the latents of a picture are no numbers: look at the autoencoder".into()));
    }
    Ok(LatentPicture { mean, std: numbers(posterior.std.mul_scalar(vae.config().scaling_factor)) })
}

/// A square from the middle of a picture, −1 to 1, channel after channel: `Resize`, `CenterCrop` and `Normalize([0.5], [0.5])`
/// of torchvision.
fn pixels(picture: &Picture, size: usize) -> Result<Vec<f32>> {
    let (width, height) = (picture.width, picture.height);
    if width == 0 || height == 0 {
        return Err(PeftError::Invalid("a picture has no pixels".to_owned()));
    }
    let side = size as u32;
    let longer = |long: u32, short: u32| (f64::from(side) * f64::from(long) / f64::from(short)) as u32;
    let (wide, tall) = if width <= height { (side, longer(height, width)) } else { (longer(width, height), side) };
    let resized = picture.resized(Rectangle::whole(width, height), wide, tall, Resampling::Bilinear)?;
    let middle = |length: u32| (f64::from(length - side) / 2.0).round_ties_even() as u32;
    let (top, left) = (middle(tall), middle(wide));
    let mut values = Vec::with_capacity(3 * size * size);
    for channel in 0..3 {
        for row in 0..side {
            for column in 0..side {
                let byte = resized.pixel(top + row, left + column)[channel];
                values.push((f32::from(byte) / 255.0 - 0.5) / 0.5);
            }
        }
    }
    Ok(values)
}
