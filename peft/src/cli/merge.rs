//! `peft merge`

use std::fs;
use std::path::{Path, PathBuf};

use peft::core::checkpoint::{Checkpoint, FloatType, model_tensors, write_atomically, write_tensors};
use peft::core::{PeftError, Result};
use peft::models::config::RawConfig;

use super::common::{Adapter, adapter_folders, causal_lm, device, load_adapters, model_folder};

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
    /// causal-lm or seq-cls.
    #[arg(long, default_value = "causal-lm")]
    task: String,
    /// Element type of the weights: f32, f16, bf16. By default that of the base.
    #[arg(long)]
    dtype: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (folder, adapters) = (model_folder(&args.model)?, adapter_folders(&args.adapter)?);
    let device = device(Some("flex"))?;
    let float = match args.dtype.as_deref() {
        None => Checkpoint::open(&folder)?.float_type(),
        Some("f32") => FloatType::F32,
        Some("f16") => FloatType::F16,
        Some("bf16") => FloatType::BF16,
        Some(other) => return Err(PeftError::config("dtype", format!("is `{other}`, expected f32, f16 or bf16"))),
    };
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&folder, &args.output) {
        return Err(PeftError::config("output", "is the base model's folder: a base is never written"));
    }
    let tensors = match args.task.as_str() {
        "causal-lm" => model_tensors(&causal_lm(&folder, &adapters, &device)?.merge()?),
        "seq-cls" => {
            let options = peft::forward::classifier_options(&adapters);
            let (model, _) = peft::models::auto::load_sequence_classifier(&folder, &device, &options)?;
            let sites = peft::core::Describe::describe(&model);
            let mut peft = peft::core::PeftModel::with_sites(model, sites, &device);
            load_adapters(&mut peft, &adapters)?;
            model_tensors(&peft.merge()?)
        }
        other => return Err(PeftError::config("task", format!("is `{other}`, expected causal-lm or seq-cls"))),
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
    let mut config = RawConfig::read(&folder)?.json;
    if has_head && !config.get("tie_word_embeddings").is_some_and(|it| it == false) {
        config.insert("tie_word_embeddings".into(), false.into());
        let text = serde_json::to_string_pretty(&config).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(args.output.join("config.json"), text.as_bytes())?;
    }
    println!("merged checkpoint written to {}", args.output.display());
    Ok(())
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
