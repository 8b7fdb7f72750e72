//! The step loop: gradients with accumulation, clipping, an optimizer step, evaluation, checkpoints and exact resume.
//!
//! Every random choice of a step is a function of the run's seed and the step's number, so a run that was killed and
//! resumed from any checkpoint sees the same batches and the same dropout, and gives the same losses.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use burn::module::{Module, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use peft_core::forward::{self, gradient_checkpointing};
use peft_core::model::state as tensors;
use peft_core::{AfterStep, DEFAULT_ADAPTER, PeftError, PeftModel, Result, nn, ops, stable_hash};

use crate::tasks::task::{Evaluation, Task, scalar};
use crate::train::batches::Steps;
use crate::train::checkpoint::{BestAdapter, Checkpoint, Snapshot, TrainerState};
use crate::train::clip::clip_grad_norm;
use crate::train::config::TrainConfig;
use crate::train::log::{LOG_FILE, RunLog};
use crate::train::optimizer;
use crate::train::progress::{Observer, Progress, Step};
use crate::train::schedule::Schedule;

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

/// Trains an adapter of a model on a task.
///
/// ```no_run
/// # use burn::module::Module;
/// # use peft_core::{PeftModel, Result};
/// # use peft_tasks::tasks::task::Task;
/// use peft_tasks::train::{TrainConfig, Trainer};
///
/// # fn example<M: Module, T: Task<M>>(mut model: PeftModel<M>, task: T, held_out: T) -> Result<()> {
/// let config = TrainConfig { learning_rate: 1e-3, max_steps: Some(200), ..TrainConfig::default() };
/// let outcome = Trainer::new(&mut model, &task, config).eval(&held_out).output("poems").run()?;
/// println!("loss {:.3} after {} steps", outcome.last_loss, outcome.steps);
/// # Ok(())
/// # }
/// ```
#[must_use = "`run` starts it"]
#[allow(missing_debug_implementations)] // an observer may be anything
pub struct Trainer<'a, M, T: ?Sized> {
    peft: &'a mut PeftModel<M>,
    task: &'a T,
    config: TrainConfig,
    eval: Option<&'a T>,
    output: Option<PathBuf>,
    resume: bool,
    observer: Option<&'a mut dyn Observer>,
    adapter: String,
}

impl<'a, M: Module, T: Task<M> + ?Sized> Trainer<'a, M, T> {
    /// A run over the adapter `default`, without evaluations, that writes nothing.
    pub fn new(peft: &'a mut PeftModel<M>, task: &'a T, config: TrainConfig) -> Self {
        Self {
            peft,
            task,
            config,
            eval: None,
            output: None,
            resume: false,
            observer: None,
            adapter: DEFAULT_ADAPTER.to_owned(),
        }
    }

    /// Evaluates on this task, or on none: at the end, and every [`eval_steps`](TrainConfig::eval_steps).
    pub fn eval(self, eval: impl Into<Option<&'a T>>) -> Self {
        Self { eval: eval.into(), ..self }
    }

    /// The folder of the log and the checkpoints. The trained adapter is not written:
    /// [`save_adapter`](PeftModel::save_adapter) does that.
    pub fn output(self, folder: impl Into<PathBuf>) -> Self {
        Self { output: Some(folder.into()), ..self }
    }

    /// Whether to go on from the last checkpoint in the output folder, if there is one.
    pub fn resume(self, resume: bool) -> Self {
        Self { resume, ..self }
    }

