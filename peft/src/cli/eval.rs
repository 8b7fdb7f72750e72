//! `peft eval`

use std::path::PathBuf;

use peft_core::Result;
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::task::Evaluation;

use super::bar::short;
use super::common::{
    Adapter, ColumnArgs, PlaceArgs, RowArgs, ShardArgs, adapter_sources, most_tasks, reserved_positions,
};
use super::terminal::say;
use crate::load::names::model_folder;
use crate::run::actions;
use crate::run::evaluate::EvalRequest;
use crate::run::registry::Registry;
use crate::task::TaskOptions;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// [default: what the adapter's `task_type` says, else the base's `architectures`]
    #[arg(long)]
    task: Option<String>,
    /// JSONL, JSON, CSV, TSV or plain text, also packed with gzip, or Parquet. Several with commas, a folder, or a pattern
    /// such as 'data/*.jsonl'; `<(…)` works for JSON.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    rows: RowArgs,
    /// Longest row in tokens.
    #[arg(long)]
    max_length: Option<usize>,
    /// Tokens of a long text that its next window repeats, for question-answering [default: a third of --max-length]
    #[arg(long)]
    doc_stride: Option<usize>,
    /// Most tokens of a written target [default: 64, for speech-to-text as many as the model writes]
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Language of the recordings, a name or a code such as `en`, for speech-to-text [default: heard]
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<String>,
    /// Transcripts are in English, whatever is spoken.
    #[arg(long)]
    translate: bool,
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
    #[command(flatten)]
    shard: ShardArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let adapters = adapter_sources(&args.adapter)?;
    let data = TextData {
        file: args.data.clone(),
        columns: args.columns.columns()?,
        truncation: args.rows.truncation.unwrap_or_default(),
        assistant_role: args.rows.assistant_role.clone(),
        prompt_template: args.rows.prompt_template.clone(),
        max_length: args.max_length,
        reserved: reserved_positions(&adapters)?,
        tasks: most_tasks(&adapters)?,
        doc_stride: args.doc_stride,
        ..TextData::default()
    };
    let options = TaskOptions {
        adapted: !adapters.is_empty(),
        masked_share: args.masked,
        seed: args.seed,
        max_new_tokens: args.max_new_tokens,
        writes: true,
        language: args.language.clone(),
        translate: args.translate,
        ..TaskOptions::default()
    };
    let request = EvalRequest { data, adapters, batch_size: args.batch_size, options };
    let base = model_folder(&args.model)?;
    let task = registry.tasks.chosen(args.task.as_deref(), &request.adapters, &base)?.name();
    let place = args.place.placement()?.with_shards(actions::shards(args.shard.shard_base)?);
    print(&actions::evaluate(task, &base, &request, registry, &place)?)
}

fn print(evaluation: &Evaluation) -> Result<()> {
    say!("loss {:.4}", evaluation.loss)?;
    for (name, value) in &evaluation.metrics {
        say!("{name} {}", short(value))?;
    }
    Ok(())
}
