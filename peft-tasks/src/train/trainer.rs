//! The step loop: gradients with accumulation, clipping, an optimizer step, evaluation, checkpoints and exact resume.
//!
//! Every random choice of a step is a function of the run's seed and the step's number, so a run that was killed and
//! resumed from any checkpoint sees the same batches and the same dropout, and gives the same losses.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use burn::module::Module;
use peft_core::model::fingerprint::fingerprint;
use peft_core::{DEFAULT_ADAPTER, PeftError, PeftModel, Result, check_memory, is_eager, nn, ops, stable_hash};
use serde_json::{Map, Value, json};

use crate::parallel::group::{self, ProcessGroup};
use crate::tasks::interruption::stoppable;
use crate::tasks::task::{Evaluation, Task};
use crate::train::batches::Steps;
use crate::train::clip::clip;
use crate::train::config::TrainConfig;
use crate::train::folder::{RunFolder, Start};
use crate::train::identity;
use crate::train::learner::Learner;
use crate::train::optimizer;
use crate::train::pass::Pass;
use crate::train::pending::Pending;
use crate::train::progress::{Observer, Progress, Started, Step};
use crate::train::schedule::Schedule;
use crate::train::shared;
use crate::train::state::TrainerState;

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
    /// Whether the run ended before its time because its observer asked for it.
    pub interrupted: bool,
    /// The last checkpoint that was written.
    pub checkpoint: Option<PathBuf>,
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
    output: Output<'a>,
    start: Start,
    belongs_to: Map<String, Value>,
    observer: Option<&'a mut dyn Observer>,
    adapter: String,
}

/// Where the log and the checkpoints go.
enum Output<'a> {
    Nowhere,
    Path(PathBuf),
    Taken(&'a RunFolder),
}

impl<'a, M: Module, T: Task<M> + ?Sized> Trainer<'a, M, T> {
    /// A run over the adapter `default`, without evaluations, that writes nothing.
    pub fn new(peft: &'a mut PeftModel<M>, task: &'a T, config: TrainConfig) -> Self {
        Self {
            peft,
            task,
            config,
            eval: None,
            output: Output::Nowhere,
            start: Start::New,
            belongs_to: Map::new(),
            observer: None,
            adapter: DEFAULT_ADAPTER.to_owned(),
        }
    }

    /// Evaluates on this task, or on none: at the end, and every [`eval_steps`](TrainConfig::eval_steps).
    pub fn eval(self, eval: impl Into<Option<&'a T>>) -> Self {
        Self { eval: eval.into(), ..self }
    }

    /// The folder of the log and the checkpoints. An earlier run in it is an error, unless
    /// [`start`](Trainer::start) says otherwise. The trained adapter is not written:
    /// [`save_adapter`](PeftModel::save_adapter) does that.
    pub fn output(self, folder: impl Into<PathBuf>) -> Self {
        Self { output: Output::Path(folder.into()), ..self }
    }

    /// The same for a folder that was taken before, so that it was known to be free before the data was read.
    pub fn folder(self, folder: &'a RunFolder) -> Self {
        Self { output: Output::Taken(folder), ..self }
    }

    /// Whether to go on from the last checkpoint in the output folder, if there is one.
    pub fn resume(self, resume: bool) -> Self {
        self.start(resume.into())
    }