    /// Who is told of every step and evaluation.
    pub fn observer(self, observer: &'a mut dyn Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// The adapter to train, if it is not `default`.
    pub fn adapter(self, name: impl Into<String>) -> Self {
        Self { adapter: name.into(), ..self }
    }

    /// Trains to the end, and leaves the trained adapter in the model.
    ///
    /// # Errors
    /// If there is no such adapter, a loss or gradient is not finite, the settings make no sense, a checkpoint does not
    /// fit or a file cannot be written.
    pub fn run(mut self) -> Result<Outcome> {
        let device = self.peft.device().without_autodiff();
        self.config.check()?;
        if self.config.bf16 {
            ops::check_bf16(&device)?;
        }
        let mut steps = Steps::new(self.task.lengths(), &self.config)?;
        let total = steps.total();
        let schedule = Schedule::new(&self.config.schedule, total, self.config.learning_rate)?;
        let (mut learner, mut state) = Learner::new(&mut self)?;
        let log = self.log(state.step)?;
        let model = nn::set_training(self.peft.model().clone(), true);
        let mut model = optimizer::set_frozen(model, &learner.frozen, true);
        let pass = Pass::new(&model, self.task, &self.config, &device);
        let (config, silent): (_, &mut dyn Observer) = (&self.config, &mut ());
        let mut progress = Progress::new(log, self.observer.unwrap_or(silent), &state, &steps, config);
        let mut outcome = Outcome { steps: state.step, ..Outcome::default() };

        while state.step < total {
            device.seed(stable_hash(&format!("{} {}", config.seed, state.step)));
            let (batches, lr) = (steps.batches(state.step)?, schedule.rate(state.step));
            let (loss, mut gradients) = pass.gradients(&model, batches)?;
            check_finite("loss", loss, &state, config.save_steps > 0)?;
            let grad_norm = clip_grad_norm(&model, &mut gradients, config.max_grad_norm);
            check_finite("gradient", grad_norm, &state, false)?;
            model = learner.step(lr, model, gradients, state.step, self.peft)?;
            progress.stepped(&mut state, &Step { loss, lr, grad_norm, tokens: pass.tokens(batches) })?;
            (outcome.steps, outcome.last_loss) = (state.step, loss);

            let due = |every: usize| every > 0 && state.step.is_multiple_of(every);
            let (evaluate, save) = (due(config.eval_steps) || state.step == total, due(config.save_steps));
            if let Some(eval) = self.eval.filter(|_| evaluate) {
                let begun = Instant::now();
                let evaluation = eval.evaluate(&nn::eval(&model), config.eval_batch_size, &device)?;
                progress.evaluated(&state, &evaluation, begun.elapsed().as_secs_f64())?;
                learner.evaluated(&model, evaluation.loss, &mut state);
                outcome.evaluation = Some(evaluation);
                outcome.stopped_early = learner.patience > 0 && state.evaluations_without_gain >= learner.patience;
            }
            if let Some(folder) = self.output.as_deref().filter(|_| save) {
                self.peft.set_model(optimizer::set_frozen(model.clone(), &learner.frozen, false));
                learner.snapshot(&state).save(self.peft, &self.adapter, folder, config.save_total_limit)?;
            }
            if outcome.stopped_early {
                break;
            }
        }
        if let Some(best) = learner.best.take().filter(|_| state.best_step < state.step) {
            model = learner.put_back(best, model, self.peft)?;
            outcome.restored = Some(state.best_step);
        }
        self.peft.set_model(optimizer::set_frozen(nn::set_training(model, true), &learner.frozen, false));
        Ok(outcome)
    }

    /// The log, without what a resumed run does again after `step` steps.
    fn log(&self, step: usize) -> Result<Option<RunLog>> {
        let path = self.output.as_ref().map(|folder| folder.join(LOG_FILE));
        match path {
            Some(path) if step > 0 || self.resume => RunLog::resume(path, step).map(Some),
            Some(path) => RunLog::create(path).map(Some),
            None => Ok(None),
        }
    }
}

fn check_finite(what: &str, value: f64, state: &TrainerState, saved: bool) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    let saved = if saved { "; the last checkpoint is whole" } else { "" };
    let reason = format!("the {what} of step {} is {value}: lower the learning rate{saved}", state.step + 1);
    Err(PeftError::NotFinite(reason))
}

/// How the gradients of a step are computed.
struct Pass<'a, T: ?Sized> {
    task: &'a T,
    config: &'a TrainConfig,
    device: &'a Device,
    virtual_tokens: usize,
    /// Whether adapters add a term of their own to the loss.
    adds_to_loss: bool,
}

impl<'a, T: ?Sized> Pass<'a, T> {
    fn new<M: Module>(model: &M, task: &'a T, config: &'a TrainConfig, device: &'a Device) -> Self {
        // Neither changes during a run, and to find out takes a walk through the model.
        let (virtual_tokens, adds_to_loss) = (forward::virtual_tokens(model), tensors::loss(model).is_some());
        Self { task, config, device, virtual_tokens, adds_to_loss }
    }

    fn tokens<M: Module>(&self, batches: &[Vec<usize>]) -> u64
    where
        T: Task<M>,
    {
        batches.iter().map(|items| self.task.tokens(items) as u64).sum()
    }

