//! `peft demo`: everything once, with nothing but this binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use peft::core::files::checkpoint::write_atomically;
use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftModel, Result};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::run::prepare::TextData;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::generate::GenerationConfig;
use peft::tasks::generate::causal::generate;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::{Evaluation, Task};
use peft::tasks::train::{TrainConfig, Trainer};

use super::common::{Bar, device};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the base model, the texts and the adapter.
    #[arg(long, value_name = "DIR", default_value = "peft-demo")]
    output: PathBuf,
    /// A few steps only, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// flex, wgpu, cuda, tch: among those compiled in.
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

pub(crate) fn run(args: &Args) -> Result<()> {
    let device = device(args.device.as_deref())?;
    for (name, bytes) in FILES {
        write_atomically(args.output.join(name), bytes)?;
    }
    let base_folder = args.output.join("base");
    println!("base model: a small GPT-2 that has read Jane Austen, in {}", base_folder.display());
    let tokenizer = Tokenizer::load(&base_folder)?;
    let task = text(&args.output.join("voice_train.txt"), &base_folder, &tokenizer)?;
    let eval = text(&args.output.join("voice_eval.txt"), &base_folder, &tokenizer)?;
    let mut peft = load(&base_folder, &device)?;

    let before = eval.evaluate(&peft.model().valid(), 16, &device)?;
    println!("\nperplexity on Genesis before: {}", perplexity(&before));
    println!("  {}\n", sample(peft.model(), &tokenizer, &device)?);

    let plan = peft.add_adapter(DEFAULT_ADAPTER, LoraConfig::new(16, 32.0).all_linear(), 42)?;
    println!("{plan}\n");
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
    let result = Trainer::new(&mut peft, &task, training).observer(&mut bar).run();
    bar.finish();
    let outcome = result?;
    println!("{} steps in {:.0} s, last loss {:.3}", outcome.steps, started.elapsed().as_secs_f64(), outcome.last_loss);

    let after = eval.evaluate(&peft.model().valid(), 16, &device)?;
    println!("\nperplexity on Genesis after: {}", perplexity(&after));
    println!("  {}\n", sample(peft.model(), &tokenizer, &device)?);

    let adapter = args.output.join("adapter");
    peft.base_name = Some(base_folder.display().to_string());
    peft.task_type = Some("CAUSAL_LM".into());
    peft.save_adapter(&adapter, DEFAULT_ADAPTER)?;
    let mut again = load(&base_folder, &device)?;
    again.load_adapter(&adapter, DEFAULT_ADAPTER, &peft::methods())?;
    let reloaded = eval.evaluate(&again.model().valid(), 16, &device)?;
    println!("adapter saved to {}: {} bytes", adapter.display(), folder_size(&adapter));
    println!("loaded into a fresh base it gives perplexity {}\n", perplexity(&reloaded));
    if (reloaded.loss - after.loss).abs() > 1e-4 * after.loss {
        let reason = "the reloaded adapter does not give the same loss; please report this".to_owned();
        return Err(peft::core::PeftError::Invalid(reason));
    }
    print_next(&args.output);
    Ok(())
}

fn print_next(output: &Path) {
    let at = output.display();
    println!("next:");
    println!(
        "  peft generate --model {at}/base --adapter {at}/adapter --prompt \"In the beginning\" --temperature 0.8"
    );
    println!("  peft inspect {at}/adapter --model {at}/base");
    println!("  peft merge --model {at}/base --adapter {at}/adapter --output {at}/merged");
    println!("  peft train --model {at}/base --data YOUR.txt --output {at}/yours --targets all-linear --lr 5e-3");
}

fn load(folder: &Path, device: &Device) -> Result<PeftModel<AutoCausalLm>> {
    let (model, _) = auto::load_causal_lm(folder, device)?;
    let spec = model.spec();
    Ok(PeftModel::with_spec(model, spec, device))
}

fn text(file: &Path, base: &Path, tokenizer: &Tokenizer) -> Result<LanguageModelling> {
    TextData::file(file).tokenizer(tokenizer.clone()).causal_lm(base)
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
