//! What these tests train, and with which settings.

use std::path::Path;

use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftConfig, PeftModel};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::tasks::data::sample::Sample;
use peft::tasks::train::TrainConfig;
use peft::tasks::train::log::{Record, read};

use crate::support::{device, fixtures};

pub(super) fn samples() -> Vec<Sample> {
    // Rows of unlike length whose next token follows from the last: something that can be learned.
    (0..12u32).map(|row| Sample::language((0..5 + row % 4).map(|at| (row * 7 + at * 3) % 97).collect())).collect()
}

pub(super) fn fresh(dropout: f64) -> PeftModel<AutoCausalLm> {
    with(LoraConfig { lora_dropout: dropout, ..LoraConfig::new(4, 6.0) }.all_linear())
}

pub(super) fn with(config: impl PeftConfig + 'static) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/gpt2-tiny"), &device()).unwrap();
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(model, spec);
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    peft
}

pub(super) fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        batch_size: 3,
        gradient_accumulation_steps: 2,
        max_steps: Some(steps),
        save_steps: 2,
        save_total_limit: 0,
        logging_steps: 1,
        ..TrainConfig::default()
    }
}

pub(super) fn losses(folder: &Path) -> Vec<(usize, u64)> {
    let records = read(folder.join("train_log.jsonl")).unwrap();
    let train = records.iter().filter_map(|it| match it {
        Record::Train(it) => Some((it.step, it.loss.to_bits())),
        Record::Eval(_) => None,
    });
    train.collect()
}

pub(super) fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