    /// The mean loss over the targets of all batches, and its gradients.
    fn gradients<M: Module>(&self, model: &M, batches: &[Vec<usize>]) -> Result<(f64, GradientsParams)>
    where
        T: Task<M>,
    {
        let targets: usize = batches.iter().map(|items| self.task.targets(self.virtual_tokens, items)).sum();
        let mut accumulator = GradientsAccumulator::new();
        let mut loss = 0.0;
        for items in batches {
            let forward = || match self.config.gradient_checkpointing {
                true => gradient_checkpointing::scope(model, |model| self.task.loss_sum(model, items, self.device))?,
                false => self.task.loss_sum(model, items, self.device),
            };
            let sum = if self.config.bf16 { ops::within_bf16(self.device, forward)?? } else { forward()? };
            let mut mean = sum.div_scalar(targets.max(1) as f64);
            if let Some(own) = self.adds_to_loss.then(|| tensors::loss(model)).flatten() {
                mean = mean + own.div_scalar(batches.len() as f64);
            }
            loss += scalar(&mean);
            let gradients = GradientsParams::from_grads(mean.backward(), model);
            accumulator.accumulate(model, gradients);
        }
        Ok((loss, accumulator.grads()))
    }
}

/// What changes the adapter: the optimizer, and what its method does after every step.
struct Learner {
    adapter: String,
    optimizer: ModuleOptimizer,
    /// Parameters that the optimizer wants frozen.
    frozen: HashSet<ParamId>,
    hook: Option<Box<dyn AfterStep>>,
    best: Option<BestAdapter>,
    /// Evaluations without gain that end the run; 0 for no end, and no best adapter.
    patience: usize,
}

impl Learner {
    /// At the start of a run, or at the last checkpoint of one that is resumed.
    fn new<M: Module, T: ?Sized>(trainer: &mut Trainer<'_, M, T>) -> Result<(Self, TrainerState)> {
        let (peft, name, config) = (&mut *trainer.peft, trainer.adapter.as_str(), &trainer.config);
        let adapter = peft.adapters().get(name);
        let adapter =
            adapter.ok_or_else(|| PeftError::AdapterName(format!("there is no adapter `{name}` to train")))?;
        let mut hook = adapter.config.after_step();
        let (mut state, mut best) = (TrainerState::new(config), None);
        let folder = trainer.output.as_deref().filter(|_| trainer.resume);
        let checkpoint = folder.map(Checkpoint::last).transpose()?.flatten();
        if let Some(checkpoint) = &checkpoint {
            state = checkpoint.restore(peft, name, config, hook.as_mut())?;
            best = checkpoint.best(&state)?;
        }
        let (mut optimizer, frozen) = optimizer::optimizer(config, peft, name)?;
        if let Some(checkpoint) = &checkpoint {
            optimizer = checkpoint.optimizer(optimizer)?;
        }
        let patience = config.early_stopping_patience;
        Ok((Self { adapter: name.to_owned(), optimizer, frozen, hook, best, patience }, state))
    }

    /// One step, number `step` counted from 0.
    fn step<M: Module>(
        &mut self,
        lr: f64,
        model: M,
        gradients: GradientsParams,
        step: usize,
        peft: &mut PeftModel<M>,
    ) -> Result<M> {
        let name = &self.adapter;
        let seen = self.hook.as_ref().map(|_| tensors::step_gradients(&model, name, &gradients));
        let model = self.optimizer.step(lr, model, gradients);
        let (Some(hook), Some(seen)) = (&mut self.hook, seen) else { return Ok(model) };
        let changed = hook.after_step(step, &tensors::tensors(&model, name), &seen)?;
        peft.set_config(name, hook.config())?;
        Ok(tensors::assign(model, name, changed.into_iter().map(|it| (it.key, it.data)).collect()))
    }

    /// Remembers the adapter if none was better before.
    fn evaluated<M: Module>(&mut self, model: &M, loss: f64, state: &mut TrainerState) {
        if state.best.is_none_or(|best| loss < best) {
            (state.best, state.best_step, state.evaluations_without_gain) = (Some(loss), state.step, 0);
            self.best = (self.patience > 0).then(|| BestAdapter::of(model, &self.adapter, self.hook.as_deref()));
        } else {
            state.evaluations_without_gain += 1;
        }
    }

    /// The model with its adapter as it was when its evaluation was best.
    fn put_back<M: Module>(&mut self, best: BestAdapter, model: M, peft: &mut PeftModel<M>) -> Result<M> {
        let model = best.put_back(model, &self.adapter, self.hook.as_mut())?;
        if let Some(hook) = &self.hook {
            peft.set_config(&self.adapter, hook.config())?;
        }
        Ok(model)
    }

    fn snapshot<'a>(&'a self, state: &'a TrainerState) -> Snapshot<'a> {
        Snapshot { state, optimizer: &self.optimizer, hook: self.hook.as_deref(), best: self.best.as_ref() }
    }
}
