//! `peft train`

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use peft::core::{Adaptable, DEFAULT_ADAPTER, Labels, Names, PeftConfig, PeftError, PeftModel, Result, nn};
use peft::load::configure::{configure, tasks, virtual_positions};
use peft::lora::{Bias, LoraConfig};
use peft::models::auto::{self, ClassifierOptions};
use peft::models::{CausalLm, Seq2SeqLm};
use peft::run::prepare::TextData;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::curve::Curve;
use peft::tasks::train::log;
use peft::tasks::train::{TrainConfig, Trainer};
use serde_json::{Map, Value};

use super::common::{Bar, ColumnArgs, PlaceArgs, model_folder, peak_memory, short};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the base model, or its id on the hub.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// causal-lm, seq2seq-lm, seq-cls, token-cls, question-answering or similarity.
    #[arg(long, default_value = "causal-lm")]
    task: String,
    /// JSONL, JSON, CSV, TSV or plain text.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Data to evaluate on.
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Folder for the adapter, the log, the loss curve and checkpoints.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Longest row in tokens.
    #[arg(long)]
    max_length: Option<usize>,
    /// Put several short texts into a row; none sees another.
    #[arg(long)]
    packing: bool,
    /// Learn prompts too, not only answers.
    #[arg(long)]
    train_on_prompt: bool,
    /// Tokens of a long text that its next window repeats, for question-answering [default: a third of --max-length]
    #[arg(long)]
    doc_stride: Option<usize>,

    /// An `adapter_config.json` to start from, of any method. LoRA's options below go before it.
    #[arg(long, value_name = "FILE", help_heading = "Method")]
    config: Option<PathBuf>,
    /// Rank [default: 8]
    #[arg(long, help_heading = "LoRA")]
    r: Option<usize>,
    /// Numerator of the scale alpha / r [default: 8]
    #[arg(long, help_heading = "LoRA")]
    alpha: Option<f64>,
    /// Share of the adapter's input that is dropped [default: 0]
    #[arg(long, help_heading = "LoRA")]
    dropout: Option<f64>,
    /// Layers: names with commas, `all-linear`, or a regular expression [default: the model type's]
    #[arg(long, help_heading = "LoRA")]
    targets: Option<String>,
    /// Modules that are trained whole: names with commas.
    #[arg(long, help_heading = "LoRA", value_delimiter = ',')]
    modules_to_save: Vec<String>,
    /// Scale by alpha / √r.
    #[arg(long, help_heading = "LoRA")]
    rslora: bool,
    /// Train magnitude and direction apart.
    #[arg(long, help_heading = "LoRA")]
    dora: bool,
    /// true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora [default: true]
    #[arg(long, help_heading = "LoRA")]
    init: Option<String>,
    /// none, all, lora_only [default: none]
    #[arg(long, help_heading = "LoRA")]
    bias: Option<String>,

    /// Highest learning rate.
    #[arg(long, default_value_t = 2e-4, help_heading = "Training")]
    lr: f64,
    /// linear, cosine, constant, constant_with_warmup, polynomial, inverse_sqrt, …
    #[arg(long, default_value = "linear", help_heading = "Training")]
    schedule: String,
    /// Steps, or below 1 a share of all steps, over which the rate rises.
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    warmup: f64,
    /// Rows in a forward pass.
    #[arg(long, default_value_t = 8, help_heading = "Training")]
    batch_size: usize,
    /// Forward passes in a step.
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    accumulate: usize,
    /// Passes over the data.
    #[arg(long, default_value_t = 3.0, help_heading = "Training")]
    epochs: f64,
    /// Steps; goes before --epochs.
    #[arg(long, help_heading = "Training")]
    steps: Option<usize>,
    /// Largest norm of all gradients together; 0 does not clip.
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    max_grad_norm: f64,
    /// AdamW's decoupled weight decay.
    #[arg(long, default_value_t = 0.01, help_heading = "Training")]
    weight_decay: f64,
    /// LoRA+: how many times faster than A the factor B learns, as 16.
    #[arg(long, help_heading = "Training")]
    loraplus_lr_ratio: Option<f64>,
    /// LoRA+: weight decay, in place of --weight-decay.
    #[arg(long, default_value_t = 0.0, requires = "loraplus_lr_ratio", help_heading = "Training")]
    loraplus_weight_decay: f64,
    /// LoRA+: learning rate of factors on embeddings.
    #[arg(long, default_value_t = 1e-6, requires = "loraplus_lr_ratio", help_heading = "Training")]
    loraplus_lr_embedding: f64,
    /// LoRA-FA: freeze A, and project the gradient of B.
    #[arg(long, conflicts_with = "loraplus_lr_ratio", help_heading = "Training")]
    lora_fa: bool,
    /// Multiply with weights in bf16: about 0.6 of the time, on processors with AVX512_BF16.
    #[arg(long, help_heading = "Training")]
    bf16: bool,
    /// Layers keep only their inputs and are computed again in the backward pass: less memory, more time, same numbers.
    #[arg(long, help_heading = "Training")]
    gradient_checkpointing: bool,
    /// Rows of like length together.
    #[arg(long, help_heading = "Training")]
    group_by_length: bool,
    /// Steps between lines of the log.
    #[arg(long, default_value_t = 10, help_heading = "Training")]
    log_every: usize,
    /// Steps between evaluations; 0 evaluates at the end only.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    eval_every: usize,
    /// Steps between checkpoints; 0 writes none.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    save_every: usize,
    /// Checkpoints to keep; 0 keeps all.
    #[arg(long, default_value_t = 2, help_heading = "Training")]
    keep: usize,
    /// Evaluations without gain after which to stop; the adapter is then the best one. 0 never.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    patience: usize,
    /// Go on from the last checkpoint in the output folder.
    #[arg(long, help_heading = "Training")]
    resume: bool,
    /// What every random choice depends on.
    #[arg(long, default_value_t = 42, help_heading = "Training")]
    seed: u64,
    #[command(flatten)]
    place: PlaceArgs,
}

