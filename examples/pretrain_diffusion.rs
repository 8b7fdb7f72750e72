//! A small Stable Diffusion, trained from nothing: a base for adapters where none can be downloaded.
//!
//! ```text
//! cargo run --release -p peft-examples --example pretrain_diffusion -- \
//!     docs/recipes/pictures/stable-diffusion pictures/first/train sd-fashion 3 20
//! ```
//!
//! The recipe is a folder as diffusers has them, without weights. The pictures lie in a folder for each kind of thing, whose
//! name is in their caption: `a photo of a bag`. The autoencoder learns for the first number of epochs to give back what it
//! is shown; then noise predictor and text encoder learn together for the second one. The text encoder of a real pipeline
//! was trained before, with pictures of its own.

#![allow(clippy::print_stdout)]

mod pretraining;

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use peft::core::{PeftError, Result, nn, ops};
use peft::models::ModelInput;
use peft::models::architecture::ModelConfig;
use peft::models::auto::ArchitectureRegistry;
use peft::models::common::config::RawConfig;
use peft::models::diffusion::clip_text::{ClipTextConfig, ClipTextModel};
use peft::models::diffusion::schedulers::SchedulerConfig;
use peft::models::diffusion::text_to_image::TextToImageModel;
use peft::models::diffusion::vae::{AutoencoderKl, AutoencoderKlConfig};
use peft::tasks::data::clip_tokenizer::ClipTokenizer;
use peft::tasks::data::image::listing::pictures_in;
use peft::tasks::data::image::{ImageProcessor, Picture};
use peft::tasks::tasks::text_to_image::{DreamBoothConfig, noise_losses};
use peft::tasks::train::batches::{BatchOptions, EpochPlan};
use pretraining::{Learning, drawn, write_weights};
use serde_json::{Value, json};

const BATCH: usize = 32;
/// Highest rates of the autoencoder, and of the noise predictor and the text encoder.
const RATES: [f64; 2] = [2e-3, 1e-3];
/// How much it counts that latents are not normally distributed, beside the error of a pixel.
const KL_WEIGHT: f64 = 1e-4;
/// One prompt of so many is left empty, so that guidance has something to compare with.
const EMPTY: usize = 10;
/// Files of a recipe that are copied as they are.
const COPIED: [&str; 8] = [
    "model_index.json",
    "unet/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, data, output, coder_epochs, epochs] = words.as_slice() else {
        let usage = "usage: pretrain_diffusion <recipe> <pictures> <output> <epochs of the autoencoder> <epochs>";
        return Err(PeftError::Invalid(usage.to_owned()));
    };
    let number = |it: &String| it.parse().map_err(|_| PeftError::Invalid(format!("{it} is no number of epochs")));
    let (recipe, output, epochs) = (Path::new(recipe), Path::new(output), [number(coder_epochs)?, number(epochs)?]);
    let device = peft::device::best_device(None)?;
    device.seed(1);

    let raw = RawConfig::read(recipe.join("vae"))?;
    let vae = AutoencoderKl::new(&AutoencoderKlConfig::from_raw(&raw).map_err(|it| it.in_file(raw.path()))?, &device);
    let mut scaled = raw.json.clone();
    let pictures = Pictures::read(Path::new(data), side(recipe, &vae)?)?;
    println!("{} pictures: {}", pictures.items.len(), pictures.prompts.join(", "));

    let vae = pretrain_coder(drawn(vae), &pictures, epochs[0], &device)?;
    let (latents, deviation) = pictures.latents(&nn::eval(&vae), &device);
    scaled.insert("scaling_factor".to_owned(), json!(1.0 / deviation));

    let unet = ArchitectureRegistry::builtin().denoiser(&RawConfig::read(recipe.join("unet"))?, &device)?;
    let raw = RawConfig::read(recipe.join("text_encoder"))?;
    let config = ClipTextConfig::from_raw(&raw).map_err(|it| it.in_file(raw.path()))?;
    let model = TextToImageModel::new(drawn(unet), drawn(ClipTextModel::new(&config, &device)));
    let model = pretrain(model, recipe, &pictures, &latents, epochs[1], &device)?;

    for file in COPIED {
        let (from, to) = (recipe.join(file), output.join(file));
        let folder = to.parent().unwrap_or(output);
        fs::create_dir_all(folder).map_err(PeftError::io("create", folder))?;
        fs::copy(&from, &to).map_err(PeftError::io("copy", &from))?;
    }
    write_weights(&vae, &output.join("vae/diffusion_pytorch_model.safetensors"))?;
    write_weights(&model.unet, &output.join("unet/diffusion_pytorch_model.safetensors"))?;
    write_weights(&model.text_encoder, &output.join("text_encoder/model.safetensors"))?;
    let path = output.join("vae/config.json");
    let text = serde_json::to_string_pretty(&scaled).unwrap_or_default() + "\n";
    fs::write(&path, text).map_err(PeftError::io("write", &path))?;
    println!("{} holds the pipeline", output.display());
    Ok(())
}

