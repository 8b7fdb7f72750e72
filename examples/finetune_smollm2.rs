//! Fine-tune SmolLM2-135M-Instruct with LoRA to answer prompts, and save a folder that Hugging Face PEFT loads.
//!
//! ```text
//! cargo run --release -p peft-examples --example finetune_smollm2 -- MODEL TRAIN.jsonl EVAL.jsonl OUTPUT
//! ```
//!
//! MODEL is a folder, or HuggingFaceTB/SmolLM2-135M-Instruct on the hub. Rows are `{"prompt": …, "completion": …}`; only
//! completions are learned. `peft train` does the same without writing any code.

#![allow(clippy::print_stdout)] // an example may speak

use peft::core::{DEFAULT_ADAPTER, PeftError, PeftModel, Result, nn};
use peft::lora::LoraConfig;
use peft::models::auto::load_causal_lm;
use peft::tasks::data::TextData;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::generate::GenerationConfig;
use peft::tasks::generate::causal::generate;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::log::TrainRecord;
use peft::tasks::train::{Observer, TrainConfig, Trainer};

struct Print;

impl Observer for Print {
    fn logged(&mut self, record: &TrainRecord, total: usize) {
        println!("step {}/{total}  loss {:.4}  {:.0} tokens/s", record.step, record.loss, record.tokens_per_second);
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, train_file, eval_file, output] = args.as_slice() else {
        return Err(PeftError::Invalid("give MODEL TRAIN.jsonl EVAL.jsonl OUTPUT".into()));
    };
    let device = peft::device::device("flex")?;
    let folder = peft::load::hub::resolve(model, peft::load::hub::What::Model)?;
    let tokenizer = Tokenizer::load(&folder)?;
    let data = |file: &String| TextData::file(file).max_length(224);
    let task = data(train_file).causal_lm(&folder)?;
    let eval = data(eval_file).causal_lm(&folder)?;

    let (base, _) = load_causal_lm(&folder, &device)?;
    let mut peft = PeftModel::new(base);
    peft.set_base_name(model.clone());
    peft.set_task_type("CAUSAL_LM");
    let plan = peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(8, 16.0).targets(["q_proj", "v_proj"]), 42)?;
    println!("{plan}");

    println!("before: {:?}", eval.evaluate(&nn::eval(peft.model()), 4, &device)?.metrics);
    let mut config = TrainConfig { learning_rate: 1e-3, batch_size: 4, max_steps: Some(75), ..TrainConfig::default() };
    config.schedule.lr_scheduler_type = "cosine".parse()?;
    config.schedule.warmup_steps = 5.0;
    Trainer::new(&mut peft, &task, config).observer(&mut Print).run()?;
    println!("after:  {:?}", eval.evaluate(&nn::eval(peft.model()), 4, &device)?.metrics);

    peft.save_adapter(output, DEFAULT_ADAPTER)?;
    println!("saved to {output}");

    let prompt = tokenizer.ids("A small program that shows the time.\n\nOne-line summary:", true)?;
    let mut plan = GenerationConfig { max_new_tokens: Some(16), ..GenerationConfig::default() }.plan()?;
    plan.eos.extend(tokenizer.eos_id());
    let answer = generate(peft.model(), &[prompt], &plan, &device, |_, _| Ok(()))?;
    println!("it answers: {}", tokenizer.decode(&answer[0], true)?.trim());
    Ok(())
}
