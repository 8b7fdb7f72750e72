//! `peft demo`: everything once, with nothing but this binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use peft_core::files::checkpoint::write_atomically;
use peft_core::{DEFAULT_ADAPTER, PeftError, PeftModel, Result, nn};
use peft_lora::LoraConfig;
use peft_models::auto::AutoCausalLm;
use peft_tasks::data::text_data::TextData;
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::generate::GenerationConfig;
use peft_tasks::generate::causal::generate;
use peft_tasks::tasks::task::{Evaluation, Task};
use peft_tasks::train::{TrainConfig, Trainer};

use super::bar::Bar;
use super::terminal::say;
use crate::device::best_device;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder for the base model, the texts and the adapter.
    #[arg(long, value_name = "DIR", default_value = "peft-demo")]
    output: PathBuf,
    /// A few steps only, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// auto, flex, cuda, cuda:1, wgpu, tch, …: `peft devices` lists those of this machine [default: auto]
    #[arg(long)]
    device: Option<String>,
}

/// The base model and the texts; see `demo/README.md`.
const FILES: [(&str, &[u8]); 6] = [
    ("base/config.json", include_bytes!("../../demo/base/config.json")),
    ("base/model.safetensors", include_bytes!("../../demo/base/model.safetensors")),
    ("base/tokenizer.json", include_bytes!("../../demo/base/tokenizer.json")),
    ("base/tokenizer_config.json", include_bytes!("../../demo/base/tokenizer_config.json")),
    ("voice_train.txt", include_bytes!("../../demo/voice_train.txt")),
    ("voice_eval.txt", include_bytes!("../../demo/voice_eval.txt")),
];

const PROMPT: &str = "In the morning";

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let device = best_device(args.device.as_deref())?;
    for (name, bytes) in FILES {
        write_atomically(args.output.join(name), bytes)?;
    }
    let base_folder = args.output.join("base");
    say!("base model: a small GPT-2 that has read Jane Austen, in {}", base_folder.display())?;
    let data = TextData::file(args.output.join("voice_train.txt")).causal_lm(&base_folder)?;
    let held_out = TextData::file(args.output.join("voice_eval.txt")).causal_lm(&base_folder)?;
    let tokenizer = Tokenizer::load(&base_folder)?;
    let load = || {
        let mut model = PeftModel::new(registry.architectures.load_causal_lm(&base_folder, &device)?.0);
        model.set_base_name(base_folder.display().to_string());
        Ok::<_, PeftError>(model)
    };
    let mut model = load()?;

    let before = held_out.evaluate(&nn::eval(model.model()), 16, &device)?;
    say!("\nperplexity on Genesis before: {}", perplexity(&before))?;
    say!("  {}\n", sample(model.model(), &tokenizer, &device)?)?;

    say!("{}\n", model.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(16, 32.0).all_linear(), 42)?)?;
    let mut training = TrainConfig {
        learning_rate: 1e-2,
        batch_size: 8,
        weight_decay: 0.0,
        max_steps: Some(if args.quick { 8 } else { 250 }),
        ..TrainConfig::default()
    };
    training.schedule.lr_scheduler_type = "cosine".parse()?;
    training.schedule.warmup_steps = 10.0;
    let started = Instant::now();
    let mut bar = Bar::new();
    let result = Trainer::new(&mut model, &data, training).observer(&mut bar).run();
    bar.finish();
    let outcome = result?;
    bar.end()?;
    say!("{} steps in {:.0} s, last loss {:.3}", outcome.steps, started.elapsed().as_secs_f64(), outcome.last_loss)?;

    let after = held_out.evaluate(&nn::eval(model.model()), 16, &device)?;
    say!("\nperplexity on Genesis after: {}", perplexity(&after))?;
    say!("  {}\n", sample(model.model(), &tokenizer, &device)?)?;

    let adapter = args.output.join("adapter");
    model.save(&adapter)?;
    let mut again = load()?;
    again.load_adapter(&adapter, DEFAULT_ADAPTER, &registry.methods)?;
    let reloaded = held_out.evaluate(&nn::eval(again.model()), 16, &device)?;
    say!("adapter saved to {}: {} bytes", adapter.display(), folder_size(&adapter))?;
    say!("loaded into a fresh base it gives perplexity {}\n", perplexity(&reloaded))?;
    if (reloaded.loss - after.loss).abs() > 1e-4 * after.loss {
        let reason = "the reloaded adapter does not give the same loss; please report this".to_owned();
        return Err(PeftError::Invalid(reason));
    }
    print_next(&args.output)
}

/// Commands that can be typed as they stand.
fn print_next(output: &Path) -> Result<()> {
    let (at, peft) = (quoted(&output.display().to_string()), quoted(&command()));
    say!("next:")?;
    say!("  {peft} generate --model {at}/base --adapter {at}/adapter --prompt \"In the beginning\" --temperature 0.8")?;
    say!("  {peft} inspect {at}/adapter --model {at}/base")?;
    say!("  {peft} merge --model {at}/base --adapter {at}/adapter --output {at}/merged")?;
    say!("  {peft} train --model {at}/base --data YOUR.txt --output {at}/yours --targets all-linear --lr 5e-3")
}

/// How this program is called here: by its name if that finds it, else by its path.
fn command() -> String {
    let Ok(program) = std::env::current_exe() else { return "peft".to_owned() };
    let name = program.file_name().unwrap_or_default().to_owned();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|it| it.join(&name)).find(|it| it.is_file());
    if found.is_some_and(|it| matches!((it.canonicalize(), program.canonicalize()), (Ok(a), Ok(b)) if a == b)) {
        return name.to_string_lossy().into_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    // With a separator in it, so that a shell does not look for it elsewhere.
    match program.strip_prefix(&here) {
        Ok(below) => Path::new(".").join(below).display().to_string(),
        Err(_) => program.display().to_string(),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = word.chars().all(|it| it.is_alphanumeric() || "/._-\\:".contains(it));
    if is_plain { word.to_owned() } else { format!("\"{word}\"") }
}

fn perplexity(evaluation: &Evaluation) -> String {
    evaluation.metrics.get("perplexity").and_then(|it| it.as_f64()).map_or("?".into(), |it| format!("{it:.1}"))
}

fn sample(model: &AutoCausalLm, tokenizer: &Tokenizer, device: &Device) -> Result<String> {
    let config = GenerationConfig {
        max_new_tokens: Some(60),
        do_sample: Some(true),
        temperature: Some(0.7),
        top_p: Some(0.9),
        seed: Some(7),
        ..GenerationConfig::default()
    };
    let prompt = tokenizer.ids(PROMPT, false)?;
    let new = generate(model, &[prompt], &config.plan()?, device, |_, _| Ok(()))?;
    Ok(format!("{PROMPT}{}", tokenizer.decode(&new[0], true)?).replace('\n', "\n  "))
}

fn folder_size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|it| it.metadata().ok()).map(|it| it.len()).sum()
}
