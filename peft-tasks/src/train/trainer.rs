//! The step loop: optimizer steps with accumulation, clipping, a schedule, evaluation, checkpoints and exact resume.
//!
//! Every random choice of a step is a function of the run's seed and the step's number, so a run that was killed and
//! resumed from any checkpoint sees the same batches and the same dropout, and gives the same losses.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, Device, Tensor};
use peft_core::files::checkpoint::{FloatType, Stored, TensorFile, write_atomically, write_tensors};
use peft_core::forward::{self, gradient_checkpointing};
use peft_core::{AdapterFolder, AfterStep, PeftError, PeftModel, Result, nn, ops, stable_hash};
use serde::{Deserialize, Serialize};

use crate::tasks::task::{Evaluation, Task, scalar};
use crate::train::batches::{BatchOptions, EpochPlan};
use crate::train::log::{EvalRecord, Record, RunLog, TrainRecord};
use crate::train::optimizer;
use crate::train::schedule::{Schedule, ScheduleConfig};

/// Settings of a run. Names are those of transformers' training arguments where there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Highest learning rate. LoRA wants about ten times what full fine-tuning does.
    pub learning_rate: f64,
    /// Its course over the run.
    #[serde(flatten)]
    pub schedule: ScheduleConfig,
    /// Rows in a forward pass.
    pub batch_size: usize,
    /// Forward passes in a step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data, if `max_steps` is not given.
    pub num_train_epochs: f64,
    /// Optimizer steps.
    pub max_steps: Option<usize>,
    /// Largest norm of all gradients together; 0 does not clip.
    pub max_grad_norm: f64,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f64,
    /// AdamW's ε.
    pub adam_epsilon: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// LoRA+: how many times faster than `A` the factor `B` and all vectors learn. Its weight decay is
    /// `loraplus_weight_decay`, not `weight_decay`.
    pub loraplus_lr_ratio: Option<f64>,
    /// LoRA+: weight decay of all but biases and `LayerNorm`s.
    pub loraplus_weight_decay: f64,
    /// LoRA+: highest learning rate of factors on embeddings.
    pub loraplus_lr_embedding: f64,
    /// LoRA-FA: freeze `A` and project the gradient of `B`. The reference's ε is 1e-6 there.
    pub lora_fa: bool,
    /// Multiply with weights in bf16, where the device can: [`ops::within_bf16`] says what that is. Evaluations stay in
    /// single precision.
    pub bf16: bool,
    /// Layers keep only their inputs and are computed again in the backward pass: less memory, more time, the same numbers
    /// (see [`gradient_checkpointing`]).
    pub gradient_checkpointing: bool,
    /// Rows of like length together.
    pub group_by_length: bool,
    /// Steps between lines of the log.
    pub logging_steps: usize,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub eval_steps: usize,
    /// Rows in a forward pass of an evaluation.
    pub eval_batch_size: usize,
    /// Steps between checkpoints; 0 writes none.
    pub save_steps: usize,
    /// Checkpoints that are kept; 0 keeps all.
    pub save_total_limit: usize,
    /// Evaluations without improvement after which the run ends; 0 never ends it early. Otherwise the adapter is at the
    /// end the one whose evaluation was best, as with the reference's `load_best_model_at_end`, which it asks for then.
    pub early_stopping_patience: usize,
    /// What order, dropout and starting values depend on.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            schedule: ScheduleConfig::default(),
            batch_size: 8,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: None,
            max_grad_norm: 1.0,
            // torch's defaults of AdamW
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.01,
            loraplus_lr_ratio: None,
            loraplus_weight_decay: 0.0,
            loraplus_lr_embedding: 1e-6,
            lora_fa: false,
            bf16: false,
            gradient_checkpointing: false,
            group_by_length: false,
            logging_steps: 10,
            eval_steps: 0,
            eval_batch_size: 8,
            save_steps: 0,
            save_total_limit: 2,
            early_stopping_patience: 0,
            seed: 42,
        }
    }
}

