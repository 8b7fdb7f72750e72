//! `peft generate`

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::{Adaptable, PeftError, Result, WEIGHTS_FILE, forward};
use peft_models::ModelInput;
use peft_models::common::config::RawConfig;
use peft_tasks::data::chat::Message;
use peft_tasks::data::tensors::{grid, line};
use peft_tasks::data::tokenizer::{TokenStream, Tokenizer};
use peft_tasks::generate::causal::generate;
use peft_tasks::generate::seq2seq::generate_targets;
use peft_tasks::generate::{GenerationConfig, GenerationPlan};

use super::common::{Adapter, PlaceArgs, adapter_sources};
#[cfg(feature = "image")]
use super::pictures;
use super::terminal::{part, say};
use crate::load::adapters::{AdapterSource, with_adapters};
use crate::load::names::model_folder;
use crate::load::text::{fitted, load_chat_template, load_tokenizer, rows_with};
use crate::run::fit::blame_the_base;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// Text to continue, or the source of a model that writes a target for one, such as T5; or what a picture is to show.
    #[arg(long)]
    prompt: String,
    /// Put the prompt into the model's chat template.
    #[arg(long)]
    chat: bool,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Sample instead of taking the likeliest token.
    #[arg(long)]
    sample: bool,
    /// Above 1 bolder, below 1 tamer; implies --sample.
    #[arg(long)]
    temperature: Option<f64>,
    /// Sample among the likeliest so many; implies --sample.
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample among the likeliest that have this probability together; implies --sample.
    #[arg(long)]
    top_p: Option<f64>,
    /// Above 1 makes tokens that occurred less likely.
    #[arg(long)]
    repetition_penalty: Option<f64>,
    /// Follow so many texts at once and take the best: beam search.
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// Above 0 favours long texts in beam search, below 0 short ones.
    #[arg(long, allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// End beam search when as many texts have ended as there are beams.
    #[arg(long)]
    early_stopping: bool,
    /// Number of the task, for a prompt that tells tasks apart.
    #[arg(long, value_name = "N")]
    task_id: Option<i64>,
    /// What the drawn tokens, or the noise of a picture, depend on.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[cfg(feature = "image")]
    #[command(flatten)]
    picture: pictures::PictureArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let (folder, adapters) = (model_folder(&args.model)?, adapter_sources(&args.adapter)?);
    let place = args.place.placement()?;
    #[cfg(feature = "image")]
    if pictures::is_meant(&args.picture, &folder) {
        let request = pictures::Request { folder: &folder, adapters: &adapters, prompt: &args.prompt, seed: args.seed };
        return pictures::run(&args.picture, &request, registry, &place);
    }
    let tokenizer = load_tokenizer(&folder, &adapters)?;
    let mut config = GenerationConfig::load(&folder)?;
    config.max_new_tokens = Some(args.max_new_tokens);
    let drawn = args.sample || args.temperature.is_some() || args.top_k.is_some() || args.top_p.is_some();
    config.do_sample = Some(drawn);
    config.temperature = args.temperature.or(config.temperature);
    config.top_k = args.top_k.or(config.top_k);
    config.top_p = args.top_p.or(config.top_p);
    config.repetition_penalty = args.repetition_penalty.or(config.repetition_penalty);
    config.num_beams = args.beams.or(config.num_beams);
    config.length_penalty = args.length_penalty.or(config.length_penalty);
    if args.early_stopping {
        config.early_stopping = Some(true.into());
    }
    config.seed = Some(args.seed);
    let mut plan = config.plan()?;
    plan.tasks.extend(args.task_id);
    end_of(&mut plan, &tokenizer);

    let text = match args.chat {
        true => {
            let template = load_chat_template(&folder, &adapters, &tokenizer)?;
            let template = template.ok_or_else(|| PeftError::bad_file(&folder, "it has no chat template"))?;
            template.render(&[Message::new("user", &args.prompt)], true)?
        }
        false => args.prompt.clone(),
    };
    let writes_targets = reads_a_source(&folder, &adapters, registry)?;
    match writes_targets {
        true => {
            let (base, _) = registry.architectures.load_seq2seq_lm(&folder, &place)?;
            let own = rows_with(&base.spec(), &[])?;
            let peft = with_adapters(base, &adapters, &registry.methods)?;
            let tokenizer = fitted(tokenizer, own, rows_with(peft.spec(), &[])?)?;
            let ids = prompt_ids(&tokenizer, &text, !args.chat, None)?;
            let tasks = tasks_of(&plan, forward::tasks(peft.model()))?;
            let source = ModelInput {
                task_ids: tasks.map(|it| line(&[it], &place.device)),
                ..ModelInput::ids(grid(&ids, 1, ids.len(), &place.device))
            };
            let mut stream = tokenizer.stream(true);
            generate_targets(peft.model(), &source, &plan, &place.device, |_, token| print(&mut stream, token))
                .map_err(|error| blame_the_weights(error, peft.model(), &folder, &adapters))?;
        }
        false => {
            let (base, _) = registry.architectures.load_causal_lm(&folder, &place)?;
            let own = rows_with(&base.spec(), &[])?;
            let peft = with_adapters(base, &adapters, &registry.methods)?;
            let tokenizer = fitted(tokenizer, own, rows_with(peft.spec(), &[])?)?;
            let ids = prompt_ids(&tokenizer, &text, !args.chat, plan.bos.or(tokenizer.bos_id()))?;
            if !args.chat {
                part(&args.prompt)?;
            }
            let mut stream = tokenizer.stream(true);
            generate(peft.model(), &[ids], &plan, &place.device, |_, token| print(&mut stream, token))
                .map_err(|error| blame_the_weights(error, peft.model(), &folder, &adapters))?;
        }
    }
    say!("")
}