impl Args {
    /// The configuration that was given, of whatever method.
    fn json(&self) -> Result<Option<Map<String, Value>>> {
        let Some(path) = &self.config else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(PeftError::io("read", path))?;
        serde_json::from_str(&text).map(Some).map_err(|error| PeftError::bad_file(path, error))
    }

    /// The method: LoRA, unless the configuration names another.
    fn tuner(&self, task_type: &str, folder: &Path) -> Result<Box<dyn PeftConfig>> {
        let json = self.json()?;
        let another = json.as_ref().filter(|it| it.get("peft_type").is_some_and(|it| it != peft::lora::PEFT_TYPE));
        let Some(mut json) = another.cloned() else { return Ok(Box::new(self.lora(task_type, json)?)) };
        let lora = [&self.targets, &self.init, &self.bias].iter().any(|it| it.is_some())
            || self.r.is_some()
            || self.alpha.is_some()
            || self.dropout.is_some()
            || self.rslora
            || self.dora
            || !self.modules_to_save.is_empty();
        if lora {
            let reason = "names another method: LoRA's options do not go with it, write them into the file";
            return Err(PeftError::config("config", reason));
        }
        json.insert("task_type".into(), task_type.into());
        configure(json, folder)
    }

    fn lora(&self, task_type: &str, json: Option<Map<String, Value>>) -> Result<LoraConfig> {
        let mut config = json.map_or_else(|| Ok(LoraConfig::default()), LoraConfig::parse)?;
        config.task_type = Some(task_type.to_owned());
        config.r = self.r.unwrap_or(config.r);
        config.lora_alpha = self.alpha.unwrap_or(config.lora_alpha);
        config.lora_dropout = self.dropout.unwrap_or(config.lora_dropout);
        config.use_rslora |= self.rslora;
        config.use_dora |= self.dora;
        if let Some(targets) = &self.targets {
            let is_list = targets.contains(',') || targets.chars().all(|it| it.is_alphanumeric() || "_.".contains(it));
            config.target_modules = Some(if is_list && targets != peft::core::ALL_LINEAR {
                Names::list(targets.split(',').map(str::trim))
            } else {
                Names::Pattern(targets.clone())
            });
        }
        if !self.modules_to_save.is_empty() {
            config.modules_to_save = Some(self.modules_to_save.clone());
        }
        if let Some(init) = &self.init {
            config.init_lora_weights = init.parse::<bool>().map_or_else(|_| init.clone().into(), Into::into);
        }
        config.bias = match self.bias.as_deref() {
            None => config.bias,
            Some("none") => Bias::None,
            Some("all") => Bias::All,
            Some("lora_only") => Bias::AdaptedOnly,
            Some(other) => {
                return Err(PeftError::config("bias", format!("is `{other}`, expected none, all or lora_only")));
            }
        };
        Ok(config)
    }