impl TrainConfig {
    fn check(&self) -> Result<()> {
        let positive = |field: &str, value: f64| {
            let reason = format!("is {value}, expected a number above 0");
            if value > 0.0 && value.is_finite() { Ok(()) } else { Err(PeftError::config(field, reason)) }
        };
        positive("learning_rate", self.learning_rate)?;
        positive("batch_size", self.batch_size as f64)?;
        positive("gradient_accumulation_steps", self.gradient_accumulation_steps as f64)?;
        positive("adam_epsilon", self.adam_epsilon)?;
        if let Some(ratio) = self.loraplus_lr_ratio {
            positive("loraplus_lr_ratio", ratio)?;
            positive("loraplus_lr_embedding", self.loraplus_lr_embedding)?;
            if self.lora_fa {
                return Err(PeftError::config(
                    "lora_fa",
                    "freezes what `loraplus_lr_ratio` slows down: take one of them",
                ));
            }
        }
        match self.max_steps {
            Some(steps) => positive("max_steps", steps as f64),
            None => positive("num_train_epochs", self.num_train_epochs),
        }
    }
}

/// Sees a run as it goes: a progress bar, a log window.
pub trait Observer {
    /// After every step, `record.step` of `total`.
    fn step(&mut self, record: &TrainRecord, total: usize) {
        let _ = (record, total);
    }

    /// After every evaluation.
    fn evaluated(&mut self, record: &EvalRecord) {
        let _ = record;
    }
}

impl Observer for () {}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Steps done.
    pub steps: usize,
    /// Mean loss of the last step.
    pub last_loss: f64,
    /// The last evaluation, if there was one.
    pub evaluation: Option<Evaluation>,
    /// Whether the run ended because evaluations no longer improved.
    pub stopped_early: bool,
    /// The step from which the adapter was restored, if an earlier one than the last was best.
    pub restored: Option<usize>,
}

/// What is kept beside the adapter in a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    step: usize,
    tokens: u64,
    seconds: f64,
    best: Option<f64>,
    #[serde(default)]
    best_step: usize,
    evaluations_without_gain: usize,
    config: TrainConfig,
}

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.bpk";
const HOOK_FILE: &str = "after_step.safetensors";
const BEST_FILE: &str = "best.safetensors";
const LOG_FILE: &str = "train_log.jsonl";