/// The tokens that end a text: those of the model's files, else the tokenizer's. Which they are is logged.
fn end_of(plan: &mut GenerationPlan, tokenizer: &Tokenizer) {
    if plan.eos.is_empty() {
        plan.eos.extend(tokenizer.eos_id());
    }
    let names: Vec<String> =
        plan.eos.iter().map(|it| format!("{:?} ({it})", tokenizer.token(*it).unwrap_or_default())).collect();
    match names.is_empty() {
        true => tracing::warn!(
            "no file of the model names an end token, so a text ends at --max-new-tokens only: write `eos_token_id` into \
             its config.json"
        ),
        false => tracing::info!("a text ends with {}", names.join(" or ")),
    }
}

/// Whether the model reads a source and writes a target: as adapters and base say, or as only such a model is there.
fn reads_a_source(folder: &Path, adapters: &[AdapterSource], registry: &Registry) -> Result<bool> {
    let task = registry.tasks.chosen(None, adapters, folder)?;
    match task.task_type() {
        Some("SEQ_2_SEQ_LM") => Ok(true),
        Some("CAUSAL_LM") => {
            let (raw, device) = (RawConfig::read(folder)?, Device::default());
            let architectures = &registry.architectures;
            Ok(architectures.causal_lm(&raw, &device).is_err() && architectures.seq2seq_lm(&raw, &device).is_ok())
        }
        other => {
            let reason = "only models and adapters for CAUSAL_LM and SEQ_2_SEQ_LM do; `peft eval` measures the others";
            Err(PeftError::unsupported(format!("writing texts with {}", other.unwrap_or(task.name())), reason))
        }
    }
}

/// The prompt's tokens. An empty one starts with the token that texts start with.
fn prompt_ids(tokenizer: &Tokenizer, text: &str, special: bool, bos: Option<u32>) -> Result<Vec<u32>> {
    let mut ids = tokenizer.ids(text, special)?;
    if ids.is_empty() {
        ids.extend(bos);
    }
    match ids.is_empty() {
        true => Err(PeftError::config("--prompt", "is empty, and the model names no token that a text starts with")),
        false => Ok(ids),
    }
}

/// The task of the one row, for prompts that tell tasks apart.
fn tasks_of(plan: &GenerationPlan, tasks: usize) -> Result<Option<i64>> {
    match plan.tasks.first() {
        None if tasks == 1 => Ok(None),
        Some(0) if tasks == 1 => Ok(None),
        Some(task) if (0..tasks as i64).contains(task) => Ok(Some(*task)),
        Some(task) => Err(PeftError::config("--task-id", format!("is {task}, expected 0 to {}", tasks - 1))),
        None => Err(PeftError::config("--task-id", format!("is not given: the prompt is of {tasks} tasks, from 0"))),
    }
}

/// Prints what a token adds to the text.
fn print(stream: &mut TokenStream<'_>, token: u32) -> Result<()> {
    match stream.push(token)? {
        Some(text) => part(text),
        None => Ok(()),
    }
}

/// The error of a number that is none while a text is written, with the files that it may come from.
fn blame_the_weights<M: Module>(error: PeftError, model: &M, base: &Path, adapters: &[AdapterSource]) -> PeftError {
    let PeftError::NotFinite(reason) = error else { return error };
    let files = adapters.iter().map(|it| it.folder.join(WEIGHTS_FILE)).chain([base.to_path_buf()]);
    let names: Vec<String> = files.map(|it| it.display().to_string()).collect();
    let error = PeftError::NotFinite(format!("{reason}: look at {}", names.join(", ")));
    blame_the_base(error, model, base)
}
