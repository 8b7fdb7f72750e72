//! `peft generate`

use std::path::Path;

use peft_core::{Adaptable, PeftError, Result, forward};
use peft_models::ModelInput;
use peft_models::common::config::RawConfig;
use peft_tasks::data::chat::Message;
use peft_tasks::data::tensors::{grid, line};
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::generate::causal::generate;
use peft_tasks::generate::seq2seq::generate_targets;
use peft_tasks::generate::{GenerationConfig, GenerationPlan};

#[cfg(feature = "image")]
use super::captions;
use super::generation::{Args, MAX_NEW_TOKENS, blame_the_weights, end_of, print};
#[cfg(feature = "image")]
use super::pictures;
#[cfg(feature = "audio")]
use super::speech;
use super::terminal::{part, say};
use crate::device::cpu_device;
use crate::load::adapters::with_adapters;
use crate::load::text::{fitted, load_chat_template, load_tokenizer, rows_with};
use crate::run::registry::{KnownTask, Registry};

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let (folder, adapters, place) = args.sources()?;
    #[cfg(feature = "image")]
    if args.audio.is_none() && args.image.is_none() && pictures::is_meant(args.task.as_deref(), &folder) {
        let prompt = args.prompt.as_deref().unwrap_or_default();
        let request = pictures::Request { folder: &folder, adapters: &adapters, prompt, seed: args.seed };
        return pictures::run(&args.picture, &request, registry, &place);
    }
    let task = registry.tasks.chosen(args.task.as_deref(), &adapters, &folder)?;
    if let Some(audio) = &args.audio {
        #[cfg(feature = "audio")]
        return speech::run(args, audio, (&folder, &adapters, &place), registry);
        #[cfg(not(feature = "audio"))]
        return Err(PeftError::unsupported(
            format!("reading {}", audio.display()),
            "this program was built without the feature `audio`",
        ));
    }
    if let Some(image) = &args.image {
        #[cfg(feature = "image")]
        return captions::run(args, image, (&folder, &adapters, &place), registry);
        #[cfg(not(feature = "image"))]
        return Err(PeftError::unsupported(
            format!("reading {}", image.display()),
            "this program was built without the feature `image`",
        ));
    }
    let writes_targets = reads_a_source(task, &folder, registry)?;
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let tokenizer = load_tokenizer(&folder, &adapters)?;
    let mut config = GenerationConfig::load(&folder)?;
    args.fill(&mut config);
    config.max_new_tokens = args.max_new_tokens.or(Some(MAX_NEW_TOKENS));
    let mut plan = config.plan_for(&folder)?;
    plan.tasks.extend(args.task_id);
    end_of(&mut plan, &tokenizer);

    let text = match args.chat {
        true => {
            let template = load_chat_template(&folder, &adapters, &tokenizer)?;
            let template = template.ok_or_else(|| PeftError::bad_file(&folder, "it has no chat template"))?;
            template.render(&[Message::new("user", prompt)], true)?
        }
        false => prompt.to_owned(),
    };
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
                part(prompt)?;
            }
            let mut stream = tokenizer.stream(true);
            generate(peft.model(), &[ids], &plan, &place.device, |_, token| print(&mut stream, token))
                .map_err(|error| blame_the_weights(error, peft.model(), &folder, &adapters))?;
        }
    }
    say!("")
}

/// Whether the model reads a source and writes a target: as adapters and base say, or as only such a model is there.
fn reads_a_source(task: KnownTask<'_>, folder: &Path, registry: &Registry) -> Result<bool> {
    match task.task_type() {
        Some("SEQ_2_SEQ_LM") => Ok(true),
        Some("CAUSAL_LM") => {
            let (raw, device) = (RawConfig::read(folder)?, cpu_device()?);
            let architectures = &registry.architectures;
            Ok(architectures.causal_lm(&raw, &device).is_err() && architectures.seq2seq_lm(&raw, &device).is_ok())
        }
        _ if task.name() == "speech-to-text" => {
            let reason = "this model writes what it hears: give a recording instead, `--audio FILE`";
            Err(PeftError::config("--prompt", reason))
        }
        _ if task.name() == "image-to-text" => {
            let reason = "this model writes about a picture: give one too, `--image FILE`";
            Err(PeftError::config("--prompt", reason))
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