/// Trains the adapter `name` of a model.
///
/// `folder` receives the log and the checkpoints; without one nothing is written. With `resume` the run goes on from
/// the last checkpoint in the folder, if there is one.
///
/// # Errors
/// If a loss is not finite, the settings make no sense, a checkpoint does not fit or the disk says no.
#[allow(clippy::too_many_arguments)]
pub fn train<M: Module, T: Task<M>>(
    peft: &mut PeftModel<M>,
    name: &str,
    task: &T,
    eval: Option<&T>,
    config: &TrainConfig,
    folder: Option<&Path>,
    resume: bool,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    config.check()?;
    if config.bf16 {
        ops::check_bf16(device)?;
    }
    let lengths = task.lengths();
    let options = BatchOptions {
        batch_size: config.batch_size,
        shuffle: true,
        group_by_length: config.group_by_length,
        drop_last: false,
        seed: config.seed,
    };
    let batches = options.batches(lengths.len())?;
    let steps_per_epoch = batches.div_ceil(config.gradient_accumulation_steps);
    let total = config.max_steps.unwrap_or((config.num_train_epochs * steps_per_epoch as f64).ceil() as usize).max(1);
    let schedule = Schedule::new(&config.schedule, total, config.learning_rate)?;

    let mut state = State {
        step: 0,
        tokens: 0,
        seconds: 0.0,
        best: None,
        best_step: 0,
        evaluations_without_gain: 0,
        config: config.clone(),
    };
    let mut best: Option<Best> = None;
    let mut hook = peft.adapters().get(name).and_then(|it| it.config.after_step());
    let checkpoint = folder.filter(|_| resume).map(last_checkpoint).transpose()?.flatten();
    if let Some(checkpoint) = &checkpoint {
        state = restore(peft, name, checkpoint, config, hook.as_mut())?;
        best = Best::read(checkpoint, &state)?;
    }
    let (mut optimizer, frozen) = optimizer::optimizer(config, peft, name)?;
    if let Some(checkpoint) = &checkpoint {
        optimizer = restore_optimizer(checkpoint, optimizer)?;
    }
    let mut log = match folder {
        Some(folder) if state.step > 0 || resume => Some(RunLog::resume(folder.join(LOG_FILE), state.step)?),
        Some(folder) => Some(RunLog::create(folder.join(LOG_FILE))?),
        None => None,
    };

    let model = nn::set_training(peft.model().clone(), true);
    let mut model = optimizer::set_frozen(model, &frozen, true);
    // Neither changes during a run, and to find out takes a walk through the model.
    let virtual_tokens = forward::virtual_tokens(&model);
    let adds_to_loss = peft_core::model::state::loss(&model).is_some();
    let started = Instant::now();
    let earlier = state.seconds;
    let mut since_log = Since::default();
    let mut plan: Option<EpochPlan> = None;
    let mut outcome = Outcome { steps: state.step, ..Outcome::default() };

    while state.step < total {
        let epoch = (state.step / steps_per_epoch) as u64;
        if plan.as_ref().is_none_or(|it| it.epoch != epoch) {
            plan = Some(EpochPlan::new(&lengths, &options, epoch)?);
        }
        let first = (state.step % steps_per_epoch) * config.gradient_accumulation_steps;
        let all: &[Vec<usize>] = plan.as_ref().map_or(&[], |it| &it.batches);
        let micro = &all[first..all.len().min(first + config.gradient_accumulation_steps)];
        device.seed(stable_hash(&format!("{} {}", config.seed, state.step)));

        let lr = schedule.rate(state.step);
        let targets: usize = micro.iter().map(|items| task.targets(virtual_tokens, items)).sum();
        let mut accumulator = GradientsAccumulator::new();
        let mut loss = 0.0;
        for items in micro {
            let forward = || match config.gradient_checkpointing {
                true => gradient_checkpointing::scope(&model, |model| task.loss_sum(model, items, device))?,
                false => task.loss_sum(&model, items, device),
            };
            let sum = if config.bf16 { ops::within_bf16(device, forward)?? } else { forward()? };
            let mut mean = sum.div_scalar(targets.max(1) as f64);
            if let Some(own) = adds_to_loss.then(|| peft_core::model::state::loss(&model)).flatten() {
                mean = mean + own.div_scalar(micro.len() as f64);
            }
            loss += scalar(&mean);
            let gradients = GradientsParams::from_grads(mean.backward(), &model);
            accumulator.accumulate(&model, gradients);
        }
        if !loss.is_finite() {
            let saved = if config.save_steps > 0 { "; the last checkpoint is whole" } else { "" };
            let reason = format!("the loss of step {} is {loss}: lower the learning rate{saved}", state.step + 1);
            return Err(PeftError::NotFinite(reason));
        }
        let mut gradients = accumulator.grads();
        let norm = clip(&model, &mut gradients, config.max_grad_norm);
        if !norm.is_finite() {
            let reason = format!("the gradient of step {} is {norm}: lower the learning rate", state.step + 1);
            return Err(PeftError::NotFinite(reason));
        }
        let seen = hook.as_ref().map(|_| peft_core::model::state::step_gradients(&model, name, &gradients));
        model = optimizer.step(lr, model, gradients);
        if let (Some(hook), Some(seen)) = (&mut hook, seen) {
            let changed = hook.after_step(state.step, &peft_core::model::state::tensors(&model, name), &seen)?;
            let changed = changed.into_iter().map(|it| (it.key, it.data)).collect();
            model = peft_core::model::state::assign(model, name, changed);
            peft.set_config(name, hook.config())?;
        }

        state.step += 1;
        let tokens: u64 = micro.iter().map(|items| task.tokens(items) as u64).sum();
        state.tokens += tokens;
        state.seconds = earlier + started.elapsed().as_secs_f64();
        since_log.add(loss, tokens);
        let mut record = TrainRecord {
            step: state.step,
            epoch: state.step as f64 / steps_per_epoch as f64,
            loss,
            lr,
            grad_norm: Some(norm),
            tokens: state.tokens,
            tokens_per_second: since_log.tokens_per_second(),
            seconds: state.seconds,
        };
        observer.step(&record, total);
        if state.step.is_multiple_of(config.logging_steps.max(1)) || state.step == total {
            record.loss = since_log.mean_loss();
            if let Some(log) = &mut log {
                log.append(&Record::Train(record.clone()))?;
            }
            since_log = Since::default();
        }
        outcome.steps = state.step;
        outcome.last_loss = loss;

        let due = |every: usize| every > 0 && state.step.is_multiple_of(every);
        if let Some(eval) = eval.filter(|_| due(config.eval_steps) || state.step == total) {
            let begun = Instant::now();
            let evaluation = eval.evaluate(&model.valid(), config.eval_batch_size, device)?;
            let record = EvalRecord {
                step: state.step,
                epoch: record.epoch,
                loss: evaluation.loss,
                seconds: begun.elapsed().as_secs_f64(),
                metrics: evaluation.metrics.clone(),
            };
            observer.evaluated(&record);
            if let Some(log) = &mut log {
                log.append(&Record::Eval(record))?;
            }
            let improved = state.best.is_none_or(|best| evaluation.loss < best);
            if improved {
                state.best = Some(evaluation.loss);
                state.best_step = state.step;
                best = (config.early_stopping_patience > 0).then(|| Best::of(&model, name, hook.as_deref()));
                state.evaluations_without_gain = 0;
            } else {
                state.evaluations_without_gain += 1;
            }
            outcome.evaluation = Some(evaluation);
            let patience = config.early_stopping_patience;
            outcome.stopped_early = patience > 0 && state.evaluations_without_gain >= patience;
        }
        if let Some(folder) = folder.filter(|_| due(config.save_steps)) {
            peft.set_model(optimizer::set_frozen(model.clone(), &frozen, false));
            save_checkpoint(peft, name, folder, &state, &optimizer, hook.as_deref(), best.as_ref())?;
            forget_old(folder, config.save_total_limit)?;
        }
        if outcome.stopped_early {
            break;
        }
    }
    if let Some(best) = best.filter(|_| state.best_step < state.step) {
        let values = best.tensors.into_iter().map(|it| (it.key, it.data)).collect();
        model = peft_core::model::state::assign(model, name, values);
        if let Some(hook) = &mut hook {
            hook.restore(best.hook)?;
            peft.set_config(name, hook.config())?;
        }
        outcome.restored = Some(state.best_step);
    }
    peft.set_model(optimizer::set_frozen(nn::set_training(model, true), &frozen, false));
    Ok(outcome)
}

