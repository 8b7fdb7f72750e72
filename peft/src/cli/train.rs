//! `peft train`: the flags fill a [`RunConfig`], which the library runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use peft_core::{ALL_LINEAR, PeftError, RegisteredMethod, Result, nearest};
use peft_tasks::data::augmentation::{Augmentation, Augmentations};
use peft_tasks::data::reading;
use peft_tasks::train::{Optim, Start};
use serde_json::{Map, Value};

use super::bar::Bar;
use super::common::{ColumnArgs, PlaceArgs, RowArgs, ShardArgs, peak_memory};
use super::dreambooth::DreamBoothArgs;
use super::terminal::{complain, part};
use crate::run::actions;
use crate::run::config::RunConfig;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: Option<String>,
    /// [default: causal-lm]
    #[arg(long)]
    task: Option<String>,
    /// JSONL, JSON, CSV, TSV or plain text, also packed with gzip, or Parquet. Several with commas, a folder, or a pattern such as
    /// 'data/*.jsonl'; `<(…)` works for JSON.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Data to evaluate on.
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Folder for the adapter, the log, the loss curve and checkpoints.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    rows: RowArgs,
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
    /// Share of the tokens that are hidden and predicted, for masked-lm [default: 0.15]
    #[arg(long, value_name = "SHARE")]
    masked: Option<f64>,
    /// How pictures are changed at random, with commas: `crop` (a part of them, enlarged), `flip`, `color` [default: not]
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    augment: Vec<Augmentation>,
    #[command(flatten)]
    dreambooth: DreamBoothArgs,
    /// Language of the recordings, a name or a code such as `en`, for speech-to-text; a column `language` goes before it.
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<String>,
    /// The transcripts of the recordings are in English, whatever is spoken.
    #[arg(long)]
    translate: bool,

    /// Tokens that the base does not know, with commas: they are added to the tokenizer, which is saved with the adapter, get
    /// rows in the embedding matrix, and these are trained (`trainable_token_indices`).
    #[arg(long, value_delimiter = ',', value_name = "TOKEN,…")]
    new_tokens: Vec<String>,

    /// A run file (YAML): all that these options say, which go before it. An `adapter_config.json` is taken as
    /// --method-config.
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Print the whole run as YAML, and stop.
    #[arg(long, help_heading = "Run")]
    print_config: bool,
    /// The method, by the name or `peft_type` that `peft methods` lists [default: LoRA]
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    method: Option<String>,
    /// An `adapter_config.json` of any method. The options below go before it.
    #[arg(long, value_name = "FILE", help_heading = "Method")]
    method_config: Option<PathBuf>,
    /// Go on from this adapter, a folder or a hub id: its method and its values.
    #[arg(long, value_name = "DIR or ID", conflicts_with_all = ["method", "method_config"], help_heading = "Method")]
    init_from: Option<String>,
    /// Layers: names with commas, `all-linear`, or a regular expression [default: the model type's]
    #[arg(long, help_heading = "Method")]
    targets: Option<String>,
    /// Modules that are trained whole: names with commas.
    #[arg(long, help_heading = "Method", value_delimiter = ',')]
    modules_to_save: Vec<String>,
    /// Rank [default: 8]
    #[arg(long, help_heading = "LoRA")]
    r: Option<usize>,
    /// Numerator of the scale alpha / r [default: 8]
    #[arg(long, help_heading = "LoRA")]
    alpha: Option<f64>,
    /// Share of the adapter's input that is dropped [default: 0]
    #[arg(long, help_heading = "LoRA")]
    dropout: Option<f64>,
    /// Scale by alpha / √r.
    #[arg(long, help_heading = "LoRA")]
    rslora: bool,
    /// Train magnitude and direction apart.
    #[arg(long, help_heading = "LoRA")]
    dora: bool,
    /// true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora; loftq makes up for quantising; eva and corda look at
    /// the training data first [default: true]
    #[arg(long, help_heading = "LoRA")]
    init: Option<String>,
    /// Rows that eva and corda look at [default: 256 for corda, as many as needed for eva]
    #[arg(long, value_name = "N", help_heading = "LoRA")]
    calibration_rows: Option<usize>,
    /// none, all, lora_only [default: none]
    #[arg(long, help_heading = "LoRA")]
    bias: Option<String>,

    /// Highest learning rate [default: 2e-4]
    #[arg(long, help_heading = "Training")]
    lr: Option<f64>,
    /// linear, cosine, constant, constant_with_warmup, polynomial, inverse_sqrt, … [default: linear]
    #[arg(long, help_heading = "Training")]
    schedule: Option<String>,
    /// Steps, or below 1 a share of all steps, over which the rate rises [default: 0]
    #[arg(long, help_heading = "Training")]
    warmup: Option<f64>,
    /// Rows in a forward pass [default: 8]
    #[arg(long, help_heading = "Training")]
    batch_size: Option<usize>,
    /// Forward passes in a step [default: 1]
    #[arg(long, help_heading = "Training")]
    accumulate: Option<usize>,
    /// Passes over the data [default: 3]
    #[arg(long, help_heading = "Training")]
    epochs: Option<f64>,
    /// Steps; goes before --epochs.
    #[arg(long, help_heading = "Training")]
    steps: Option<usize>,
    /// Largest norm of all gradients together; 0 does not clip [default: 1.0]
    #[arg(long, help_heading = "Training")]
    max_grad_norm: Option<f64>,
    /// AdamW's decoupled weight decay [default: 0.01]
    #[arg(long, help_heading = "Training")]
    weight_decay: Option<f64>,
    /// adamw_torch, or adamw_8bit, whose moments take 8 bits a number [default: adamw_torch]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    optim: Option<Optim>,
    /// LoRA+: how many times faster than A the factor B learns, as 16.
    #[arg(long, help_heading = "Training")]
    loraplus_lr_ratio: Option<f64>,
    /// LoRA+: weight decay, in place of --weight-decay [default: 0]
    #[arg(long, help_heading = "Training")]
    loraplus_weight_decay: Option<f64>,
    /// LoRA+: learning rate of factors on embeddings [default: 1e-6]
    #[arg(long, help_heading = "Training")]
    loraplus_lr_embedding: Option<f64>,
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
    /// Steps between lines of the log [default: 10]
    #[arg(long, help_heading = "Training")]
    log_every: Option<usize>,
    /// Steps between evaluations; 0 evaluates at the end only [default: 0]
    #[arg(long, help_heading = "Training")]
    eval_every: Option<usize>,
    /// Steps between checkpoints, and one at the end; 0 writes none, unless a signal ends the run [default: 0]
    #[arg(long, help_heading = "Training")]
    save_every: Option<usize>,
    /// Checkpoints to keep; 0 keeps all [default: 2]
    #[arg(long, help_heading = "Training")]
    keep: Option<usize>,
    /// Evaluations without gain after which to stop; the adapter is then the best one. 0 never [default: 0]
    #[arg(long, help_heading = "Training")]
    patience: Option<usize>,
    /// Go on from the last checkpoint in the output folder; without one start anew.
    #[arg(long, conflicts_with = "overwrite_output", help_heading = "Training")]
    resume: bool,
    /// Remove an earlier run from the output folder first.
    #[arg(long, help_heading = "Training")]
    overwrite_output: bool,
    /// What every random choice depends on [default: 42]
    #[arg(long, help_heading = "Training")]
    seed: Option<u64>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    shard: ShardArgs,
}

