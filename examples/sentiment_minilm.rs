//! Teach MiniLM to tell good reviews from others, with LoRA on its attention and a new classifier.
//!
//! ```text
//! cargo run --release -p peft-examples --example sentiment_minilm -- MODEL TRAIN.jsonl TEST.jsonl OUTPUT
//! ```
//!
//! MODEL is a folder, or sentence-transformers/all-MiniLM-L6-v2 on the hub. Rows are `{"text": …, "label": …}`.

#![allow(clippy::print_stdout)] // an example may speak

use peft::core::{DEFAULT_ADAPTER, PeftError, PeftModel, Result, nn};
use peft::lora::LoraConfig;
use peft::models::auto::{ClassifierOptions, load_sequence_classifier};
use peft::tasks::data::TextData;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::{TrainConfig, Trainer};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, train_file, test_file, output] = args.as_slice() else {
        return Err(PeftError::Invalid("give MODEL TRAIN.jsonl TEST.jsonl OUTPUT".into()));
    };
    let device = peft::device::device("flex")?;
    let folder = peft::load::hub::resolve(model, peft::load::hub::What::Model)?;
    let data = |file: &String| TextData::file(file).max_length(64);
    let labels = data(train_file).label_set()?;
    let task = data(train_file).sequence_classification(&folder, &labels)?;
    let test = data(test_file).sequence_classification(&folder, &labels)?;

    // The checkpoint has no classifier: a fresh one is made, trained whole and saved with the adapter.
    let options = ClassifierOptions { num_labels: Some(labels.outputs()), seed: 42, ..ClassifierOptions::default() };
    let (base, _) = load_sequence_classifier(&folder, &device, &options)?;
    let mut peft = PeftModel::new(base);
    peft.set_base_name(model.clone());
    let lora = LoraConfig { task_type: Some("SEQ_CLS".into()), ..LoraConfig::new(8, 16.0) };
    println!("{}", peft.add_adapter_as(DEFAULT_ADAPTER, lora, 42)?);

    println!("before: {:?}", test.evaluate(&nn::eval(peft.model()), 16, &device)?.metrics);
    let mut config =
        TrainConfig { learning_rate: 1e-3, batch_size: 16, num_train_epochs: 1.0, ..TrainConfig::default() };
    config.schedule.lr_scheduler_type = "cosine".parse()?;
    config.schedule.warmup_ratio = 0.1;
    Trainer::new(&mut peft, &task, config).run()?;
    println!("after:  {:?}", test.evaluate(&nn::eval(peft.model()), 16, &device)?.metrics);
    peft.save_adapter(output, DEFAULT_ADAPTER)?;
    println!("saved to {output}");
    Ok(())
}