/// The adapter as it was when its evaluation was best.
struct Best {
    tensors: Vec<Stored>,
    /// What changed it after every step, then.
    hook: Vec<Stored>,
}

impl Best {
    fn of<M: Module>(model: &M, name: &str, hook: Option<&dyn AfterStep>) -> Self {
        let hook = hook.map_or(Vec::new(), AfterStep::state);
        Self { tensors: peft_core::model::state::tensors(model, name), hook }
    }

    /// The one that a checkpoint holds: a resumed run may never be as good again.
    fn read(checkpoint: &Path, state: &State) -> Result<Option<Self>> {
        let path = checkpoint.join(BEST_FILE);
        if state.best.is_none() || !path.is_file() {
            return Ok(None);
        }
        let (tensors, hook) = adapter_and_hook(&path)?;
        Ok(Some(Self { tensors, hook }))
    }
}

/// The tensors of an adapter, and those of what changes it after every step, from one file.
fn adapter_and_hook(path: &Path) -> Result<(Vec<Stored>, Vec<Stored>)> {
    let file = TensorFile::open(path)?;
    let read = |key: String| Ok(Stored { data: file.floats(&key)?, key });
    let stored = file.keys().into_iter().map(read).collect::<Result<Vec<_>>>()?;
    Ok(stored.into_iter().partition(|it| it.key.starts_with("base_model.")))
}

#[derive(Debug)]
struct Since {
    started: Instant,
    loss: f64,
    steps: usize,
    tokens: u64,
}

impl Default for Since {
    fn default() -> Self {
        Self { started: Instant::now(), loss: 0.0, steps: 0, tokens: 0 }
    }
}

impl Since {
    fn add(&mut self, loss: f64, tokens: u64) {
        self.loss += loss;
        self.steps += 1;
        self.tokens += tokens;
    }

    fn mean_loss(&self) -> f64 {
        self.loss / self.steps.max(1) as f64
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// Scales all gradients down together if their common norm is above `max`, as torch's `clip_grad_norm_` does, and
/// returns the norm before.
fn clip<M: Module>(model: &M, gradients: &mut GradientsParams, max: f64) -> f64 {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sum: f64,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.sum += scalar(&(gradient.clone() * gradient).sum());
            }
        }
    }
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient.mul_scalar(self.factor));
            }
        }
    }
    let mut squares = Squares { gradients, sum: 0.0 };
    model.visit(&mut squares);
    let norm = squares.sum.sqrt();
    // torch adds 1e-6 to the norm.
    let factor = max / (norm + 1e-6);
    if max > 0.0 && factor < 1.0 {
        model.visit(&mut Scale { gradients, factor });
    }
    norm
}