    fn training(&self) -> Result<TrainConfig> {
        let mut config = TrainConfig {
            learning_rate: self.lr,
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.accumulate,
            num_train_epochs: self.epochs,
            max_steps: self.steps,
            max_grad_norm: self.max_grad_norm,
            weight_decay: self.weight_decay,
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            loraplus_weight_decay: self.loraplus_weight_decay,
            loraplus_lr_embedding: self.loraplus_lr_embedding,
            lora_fa: self.lora_fa,
            bf16: self.bf16,
            gradient_checkpointing: self.gradient_checkpointing,
            group_by_length: self.group_by_length,
            logging_steps: self.log_every,
            eval_steps: self.eval_every,
            eval_batch_size: self.batch_size,
            save_steps: self.save_every,
            save_total_limit: self.keep,
            early_stopping_patience: self.patience,
            seed: self.seed,
            ..TrainConfig::default()
        };
        if self.lora_fa {
            config.adam_epsilon = 1e-6; // the reference's default there
        }
        config.schedule.lr_scheduler_type = self.schedule.parse()?;
        config.schedule.warmup_steps = self.warmup;
        Ok(config)
    }

    fn data(&self, file: &Path) -> Result<TextData> {
        Ok(TextData {
            file: file.to_path_buf(),
            columns: self.columns.columns(),
            max_length: self.max_length,
            reserved: self.json()?.as_ref().map_or(0, virtual_positions),
            tasks: self.json()?.as_ref().map_or(1, tasks),
            packing: self.packing,
            train_on_prompt: self.train_on_prompt,
            doc_stride: self.doc_stride,
            tokenizer: None,
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let place = args.place.placement()?;
    let device = &place.device;
    let folder = model_folder(&args.model)?;
    let tokenizer = Tokenizer::load(&folder)?;
    device.seed(args.seed);
    match args.task.as_str() {
        "causal-lm" => {
            let task = args.data(&args.data)?.causal_lm(&folder)?;
            let eval = args.eval_data.as_ref().map(|it| args.data(it)?.causal_lm(&folder));
            let config = args.tuner("CAUSAL_LM", &folder)?;
            let (mut model, _) = auto::load_causal_lm(&folder, &place)?;
            if peft::forward::names_head(&peft::core::PeftConfig::to_json(&config)?) {
                model = model.untied();
            }
            fit(args, model, config, None, &task, eval.transpose()?.as_ref(), device)
        }
        "seq-cls" => {
            let data = args.data(&args.data)?;
            let set = data.label_set()?;
            let task = data.sequence_classification(&folder, &set)?;
            let eval = args.eval_data.as_ref().map(|it| args.data(it)?.sequence_classification(&folder, &set));
            let options = ClassifierOptions {
                num_labels: Some(set.outputs()),
                problem_type: Some(set.kind.problem_type().to_owned()),
                pad_token_id: Some(i64::from(tokenizer.pad_id().unwrap_or_else(|| tokenizer.fill_id()))),
                seed: args.seed,
            };
            let (model, _) = auto::load_sequence_classifier(&folder, &place, &options)?;
            println!("labels: {}", set.names.join(", "));
            let config = args.tuner("SEQ_CLS", &folder)?;
            fit(args, model, config, Some(set.to_labels()), &task, eval.transpose()?.as_ref(), device)
        }
        "token-cls" => {
            let data = args.data(&args.data)?;
            let names = data.tag_names()?;
            let task = data.token_classification(&folder, &names)?;
            let eval = args.eval_data.as_ref().map(|it| args.data(it)?.token_classification(&folder, &names));
            let options = ClassifierOptions { num_labels: Some(names.len()), seed: args.seed, ..Default::default() };
            let (model, _) = auto::load_token_classifier(&folder, &place, &options)?;
            println!("tags: {}", names.join(", "));
            let (config, labels) = (args.tuner("TOKEN_CLS", &folder)?, Labels { problem_type: None, names });
            fit(args, model, config, Some(labels), &task, eval.transpose()?.as_ref(), device)
        }
        "seq2seq-lm" => {
            let task = args.data(&args.data)?.seq2seq_lm(&folder)?;
            let eval = args.eval_data.as_ref().map(|it| args.data(it)?.seq2seq_lm(&folder));
            let config = args.tuner("SEQ_2_SEQ_LM", &folder)?;
            let (mut model, _) = auto::load_seq2seq_lm(&folder, &place)?;
            if peft::forward::names_head(&peft::core::PeftConfig::to_json(&config)?) {
                model.untie();
            }
            fit(args, model, config, None, &task, eval.transpose()?.as_ref(), device)
        }
        "question-answering" => {
            let task = args.data(&args.data)?.question_answering(&folder, true)?;
            let eval = args.eval_data.as_ref().map(|it| args.data(it)?.question_answering(&folder, true));
            let (model, _) = auto::load_question_answerer(&folder, &place, args.seed)?;
            fit(args, model, args.tuner("QUESTION_ANS", &folder)?, None, &task, eval.transpose()?.as_ref(), device)
        }
        "similarity" => {
            let task = args.data(&args.data)?.similarity(&folder)?;
            let eval = args.eval_data.as_ref().map(|it| args.data(it)?.similarity(&folder));
            let (model, _) = auto::load_feature_extractor(&folder, &place)?;
            fit(
                args,
                model,
                args.tuner("FEATURE_EXTRACTION", &folder)?,
                None,
                &task,
                eval.transpose()?.as_ref(),
                device,
            )
        }
        other => {
            let known = "causal-lm, seq2seq-lm, seq-cls, token-cls, question-answering or similarity";
            let reason = format!("is `{other}`, expected {known}");
            Err(PeftError::config("task", reason))
        }
    }
}

fn fit<M: Module + Adaptable, T: Task<M>>(
    args: &Args,
    model: M,
    tuner: Box<dyn PeftConfig>,
    labels: Option<Labels>,
    task: &T,
    eval: Option<&T>,
    device: &burn::tensor::Device,
) -> Result<()> {
    let training = args.training()?;
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(model, spec, device);
    peft.base_name = Some(args.model.clone());
    let plan = peft.add_adapter(DEFAULT_ADAPTER, tuner, args.seed)?;
    println!("{plan}");
    peft.set_labels(DEFAULT_ADAPTER, labels)?;

    if let Some(eval) = eval {
        let base = nn::eval(peft.model());
        let before = eval.evaluate(&base, training.eval_batch_size, device)?;
        let metrics: Vec<String> = before.metrics.iter().map(|(name, it)| format!("{name} {}", short(it))).collect();
        println!("before: evaluation loss {:.4}  {}", before.loss, metrics.join("  "));
    }
    let started = Instant::now();
    let mut bar = Bar::new();
    let result = Trainer::new(&mut peft, task, training)
        .eval(eval)
        .output(&args.output)
        .resume(args.resume)
        .observer(&mut bar)
        .run();
    bar.finish();
    let outcome = result?;
    peft.save_adapter(&args.output, DEFAULT_ADAPTER)?;
    let records = log::read(args.output.join("train_log.jsonl"))?;
    let svg = Curve::from_records("Loss", &records).to_svg()?;
    peft::core::files::checkpoint::write_atomically(args.output.join("loss.svg"), svg.as_bytes())?;

    let memory = peak_memory().map_or(String::new(), |it| format!(", peak memory {:.2} GB", it as f64 / 1e9));
    if let Some(step) = outcome.restored {
        println!("the adapter is that of step {step}, whose evaluation was best");
    }
    let early = if outcome.stopped_early { " (stopped early)" } else { "" };
    println!(
        "{} steps{early} in {:.1} s, last loss {:.4}{memory}",
        outcome.steps,
        started.elapsed().as_secs_f64(),
        outcome.last_loss
    );
    println!("adapter, log and loss curve are in {}", args.output.display());
    Ok(())
}