    /// What to do about an earlier run in the output folder.
    pub fn start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// What a checkpoint must agree with beside the settings, the adapter's configuration, the base and the lengths of the
    /// items, all of which are compared anyway: where the data comes from, and how it was read.
    pub fn belongs_to(self, fields: Map<String, Value>) -> Self {
        Self { belongs_to: fields, ..self }
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
        let group = group::current();
        let group: Option<&dyn ProcessGroup> = group.as_deref();
        // From here on it is the batch of all processes.
        self.config.batch_size *= group.map_or(1, ProcessGroup::world_size);
        if self.config.bf16 {
            ops::check_bf16(&device)?;
        }
        let opened;
        let folder = match std::mem::replace(&mut self.output, Output::Nowhere) {
            Output::Nowhere => None,
            Output::Taken(folder) => Some(folder),
            Output::Path(path) => {
                opened = RunFolder::open(path, self.start)?;
                Some(&opened)
            }
        };
        let mut steps = Steps::new(self.task.lengths(), &self.config)?;
        let total = steps.total();
        let schedule = Schedule::new(&self.config.schedule, total, self.config.learning_rate)?;
        self.check_adapter()?;
        self.task.notes(self.peft.model()).iter().for_each(|it| tracing::warn!("{it}"));
        // A gradient, and AdamW's two moments, beside each number that is there already.
        let trained = self.peft.adapters().get(&self.adapter).map_or(0, |it| it.plan.trainable());
        check_memory("the optimizer", 3 * trained as u64, &device)?;
        let identity = if folder.is_some() || group.is_some() { self.identity()? } else { Map::new() };
        if let Some(group) = group {
            shared::check_same(group, &identity, &device)?;
            shared::start_alike(group, self.peft, &self.adapter)?;
        }
        let checkpoint = folder.and_then(RunFolder::checkpoint);
        let (mut learner, mut state, changed) =
            Learner::new(self.peft, &self.adapter, &self.config, identity, checkpoint)?;
        state.total = total;
        state.owes_evaluation &= self.eval.is_some();
        let log = folder.filter(|_| group::is_first()).map(|it| it.begin(&state)).transpose()?;
        let model = nn::set_training(self.peft.model().clone(), true);
        let mut model = optimizer::set_frozen(model, &learner.frozen, true);
        let pass = Pass::new(&model, self.task, &self.config, &device, group);
        let (config, silent): (_, &mut dyn Observer) = (&self.config, &mut ());
        let (observer, unit) = (self.observer.unwrap_or(silent), self.task.unit());
        let mut progress = Progress::new(log, observer, &state, &steps, config, unit, is_eager(&device));
        let mut outcome = Outcome { steps: state.step, last_loss: state.last_loss, ..Outcome::default() };
        outcome.stopped_early = learner.has_enough(&state);
        progress.started(&Started {
            step: state.step,
            total,
            anew: folder.is_some_and(RunFolder::resumes) && checkpoint.is_none(),
            checkpoint: checkpoint.map(Path::to_owned),
            changed,
            finished: (state.step >= total || outcome.stopped_early) && !state.owes_evaluation,
        });
        let evaluate = |model: &M, learner: &mut Learner, state: &mut TrainerState, progress: &mut Progress<'_>| {
            let Some(eval) = self.eval else { return Ok(None) };
            progress.settle(state)?;
            let begun = Instant::now();
            state.owes_evaluation = true;
            let run = || eval.evaluate(&nn::eval(model), config.eval_batch_size, &device);
            let found = stoppable(progress.stops_evaluations(), run)?;
            // What ends it in one process ends it in all.
            let all_found = group.map_or(Ok(found.is_some()), |it| shared::all(it, found.is_some()))?;
            let Some(evaluation) = found.filter(|_| all_found) else { return Ok(None) };
            state.owes_evaluation = false;
            progress.evaluated(state, &evaluation, begun.elapsed().as_secs_f64())?;
            if !evaluation.loss.is_finite() {
                let reason = format!("the evaluation after step {} is {}", state.step, evaluation.loss);
                return Err(PeftError::NotFinite(reason + ": look at its data, and lower the learning rate"));
            }
            learner.evaluated(model, evaluation.loss, state);
            Ok(Some(evaluation))
        };