fn save_checkpoint<M: Module>(
    peft: &PeftModel<M>,
    name: &str,
    folder: &Path,
    state: &State,
    optimizer: &ModuleOptimizer,
    hook: Option<&dyn AfterStep>,
    best: Option<&Best>,
) -> Result<()> {
    // Written under another name and moved when whole: a checkpoint that has its name can be resumed from.
    let partial = folder.join(format!(".checkpoint-{}.partial", state.step));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(PeftError::io("remove", &partial))?;
    }
    peft.save_adapter(&partial, name)?;
    if let Some(hook) = hook {
        // The adapter folder may hold less than the run goes on from.
        let mut tensors = peft.adapter_tensors(name)?;
        tensors.extend(hook.state());
        write_tensors(partial.join(HOOK_FILE), tensors, FloatType::F32)?;
    }
    if let Some(best) = best {
        let tensors = best.tensors.iter().chain(&best.hook).cloned().collect();
        write_tensors(partial.join(BEST_FILE), tensors, FloatType::F32)?;
    }
    let bytes = optimizer.into_bytes();
    let bytes = bytes.map_err(|error| PeftError::Invalid(format!("the optimizer's state cannot be saved: {error}")))?;
    write_atomically(partial.join(OPTIMIZER_FILE), &bytes)?;
    let json = serde_json::to_string_pretty(state).map_err(|error| PeftError::Invalid(error.to_string()))?;
    write_atomically(partial.join(STATE_FILE), json.as_bytes())?;
    let whole = folder.join(format!("checkpoint-{}", state.step));
    if whole.exists() {
        fs::remove_dir_all(&whole).map_err(PeftError::io("remove", &whole))?;
    }
    fs::rename(&partial, &whole).map_err(PeftError::io("write", &whole))
}

/// `checkpoint-N` folders, oldest first.
fn checkpoints(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder).map_err(PeftError::io("read", folder))? {
            let path = entry.map_err(PeftError::io("read", folder))?.path();
            let number = path.file_name().and_then(|it| it.to_str()?.strip_prefix("checkpoint-")?.parse().ok());
            found.extend(number.map(|number| (number, path)));
        }
    }
    found.sort();
    Ok(found)
}

fn last_checkpoint(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(checkpoints(folder)?.pop().map(|(_, path)| path))
}

fn forget_old(folder: &Path, limit: usize) -> Result<()> {
    let found = checkpoints(folder)?;
    let excess = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
    for (_, path) in found.into_iter().take(excess) {
        fs::remove_dir_all(&path).map_err(PeftError::io("remove", &path))?;
    }
    Ok(())
}

fn restore<M: Module>(
    peft: &mut PeftModel<M>,
    name: &str,
    checkpoint: &Path,
    config: &TrainConfig,
    hook: Option<&mut Box<dyn AfterStep>>,
) -> Result<State> {
    let path = checkpoint.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(PeftError::io("read", &path))?;
    let state: State = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(&path, error))?;
    // What changes none of the numbers may differ.
    let comparable = |it: &TrainConfig| TrainConfig {
        gradient_checkpointing: false,
        logging_steps: 0,
        save_steps: 0,
        save_total_limit: 0,
        ..it.clone()
    };
    // Through JSON as the saved one went: its reader may miss the last bit of a number.
    let text = serde_json::to_string(config).map_err(|error| PeftError::Invalid(error.to_string()))?;
    let config: &TrainConfig = &serde_json::from_str(&text).map_err(|error| PeftError::Invalid(error.to_string()))?;
    if comparable(&state.config) != comparable(config) {
        let reason = "it was written with other settings; resume with the same ones, or start in a new folder";
        return Err(PeftError::bad_file(checkpoint, reason));
    }
    match hook {
        Some(hook) => {
            let (tensors, own) = adapter_and_hook(&checkpoint.join(HOOK_FILE))?;
            peft.assign_adapter(name, tensors)?;
            hook.restore(own)?;
            peft.set_config(name, hook.config())?;
        }
        None => peft.restore_adapter(name, &AdapterFolder::open(checkpoint)?)?,
    }
    Ok(state)
}

fn restore_optimizer(checkpoint: &Path, optimizer: ModuleOptimizer) -> Result<ModuleOptimizer> {
    let path = checkpoint.join(OPTIMIZER_FILE);
    let bytes = fs::read(&path).map_err(PeftError::io("read", &path))?;
    optimizer.from_bytes(Bytes::from_bytes_vec(bytes)).map_err(|error| PeftError::bad_file(&path, format!("{error:?}")))
}