impl Args {
    /// The run that the flags and the run file describe together.
    fn run_config(&self, registry: &Registry) -> Result<RunConfig> {
        let mut run = match &self.config {
            Some(path) => {
                // Once: what has come out of a pipe is gone.
                let text = reading::text(path)?;
                match method_of(path, &text)? {
                    Some(method) => RunConfig { method, ..RunConfig::default() },
                    None => RunConfig::parse(&text).map_err(|error| PeftError::bad_file(path, error))?,
                }
            }
            None => RunConfig::default(),
        };
        if let Some(path) = &self.method_config {
            run.method = method_of(path, &reading::text(path)?)?.ok_or_else(|| {
                PeftError::bad_file(
                    path,
                    "it has no `peft_type`: give an `adapter_config.json`, or a run file to --config",
                )
            })?;
        }
        if let Some(name) = &self.method {
            let peft_type = registered(name, registry)?;
            if run.method.get("peft_type").and_then(Value::as_str) != Some(&peft_type) {
                run.method = Map::from_iter([("peft_type".to_owned(), peft_type.into())]);
            }
        }
        self.fill(&mut run)?;
        self.fill_method(&mut run, registry)?;
        Ok(run)
    }

    fn fill(&self, run: &mut RunConfig) -> Result<()> {
        fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        set(&mut run.model, &self.model);
        set(&mut run.task, &self.task);
        set(&mut run.output, &self.output);
        run.init_from = self.init_from.clone().or(run.init_from.take());
        set(&mut run.dtype, &self.place.dtype);
        run.quantization = self.place.quantization().or(run.quantization.take());
        run.llm_int8_threshold = self.place.llm_int8_threshold.or(run.llm_int8_threshold);
        run.shard_base |= self.shard.shard_base;
        run.device = self.place.device.clone().or(run.device.take());

        let data = &mut run.data;
        set(&mut data.train, &self.data);
        data.eval = self.eval_data.clone().or(data.eval.take());
        data.columns = self.columns.over(data.columns.clone())?;
        set(&mut data.truncation, &self.rows.truncation);
        if !self.new_tokens.is_empty() {
            data.new_tokens.clone_from(&self.new_tokens);
        }
        data.assistant_role = self.rows.assistant_role.clone().or(data.assistant_role.take());
        data.prompt_template = self.rows.prompt_template.clone().or(data.prompt_template.take());
        data.max_length = self.max_length.or(data.max_length);
        data.doc_stride = self.doc_stride.or(data.doc_stride);
        set(&mut data.masked_share, &self.masked);
        self.dreambooth.fill(&mut data.dreambooth);
        if !self.augment.is_empty() {
            data.augment = Augmentations(self.augment.clone());
        }
        data.language = self.language.clone().or(data.language.take());
        data.translate |= self.translate;
        data.calibration_rows = self.calibration_rows.or(data.calibration_rows);
        data.packing |= self.packing;
        data.train_on_prompt |= self.train_on_prompt;

        let training = &mut run.training;
        set(&mut training.learning_rate, &self.lr);
        if let Some(schedule) = &self.schedule {
            training.schedule.lr_scheduler_type = schedule.parse()?;
        }
        set(&mut training.schedule.warmup_steps, &self.warmup);
        set(&mut training.batch_size, &self.batch_size);
        set(&mut training.eval_batch_size, &self.batch_size);
        set(&mut training.gradient_accumulation_steps, &self.accumulate);
        set(&mut training.num_train_epochs, &self.epochs);
        training.max_steps = self.steps.or(training.max_steps);
        set(&mut training.max_grad_norm, &self.max_grad_norm);
        set(&mut training.weight_decay, &self.weight_decay);
        set(&mut training.optim, &self.optim);
        training.loraplus_lr_ratio = self.loraplus_lr_ratio.or(training.loraplus_lr_ratio);
        for (flag, given) in [
            ("--loraplus-weight-decay", self.loraplus_weight_decay.is_some()),
            ("--loraplus-lr-embedding", self.loraplus_lr_embedding.is_some()),
        ] {
            if given && training.loraplus_lr_ratio.is_none() {
                return Err(PeftError::config(flag, "says how LoRA+ trains: give --loraplus-lr-ratio too"));
            }
        }
        set(&mut training.loraplus_weight_decay, &self.loraplus_weight_decay);
        set(&mut training.loraplus_lr_embedding, &self.loraplus_lr_embedding);
        if self.lora_fa {
            training.lora_fa = true;
            training.adam_epsilon = 1e-6; // the reference's default there
        }
        training.bf16 |= self.bf16;
        training.gradient_checkpointing |= self.gradient_checkpointing;
        training.group_by_length |= self.group_by_length;
        set(&mut training.logging_steps, &self.log_every);
        set(&mut training.eval_steps, &self.eval_every);
        set(&mut training.save_steps, &self.save_every);
        set(&mut training.save_total_limit, &self.keep);
        set(&mut training.early_stopping_patience, &self.patience);
        set(&mut training.seed, &self.seed);
        Ok(())
    }

