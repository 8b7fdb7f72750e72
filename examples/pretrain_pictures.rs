//! A small model of pictures, trained from nothing: a base for adapters where none can be downloaded.
//!
//! ```text
//! cargo run --release -p peft-examples --example pretrain_pictures -- \
//!     image-cls docs/recipes/pictures/vit pictures/first/train vit-fashion 4
//! ```
//!
//! The folder of the recipe has a `config.json` and a `preprocessor_config.json`, and for captions a tokenizer. All weights are
//! drawn and trained; what is written is a checkpoint as transformers has them.

#![allow(clippy::print_stdout)]

mod pretraining;

use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft::core::{PeftError, Result, nn};
use peft::models::auto::ArchitectureRegistry;
use peft::models::common::config::RawConfig;
use peft::tasks::data::image_data::ImageData;
use peft::tasks::data::labels::LabelSet;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::batches::{BatchOptions, EpochPlan};
use pretraining::{Learning, drawn, write_weights};
use serde_json::Value;

const BATCH: usize = 32;
const HIGHEST_RATE: f64 = 2e-3;
/// Files of a recipe that are copied if they are there.
const COPIED: [&str; 3] = ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [task, recipe, data, output, epochs] = words.as_slice() else {
        let usage = "usage: pretrain_pictures image-cls|semantic-seg|image-to-text <recipe> <data> <output> <epochs>";
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
        "image-to-text" => {
            let (task, raw) = (data.captioning(recipe, &Tokenizer::load(recipe)?)?, RawConfig::read(recipe)?);
            let model = pretrain(drawn(registry.image_to_text(&raw, &device)?), &task, epochs, &device)?;
            save(&model, &raw, recipe, output)
        }
        other => {
            let reason = format!("the task is `{other}`, expected image-cls, semantic-seg or image-to-text");
            Err(PeftError::Invalid(reason))
        }
    }
}

fn pretrain<M: Module, T: Task<M>>(model: M, task: &T, epochs: usize, device: &Device) -> Result<M> {
    let mut model = nn::set_training(model.unfreeze().train(), true);
    let options = BatchOptions { batch_size: BATCH, ..BatchOptions::default() };
    let lengths = task.lengths();
    let mut learning = Learning::new(options.batches(lengths.len())? * epochs, HIGHEST_RATE);
    for epoch in 0..epochs {
        let batches = EpochPlan::new(&lengths, &options, epoch as u64)?.batches;
        for (at, items) in batches.iter().enumerate() {
            task.announce(batches.get(at + 1).map_or(&[], Vec::as_slice));
            // Of each picture, or of each token of a caption.
            let count = task.targets(0, items).max(1) as f64;
            let loss = task.loss_sum(&model, items, device)?.div_scalar(count);
            model = learning.step(model, &loss)?;
        }
        println!("epoch {} of {epochs}: loss {:.3}", epoch + 1, learning.mean);
    }
    Ok(model)
}

fn save<M: Module>(model: &M, raw: &RawConfig, recipe: &Path, output: &Path) -> Result<()> {
    fs::create_dir_all(output).map_err(PeftError::io("create", output))?;
    write_weights(model, &output.join("model.safetensors"))?;
    let text = serde_json::to_string_pretty(&raw.json).unwrap_or_default() + "\n";
    let path = output.join("config.json");
    fs::write(&path, text).map_err(PeftError::io("write", &path))?;
    for file in COPIED {
        let (from, to) = (recipe.join(file), output.join(file));
        if from.is_file() {
            fs::copy(&from, &to).map_err(PeftError::io("copy", &from))?;
        }
    }
    println!("{} holds the model", output.display());
    Ok(())
}
