//! `peft merge`

use std::fs;
use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::Device;
use peft::core::files::checkpoint::{
    Checkpoint, FloatType, Placement, Stored, model_tensors, write_atomically, write_tensors,
};
use peft::core::{Adaptable, PeftError, Result};
use peft::models::auto;
use peft::models::common::config::RawConfig;

use super::common::{Adapter, Adapters, adapted, adapter_folders, causal_lm, device, model_folder, seq2seq_lm};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the base model, or its id on the hub.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all folded in. `DIR=0.5` folds in half of it.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]", required = true)]
    adapter: Vec<Adapter>,
    /// Folder to write the checkpoint to.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// causal-lm, seq2seq-lm, seq-cls, token-cls or question-answering.
    #[arg(long, default_value = "causal-lm")]
    task: String,
    /// Element type of the weights: f32, f16, bf16. By default that of the base.
    #[arg(long)]
    dtype: Option<String>,
    /// flex, wgpu, cuda, tch: among those compiled in.
    #[arg(long)]
    device: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (folder, adapters) = (model_folder(&args.model)?, adapter_folders(&args.adapter)?);
    let device = device(args.device.as_deref())?;
    let place = Placement::on(&device);
    let float = match args.dtype.as_deref() {
        None => Checkpoint::open(&folder)?.float_type(),
        Some("f32") => FloatType::F32,
        Some("f16") => FloatType::F16,
        Some("bf16") => FloatType::BF16,
        Some(other) => return Err(PeftError::config("dtype", format!("is `{other}`, expected f32, f16 or bf16"))),
    };
    if peft::folder::combine::is_same(&folder, &args.output) {
        return Err(PeftError::config("output", "is the base model's folder: a base is never written"));
    }
    let head = peft::forward::classifier_options(&adapters);
    let tensors = match args.task.as_str() {
        "causal-lm" => model_tensors(&causal_lm(&folder, &adapters, &place)?.merge()?),
        "seq2seq-lm" => model_tensors(&seq2seq_lm(&folder, &adapters, &place)?.merge()?),
        "seq-cls" => merged(auto::load_sequence_classifier(&folder, &device, &head)?.0, &adapters, &device)?,
        "token-cls" => merged(auto::load_token_classifier(&folder, &device, &head)?.0, &adapters, &device)?,
        "question-answering" => merged(auto::load_question_answerer(&folder, &device, 0)?.0, &adapters, &device)?,
        other => {
            let known = "causal-lm, seq2seq-lm, seq-cls, token-cls or question-answering";
            return Err(PeftError::config("task", format!("is `{other}`, expected {known}")));
        }
    };
    // A head that an adapter has moved apart from the table is read only if the configuration does not tie them.
    let has_head = tensors.iter().any(|it| it.key.ends_with("lm_head.weight"));
    write_tensors(args.output.join("model.safetensors"), tensors, float)?;
    for file in COMPANIONS {
        let from = folder.join(file);
        if from.is_file() {
            let to = args.output.join(file);
            fs::copy(&from, &to).map_err(PeftError::io("write", &to))?;
        }
    }
    let labels = peft::run::labels::of_adapters(&adapters)?;
    let mut config = match &labels {
        Some(labels) => peft::run::labels::in_config(&folder, labels)?,
        None => RawConfig::read(&folder)?.json,
    };
    let moved_apart = has_head && !config.get("tie_word_embeddings").is_some_and(|it| it == false);
    if moved_apart {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    if moved_apart || labels.is_some() {
        let text = serde_json::to_string_pretty(&config).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(args.output.join("config.json"), text.as_bytes())?;
    }
    println!("merged checkpoint written to {}", args.output.display());
    Ok(())
}

/// The weights of a model with its adapters folded in.
fn merged<M: Module + Adaptable>(model: M, adapters: &Adapters, device: &Device) -> Result<Vec<Stored>> {
    Ok(model_tensors(&adapted(model, adapters, device)?.merge()?))
}

/// Files of a checkpoint that merging does not change.
const COMPANIONS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
];
