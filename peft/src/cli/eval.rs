//! `peft eval`

use std::path::PathBuf;

use burn::module::Module;
use peft::core::{PeftError, Result};
use peft::run::prepare::TextData;
use peft::tasks::data::labels::{LabelKind, LabelSet};
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::generate::GenerationConfig;
use peft::tasks::tasks::sequence_to_sequence::Written;
use peft::tasks::tasks::task::{Evaluation, Task};

use super::common::{
    Adapter, ColumnArgs, PlaceArgs, adapted, adapter_folders, causal_lm, model_folder, most_tasks, reserved_positions,
    seq2seq_lm, short,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the base model, or its id on the hub.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls, question-answering or similarity.
    #[arg(long, default_value = "causal-lm")]
    task: String,
    /// JSONL, JSON, CSV, TSV or plain text.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Longest row in tokens.
    #[arg(long)]
    max_length: Option<usize>,
    /// Tokens of a long text that its next window repeats, for question-answering [default: a third of --max-length]
    #[arg(long)]
    doc_stride: Option<usize>,
    /// Most tokens of a written target.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Share of words that are hidden and to be guessed, for masked-lm.
    #[arg(long, default_value_t = 0.15, value_name = "SHARE")]
    masked: f64,
    /// What the choice of hidden words depends on.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Rows in a forward pass.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (folder, adapters) = (model_folder(&args.model)?, adapter_folders(&args.adapter)?);
    let place = args.place.placement()?;
    let device = &place.device;
    let tokenizer = Tokenizer::load(&folder)?;
    let options = TextData {
        file: args.data.clone(),
        columns: args.columns.columns(),
        max_length: args.max_length,
        reserved: reserved_positions(&adapters)?,
        tasks: most_tasks(&adapters)?,
        doc_stride: args.doc_stride,
        ..TextData::default()
    };
    let evaluation = match args.task.as_str() {
        "causal-lm" => {
            let task = options.causal_lm(&folder)?;
            let peft = causal_lm(&folder, &adapters, &place)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        "masked-lm" => {
            let (model, _) = peft::models::auto::load_masked_lm(&folder, &place)?;
            let task = options.masked_lm(&folder, args.masked, args.seed)?;
            let peft = adapted(model, &adapters, device)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        "seq-cls" => {
            let options_of_head = peft::forward::classifier_options(&adapters);
            let (model, _) = peft::models::auto::load_sequence_classifier(&folder, &place, &options_of_head)?;
            let set = peft::run::labels::for_head(&adapters, model.labels(), || options.label_set())?;
            let task = options.sequence_classification(&folder, &set)?;
            let peft = adapted(model, &adapters, device)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        "token-cls" => {
            let options_of_head = peft::forward::classifier_options(&adapters);
            let (model, _) = peft::models::auto::load_token_classifier(&folder, &place, &options_of_head)?;
            let learn = || Ok(LabelSet::new(LabelKind::Single, options.tag_names()?));
            let names = peft::run::labels::for_head(&adapters, model.labels(), learn)?.names;
            let task = options.token_classification(&folder, &names)?;
            let peft = adapted(model, &adapters, device)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        "question-answering" => {
            let task = options.question_answering(&folder, !adapters.is_empty())?;
            let (model, _) = peft::models::auto::load_question_answerer(&folder, &place, 0)?;
            let peft = adapted(model, &adapters, device)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        "seq2seq-lm" => {
            let mut config = GenerationConfig::load(&folder)?;
            config.max_new_tokens = Some(args.max_new_tokens);
            let written = Written { tokenizer: tokenizer.clone(), plan: config.plan()? };
            let task = options.seq2seq_lm(&folder)?.with_writing(written);
            let peft = seq2seq_lm(&folder, &adapters, &place)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        "similarity" => {
            let task = options.similarity(&folder)?;
            let (model, _) = peft::models::auto::load_feature_extractor(&folder, &place)?;
            let peft = adapted(model, &adapters, device)?;
            task.evaluate(&peft.model().valid(), args.batch_size, device)?
        }
        other => {
            let known = "causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls, question-answering or similarity";
            let reason = format!("is `{other}`, expected {known}");
            return Err(PeftError::config("task", reason));
        }
    };
    print(&evaluation);
    Ok(())
}

fn print(evaluation: &Evaluation) {
    println!("loss {:.4}", evaluation.loss);
    for (name, value) in &evaluation.metrics {
        println!("{name} {}", short(value));
    }
}