    /// Flags that are fields of the method's configuration, whichever method has them.
    fn fill_method(&self, run: &mut RunConfig, registry: &Registry) -> Result<()> {
        let init = |it: &String| it.parse::<bool>().map_or_else(|_| it.clone().into(), Value::from);
        let modules = (!self.modules_to_save.is_empty()).then(|| self.modules_to_save.clone().into());
        let fields: [(&str, &str, Option<Value>); 9] = [
            ("--r", "r", self.r.map(Value::from)),
            ("--alpha", "lora_alpha", self.alpha.map(Value::from)),
            ("--dropout", "lora_dropout", self.dropout.map(Value::from)),
            ("--targets", "target_modules", self.targets.as_deref().map(targets)),
            ("--modules-to-save", "modules_to_save", modules),
            ("--rslora", "use_rslora", self.rslora.then(|| true.into())),
            ("--dora", "use_dora", self.dora.then(|| true.into())),
            ("--init", "init_lora_weights", self.init.as_ref().map(init)),
            ("--bias", "bias", self.bias.clone().map(Value::from)),
        ];
        let given: Vec<_> = fields.into_iter().filter_map(|(flag, field, value)| Some((flag, field, value?))).collect();
        let Some((first, ..)) = given.first() else { return Ok(()) };
        if let Some(adapter) = &run.init_from {
            let reason = format!("has no meaning beside --init-from: {adapter} says what it is");
            return Err(PeftError::config(*first, reason));
        }
        let peft_type = run.method.get("peft_type").and_then(Value::as_str).unwrap_or(LORA).to_owned();
        let known = registry.methods.described().iter().find(|it| it.about.peft_type == peft_type);
        // A method that says nothing of itself refuses what it does not know when it is parsed.
        let known = known.map(|it| (it.defaults)()).transpose()?;
        for (flag, field, value) in given {
            if known.as_ref().is_some_and(|it| !it.contains_key(field)) {
                let reason =
                    format!("sets `{field}`, which {peft_type} has not; `peft methods {peft_type}` lists its fields");
                return Err(PeftError::config(flag, reason));
            }
            run.method.insert(field.to_owned(), value);
        }
        Ok(())
    }
}