        // The last step of the run before was interrupted in its evaluation.
        if state.owes_evaluation {
            outcome.evaluation = evaluate(&model, &mut learner, &mut state, &mut progress)?;
            outcome.interrupted = state.owes_evaluation;
            outcome.stopped_early = learner.has_enough(&state);
            outcome.checkpoint = checkpoint.filter(|_| outcome.interrupted).map(Path::to_owned);
        }
        while state.step < total && !outcome.stopped_early && !outcome.interrupted {
            let begun = Instant::now();
            let drawn = format!("{} {}", config.seed, state.step);
            let _seeded = ops::seeded(
                &device,
                stable_hash(&match group.map_or(0, ProcessGroup::rank) {
                    0 => drawn,
                    // Dropout of other rows is other dropout.
                    rank => format!("{drawn} {rank}"),
                }),
            );
            if state.step + 1 < total {
                let next: Vec<_> = steps.batches(state.step + 1)?.iter().map(|it| pass.share(it)).collect();
                self.task.announce(&next.concat());
            }
            let (batches, lr) = (steps.batches(state.step)?, schedule.rate(state.step));
            let (loss, mut gradients, stop_asked) = pass.gradients(&model, batches, || progress.stop_asked())?;
            let squares = clip(&model, &mut gradients, config.max_grad_norm);
            let pending = Rc::new(Pending::new(state.step, loss, squares));
            progress.passed(&mut state, pending.clone(), learner.reads_gradients())?;
            model = learner.step(lr, model, gradients, state.step, self.peft)?;
            progress.stepped(&mut state, &Step { pending, lr, tokens: pass.tokens(batches), begun })?;

            let step = state.step;
            let due = |every: usize| every > 0 && step.is_multiple_of(every);
            if due(config.eval_steps) || state.step == total {
                outcome.evaluation = evaluate(&model, &mut learner, &mut state, &mut progress)?.or(outcome.evaluation);
            }
            outcome.stopped_early = learner.has_enough(&state);
            let ended = state.step == total || outcome.stopped_early;
            outcome.interrupted =
                state.owes_evaluation || !ended && (stop_asked || group.is_none() && progress.stop_asked());
            // As transformers, also at the end: a longer run goes on from there.
            let save = due(config.save_steps) || config.save_steps > 0 && ended || outcome.interrupted;
            if save || ended {
                progress.settle(&mut state)?;
            }
            (outcome.steps, outcome.last_loss) = (state.step, state.last_loss);
            if let Some(folder) = folder.filter(|_| save) {
                self.peft.set_model(optimizer::set_frozen(model.clone(), &learner.frozen, false));
                let snapshot = learner.snapshot(&state);
                let (peft, adapter) = (&*self.peft, &self.adapter);
                let saved = group::on_first(|| snapshot.save(peft, adapter, folder.path(), config.save_total_limit))?;
                progress.saved(&saved);
                outcome.checkpoint = Some(saved);
            }
            if outcome.interrupted {
                break;
            }
        }
        if let Some(best) = learner.best.take().filter(|_| state.best_step < state.step && !outcome.interrupted) {
            model = learner.put_back(best, model, self.peft)?;
            outcome.restored = Some(state.best_step);
        }
        self.peft.set_model(optimizer::set_frozen(nn::set_training(model, true), &learner.frozen, false));
        Ok(outcome)
    }

    fn check_adapter(&self) -> Result<()> {
        match self.peft.adapters().contains_key(&self.adapter) {
            true => Ok(()),
            false => Err(PeftError::AdapterName(format!("there is no adapter `{}` to train", self.adapter))),
        }
    }

    /// All that a run must have to give the numbers of this one.
    fn identity(&self) -> Result<Map<String, Value>> {
        let lengths = self.task.lengths();
        let mut identity = self.belongs_to.clone();
        let training = serde_json::to_value(&self.config).map_err(|error| PeftError::Invalid(error.to_string()))?;
        let items = format!("{} of lengths {:016x}", lengths.len(), stable_hash(&format!("{lengths:?}")));
        identity.insert("training".into(), training);
        identity.insert("adapter".into(), identity::of_adapter(self.peft.adapter_config(&self.adapter)?));
        identity.insert("base".into(), json!(fingerprint(self.peft.model())));
        identity.insert("items".into(), json!(items));
        Ok(identity)
    }
}
