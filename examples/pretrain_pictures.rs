//! A small model of pictures, trained from nothing: a base for adapters where none can be downloaded.
//!
//! ```text
//! cargo run --release -p peft-examples --example pretrain_pictures -- \
//!     image-cls docs/recipes/pictures/vit pictures/first/train vit-fashion 4
//! ```
//!
//! The folder of the recipe has a `config.json` and a `preprocessor_config.json`. All weights are drawn and trained; what is
//! written is a checkpoint as transformers has them.

#![allow(clippy::print_stdout)]

use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use peft::core::files::checkpoint::{FloatType, model_tensors, write_tensors};
use peft::core::{PeftError, Result, nn};
use peft::models::auto::ArchitectureRegistry;
use peft::models::common::config::RawConfig;
use peft::tasks::data::image_data::ImageData;
use peft::tasks::data::labels::LabelSet;
use peft::tasks::tasks::task::{Task, scalar};
use peft::tasks::train::batches::{BatchOptions, EpochPlan};
use serde_json::Value;

const BATCH: usize = 32;
const HIGHEST_RATE: f64 = 2e-3;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [task, recipe, data, output, epochs] = words.as_slice() else {
        let usage = "usage: pretrain_pictures image-cls|semantic-seg <recipe> <data> <output> <epochs>";
        return Err(PeftError::Invalid(usage.to_owned()));
    };
    let epochs = epochs.parse().map_err(|_| PeftError::Invalid(format!("{epochs} is no number of epochs")))?;
    let device = peft::device::best_device(None)?;
    device.seed(1);
    let (recipe, output, data) = (Path::new(recipe), Path::new(output), ImageData::file(data));
    let registry = ArchitectureRegistry::builtin();
    let raw = |labels: &LabelSet| -> Result<RawConfig> {
        let mut raw = RawConfig::read(recipe)?;
        let names = labels.names.iter().enumerate().map(|(id, name)| (id.to_string(), Value::from(name.as_str())));
        let ids = labels.names.iter().enumerate().map(|(id, name)| (name.clone(), Value::from(id)));
        raw.json.insert("id2label".to_owned(), Value::Object(names.collect()));
        raw.json.insert("label2id".to_owned(), Value::Object(ids.collect()));
        Ok(raw)
    };
    match task.as_str() {
        "image-cls" => {
            let labels = data.label_set()?;
            let (task, raw) = (data.image_classification(recipe, &labels)?, raw(&labels)?);
            let model = pretrain(registry.image_classifier(&raw, &device)?, &task, epochs, &device)?;
            save(&model, &raw, recipe, output)
        }
        "semantic-seg" => {
            let labels = data.mask_classes(recipe)?;
            let (task, raw) = (data.semantic_segmentation(recipe, &labels)?, raw(&labels)?);
            let model = pretrain(registry.semantic_segmenter(&raw, &device)?, &task, epochs, &device)?;
            save(&model, &raw, recipe, output)
        }
        other => Err(PeftError::Invalid(format!("the task is `{other}`, expected image-cls or semantic-seg"))),
    }
}

/// AdamW on all weights. The rate rises over a tenth of the steps, and falls along a cosine.
fn pretrain<M: Module, T: Task<M>>(model: M, task: &T, epochs: usize, device: &Device) -> Result<M> {
    let mut model = nn::set_training(model.unfreeze().train(), true);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.05).init();
    let options = BatchOptions { batch_size: BATCH, ..BatchOptions::default() };
    let lengths = task.lengths();
    let total = (options.batches(lengths.len())? * epochs) as f64;
    let (mut step, mut mean) = (0.0, 0.0);
    for epoch in 0..epochs {
        let batches = EpochPlan::new(&lengths, &options, epoch as u64)?.batches;
        for (at, items) in batches.iter().enumerate() {
            task.announce(batches.get(at + 1).map_or(&[], Vec::as_slice));
            let loss = task.loss_sum(&model, items, device)?.div_scalar(items.len() as f64);
            let value = scalar(&loss);
            mean = if step == 0.0 { value } else { 0.98 * mean + 0.02 * value };
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let rising = (10.0 * (step + 1.0) / total).min(1.0);
            let rate = HIGHEST_RATE * rising * 0.5 * (1.0 + (std::f64::consts::PI * step / total).cos());
            model = optimizer.step(rate, model, gradients);
            step += 1.0;
        }
        println!("epoch {} of {epochs}: loss {mean:.3}", epoch + 1);
    }
    Ok(model)
}

fn save<M: Module>(model: &M, raw: &RawConfig, recipe: &Path, output: &Path) -> Result<()> {
    fs::create_dir_all(output).map_err(PeftError::io("create", output))?;
    write_tensors(output.join("model.safetensors"), model_tensors(model), FloatType::F32)?;
    let text = serde_json::to_string_pretty(&raw.json).unwrap_or_default() + "\n";
    let path = output.join("config.json");
    fs::write(&path, text).map_err(PeftError::io("write", &path))?;
    let (from, to) = (recipe.join("preprocessor_config.json"), output.join("preprocessor_config.json"));
    fs::copy(&from, &to).map_err(PeftError::io("copy", &from))?;
    println!("{} holds the model", output.display());
    Ok(())
}
