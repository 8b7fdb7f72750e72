//! `peft generate`

use peft_core::{PeftError, Result};
use peft_tasks::data::chat::{ChatTemplate, Message};
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::generate::GenerationConfig;
use peft_tasks::generate::causal::generate;

use super::common::{Adapter, PlaceArgs, adapter_sources};
use super::terminal::{part, say};
use crate::load::adapters::with_adapters;
use crate::load::names::model_folder;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// Text to continue.
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
    /// What the drawn tokens depend on.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let (folder, adapters) = (model_folder(&args.model)?, adapter_sources(&args.adapter)?);
    let place = args.place.placement()?;
    let tokenizer = Tokenizer::load(&folder)?;
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
    if plan.eos.is_empty() {
        plan.eos.extend(tokenizer.eos_id());
    }

    let ids = if args.chat {
        let template = ChatTemplate::load(&folder, tokenizer.special())?;
        let template = template.ok_or_else(|| PeftError::bad_file(&folder, "it has no chat template"))?;
        tokenizer.ids(&template.render(&[Message::new("user", &args.prompt)], true)?, false)?
    } else {
        tokenizer.ids(&args.prompt, true)?
    };
    let (base, _) = registry.architectures.load_causal_lm(&folder, &place)?;
    let peft = with_adapters(base, &adapters, &registry.methods)?;
    if !args.chat {
        part(&args.prompt)?;
    }
    let mut stream = tokenizer.stream(true);
    generate(peft.model(), &[ids], &plan, &place.device, |_, token| {
        if let Some(text) = stream.push(token)? {
            part(text)?;
        }
        Ok(())
    })?;
    say!("")?;
    Ok(())
}