/// Rows and columns of the pictures that the recipe is for.
fn side(recipe: &Path, vae: &AutoencoderKl) -> Result<usize> {
    let raw = RawConfig::read(recipe.join("unet"))?;
    let side = raw.json.get("sample_size").and_then(Value::as_u64).filter(|it| *it > 0);
    let side = side.ok_or_else(|| PeftError::bad_file(raw.path(), "`sample_size` is no number above 0"))?;
    Ok(side as usize * vae.scale())
}

/// Pictures and the prompts that they go with.
struct Pictures {
    /// Rows and columns of each.
    side: usize,
    prompts: Vec<String>,
    /// Pixels, `[3, side, side]`, −1 to 1; and the number of the prompt.
    items: Vec<(Vec<f32>, usize)>,
}

impl Pictures {
    /// The pictures in the folders of a folder.
    fn read(folder: &Path, side: usize) -> Result<Self> {
        let entries = fs::read_dir(folder).map_err(PeftError::io("read", folder))?;
        let mut kinds: Vec<PathBuf> = entries.filter_map(|it| Some(it.ok()?.path())).filter(|it| it.is_dir()).collect();
        kinds.sort();
        if kinds.is_empty() {
            return Err(PeftError::bad_file(folder, "it has no folder of pictures for each kind of thing"));
        }
        // The shorter edge is resized, and the middle is cut out, as DreamBooth reads pictures.
        let settings = json!({"do_resize": true, "size": {"shortest_edge": side}, "resample": 2,
            "do_center_crop": true, "crop_size": {"height": side, "width": side},
            "do_rescale": true, "rescale_factor": 1.0 / 255.0,
            "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
        let processor = ImageProcessor::parse("the processor of the example", &settings.to_string())?;
        let (mut prompts, mut items) = (Vec::new(), Vec::new());
        for (number, kind) in kinds.iter().enumerate() {
            for file in pictures_in(kind)? {
                let (_, pixels) = processor.pixels(&Picture::read(&file)?).map_err(|it| it.in_file(&file))?;
                items.push((pixels, number));
            }
            let name = kind.file_name().unwrap_or_default().to_string_lossy();
            let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
            prompts.push(format!("a photo of {article} {name}"));
        }
        Ok(Self { side, prompts, items })
    }

    /// `[batch, 3, side, side]`
    fn batch(&self, items: &[usize], device: &Device) -> Tensor<4> {
        let pixels: Vec<f32> = items.iter().flat_map(|it| &self.items[*it].0).copied().collect();
        Tensor::from_data(TensorData::new(pixels, [items.len(), 3, self.side, self.side]), device)
    }

    /// Batches of all pictures, in another order in every epoch.
    fn batches(&self, epoch: usize) -> Result<Vec<Vec<usize>>> {
        let options = BatchOptions { batch_size: BATCH, ..BatchOptions::default() };
        Ok(EpochPlan::new(&vec![1; self.items.len()], &options, epoch as u64)?.batches)
    }

    /// The likeliest latents of all pictures, and those of each with a deviation of 1; and what the deviation was.
    fn latents(&self, vae: &AutoencoderKl, device: &Device) -> (Tensor<4>, f64) {
        let device = device.clone().without_autodiff();
        let all: Vec<usize> = (0..self.items.len()).collect();
        let parts = all.chunks(BATCH).map(|it| vae.encode(self.batch(it, &device)).mode()).collect();
        let latents = Tensor::cat(parts, 0);
        let count = latents.shape().num_elements() as f32;
        let mean = latents.clone().sum().div_scalar(count).into_data().iter::<f32>().next().unwrap_or_default();
        let variance = latents.clone().sub_scalar(mean).square().sum().div_scalar(count);
        let deviation = f64::from(variance.into_data().iter::<f32>().next().unwrap_or(1.0).sqrt().max(1e-6));
        (latents.div_scalar(deviation), deviation)
    }
}

/// The autoencoder learns to give back pictures from latents that are drawn around the likeliest ones.
fn pretrain_coder(vae: AutoencoderKl, pictures: &Pictures, epochs: usize, device: &Device) -> Result<AutoencoderKl> {
    let mut vae = nn::set_training(vae.unfreeze().train(), true);
    let mut learning = Learning::new(pictures.batches(0)?.len() * epochs, RATES[0]);
    for epoch in 0..epochs {
        for items in pictures.batches(epoch)? {
            let pixels = pictures.batch(&items, device);
            let posterior = vae.encode(pixels.clone());
            let (mean, variance) = (posterior.mean.clone(), posterior.std.clone().square());
            let far = (mean.square() + variance.clone() - variance.log()).sub_scalar(1.0).mul_scalar(0.5).mean();
            let noise = ops::random(posterior.mean.dims(), Distribution::Normal(0.0, 1.0), device);
            let error = (vae.decode(posterior.sample(noise)) - pixels).square().mean();
            vae = learning.step(vae, &(error + far.mul_scalar(KL_WEIGHT)))?;
        }
        println!("autoencoder, epoch {} of {epochs}: loss {:.4}", epoch + 1, learning.mean);
    }
    Ok(vae)
}

/// Noise predictor and text encoder learn to tell the noise in latents.
fn pretrain(
    model: TextToImageModel,
    recipe: &Path,
    pictures: &Pictures,
    latents: &Tensor<4>,
    epochs: usize,
    device: &Device,
) -> Result<TextToImageModel> {
    let tokenizer = ClipTokenizer::load(recipe.join("tokenizer"))?;
    let mut ids = vec![tokenizer.ids("")?.0];
    for prompt in &pictures.prompts {
        ids.push(tokenizer.ids(prompt)?.0);
    }
    let config = DreamBoothConfig::new(&SchedulerConfig::read(recipe.join("scheduler"))?);
    let count = config.schedule.len();
    let [_, channels, rows, columns] = latents.dims();
    let latents: Vec<f32> = latents.to_data().iter::<f32>().collect();
    let size = channels * rows * columns;

    let mut model = nn::set_training(model.unfreeze().train(), true);
    let mut learning = Learning::new(pictures.batches(0)?.len() * epochs, RATES[1]);
    for epoch in 0..epochs {
        for (step, items) in pictures.batches(epoch)?.into_iter().enumerate() {
            let dims = [items.len(), channels, rows, columns];
            let clean: Vec<f32> = items.iter().flat_map(|it| &latents[it * size..(it + 1) * size]).copied().collect();
            let clean = Tensor::<4>::from_data(TensorData::new(clean, dims), device);
            let noise = ops::random(dims, Distribution::Normal(0.0, 1.0), device);
            let times = ops::random([items.len()], Distribution::Uniform(0.0, count as f64), device);
            let times: Vec<usize> = times.into_data().iter::<f32>().map(|it| (it as usize).min(count - 1)).collect();
            let prompts = items.iter().enumerate().map(|(at, item)| match (at + step) % EMPTY {
                0 => &ids[0],
                _ => &ids[1 + pictures.items[*item].1],
            });
            let prompts: Vec<i64> = prompts.flatten().map(|it| i64::from(*it)).collect();
            let shape = [items.len(), tokenizer.max_length()];
            let prompts = Tensor::<2, Int>::from_data(TensorData::new(prompts, shape), device);
            let text = model.text_encoder.text_model.forward(&ModelInput::ids(prompts));
            let losses = noise_losses(&model.unet, &config, clean, noise, &times, text);
            model = learning.step(model, &losses.mean())?;
        }
        println!("noise predictor, epoch {} of {epochs}: loss {:.4}", epoch + 1, learning.mean);
    }
    Ok(model)
}