/// `peft_type` of a run that names no method.
const LORA: &str = "LORA";

/// Names with commas, `all-linear`, or a regular expression.
fn targets(text: &str) -> Value {
    let is_list = text.contains(',') || text.chars().all(|it| it.is_alphanumeric() || "_.".contains(it));
    if is_list && text != ALL_LINEAR { text.split(',').map(str::trim).collect() } else { text.into() }
}

/// The configuration of a method, if the file is an `adapter_config.json`.
fn method_of(path: &Path, text: &str) -> Result<Option<Map<String, Value>>> {
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(json) if json.contains_key("peft_type") => Ok(Some(json)),
        // JSON is YAML as well; what is broken in a file of this name is said by the reader that is meant for it.
        Err(error) if path.extension().is_some_and(|it| it == "json") => Err(PeftError::bad_file(path, error)),
        _ => Ok(None),
    }
}

/// `peft_type` of a registered method, by that or by its name.
fn registered(name: &str, registry: &Registry) -> Result<String> {
    let plain = |text: &str| text.replace([' ', '-', '_'], "").to_ascii_lowercase();
    let same = |it: &&RegisteredMethod| [it.about.name, it.about.peft_type].iter().any(|it| plain(it) == plain(name));
    if let Some(known) = registry.methods.described().iter().find(same) {
        return Ok(known.about.peft_type.to_owned());
    }
    if let Some(known) = registry.methods.names().find(|it| plain(it) == plain(name)) {
        return Ok(known.to_owned());
    }
    let known: Vec<&str> = registry.methods.names().collect();
    let near = nearest(name, known.iter().copied());
    let hint = near.first().map_or(String::new(), |it| format!("; did you mean {it}?"));
    Err(PeftError::config("method", format!("is `{name}`, known are {}{hint}", known.join(", "))))
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<ExitCode> {
    let mut run = args.run_config(registry)?;
    if args.print_config {
        // With all of the method's fields, so that they can be seen and changed.
        let peft_type = run.method.get("peft_type").cloned();
        run.method = registry.methods.parse(run.method)?.to_json()?;
        run.method.extend(peft_type.map(|it| ("peft_type".to_owned(), it)));
        part(run.to_yaml()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let start = match (args.resume, args.overwrite_output) {
        (true, _) => Start::Resume,
        (_, true) => Start::Overwrite,
        _ => Start::New,
    };
    let mut bar = Bar::stoppable();
    let result = actions::train(&run, registry, start, &mut bar);
    bar.finish();
    let report = result?;
    let outcome = &report.outcome;
    if outcome.interrupted {
        // Of several processes another one may have been told.
        let (signal, code) = bar.signal().unwrap_or(("a signal to another process", 143));
        let at = outcome.checkpoint.as_deref().map(|it| format!("{} is whole", it.display())).unwrap_or_default();
        complain(format_args!(
            "ended by {signal} after {} steps; {at}: go on with the same command and --resume",
            outcome.steps
        ));
        return Ok(ExitCode::from(code));
    }
    let memory = peak_memory().map_or(String::new(), |it| format!(", peak memory {:.2} GB", it as f64 / 1e9));
    if let Some(step) = outcome.restored {
        bar.line(format_args!("the adapter is that of step {step}, whose evaluation was best"));
    }
    let early = if outcome.stopped_early { " (stopped early)" } else { "" };
    let (steps, seconds, loss) = (outcome.steps, report.seconds, outcome.last_loss);
    bar.line(format_args!("{steps} steps{early} in {seconds:.1} s, last loss {loss:.4}{memory}"));
    bar.line(format_args!("adapter, log and loss curve are in {}", run.output.display()));
    bar.end()
}
