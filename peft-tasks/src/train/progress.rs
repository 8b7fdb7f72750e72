//! What a run tells while it goes: lines of its log, and calls of an observer.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use peft_core::{PeftError, Result};

use crate::tasks::interruption::StopAsked;
use crate::tasks::task::Evaluation;
use crate::train::batches::Steps;
use crate::train::config::TrainConfig;
use crate::train::log::{EvalRecord, Record, RunLog, TrainRecord};
use crate::train::pending::{Found, Pending, read};
use crate::train::state::{SinceLine, TrainerState};

/// Where a run starts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Started {
    /// Steps that are done already.
    pub step: usize,
    /// Steps of the whole run.
    pub total: usize,
    /// The checkpoint that it goes on from.
    pub checkpoint: Option<PathBuf>,
    /// Whether it was to be resumed, and there was nothing to go on from.
    pub anew: bool,
    /// What it has otherwise than the run before, of what may change: a text for each.
    pub changed: Vec<String>,
    /// Whether the checkpoint is the end of the run: nothing is left to be trained.
    pub finished: bool,
}

/// Sees a run as it goes: a progress bar, a log window.
pub trait Observer {
    /// Before the first step.
    fn started(&mut self, start: &Started) {
        let _ = start;
    }

    /// After every step, `done.step` of `total`.
    fn step(&mut self, done: &StepDone<'_>, total: usize) {
        let _ = (done, total);
    }

    /// With every line of the log, `logging_steps` apart, whether there is a log or not. The loss is the mean since the last.
    fn logged(&mut self, record: &TrainRecord, total: usize) {
        let _ = (record, total);
    }

    /// After every evaluation.
    fn evaluated(&mut self, record: &EvalRecord) {
        let _ = record;
    }

    /// After every checkpoint.
    fn saved(&mut self, checkpoint: &Path) {
        let _ = checkpoint;
    }

    /// Asked after every step. If it says `true` the run ends there: it leaves a checkpoint if it has a folder, and
    /// [`Outcome::interrupted`](crate::train::Outcome::interrupted) says so.
    fn stop_asked(&mut self) -> bool {
        false
    }

    /// What is asked while an evaluation goes on, which takes longer than a step: whether the run is to end. It ends the
    /// evaluation; a resumed run begins with it.
    fn stops_evaluations(&self) -> Option<StopAsked> {
        None
    }
}

impl Observer for () {}

/// A step that was done. A card may still compute it.
#[derive(Debug)]
pub struct StepDone<'a> {
    /// Optimiser steps done.
    pub step: usize,
    /// Epochs done, with a fraction.
    pub epoch: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens seen since the start, filling excluded; or what else `unit` says.
    pub tokens: u64,
    /// Tokens a second since the last line of the log, or what else `unit` says. A card may have more of them before it.
    pub tokens_per_second: f64,
    /// What is [counted](crate::tasks::task::Task::unit).
    pub unit: &'static str,
    /// Seconds since the start of the run, earlier parts of a resumed one included.
    pub seconds: f64,
    pending: &'a Pending,
}

impl StepDone<'_> {
    /// Mean loss of the step. To ask is to wait for a card, which has nothing to do until the next step comes.
    ///
    /// Not a number if the device failed; the run ends with its error.
    pub fn loss(&self) -> f64 {
        self.pending.read().map_or(f64::NAN, |it| it.loss)
    }

    /// Norm of all gradients of the step before clipping. It is read as the loss is, and with it.
    pub fn grad_norm(&self) -> f64 {
        self.pending.read().map_or(f64::NAN, |it| it.grad_norm)
    }
}

/// What a step came to.
pub(crate) struct Step {
    pub(crate) pending: Rc<Pending>,
    pub(crate) lr: f64,
    pub(crate) tokens: u64,
    pub(crate) begun: Instant,
}

/// Losses are read when they are logged. Where lines are further apart, no more steps than this are given to a card ahead, so
/// that a run which is to end need not wait for long, and a loss that is none is not trained on for long.
const MOST_PENDING: usize = 32;

/// The log and the observer of a run.
pub(crate) struct Progress<'a> {
    log: Option<RunLog>,
    observer: &'a mut dyn Observer,
    logging_steps: usize,
    steps_per_epoch: usize,
    total: usize,
    unit: &'static str,
    started: Instant,
    /// Seconds of the parts of the run before this one.
    earlier: f64,
    /// Steps whose losses are not counted yet.
    pending: Vec<Rc<Pending>>,
    /// Whether losses are read at once, because to read them is not to wait.
    is_eager: bool,
    /// The step before the first of this run.
    first: usize,
    /// Whether there are checkpoints to go back to.
    saves: bool,
}

impl<'a> Progress<'a> {
    /// From where a run is, which `state` says. `unit` is what the task [counts](crate::tasks::task::Task::unit).
    pub(crate) fn new(
        log: Option<RunLog>,
        observer: &'a mut dyn Observer,
        state: &TrainerState,
        steps: &Steps,
        config: &TrainConfig,
        unit: &'static str,
        is_eager: bool,
    ) -> Self {
        Self {
            log,
            observer,
            logging_steps: config.logging_steps,
            steps_per_epoch: steps.per_epoch(),
            total: steps.total(),
            unit,
            started: Instant::now(),
            earlier: state.seconds,
            pending: Vec::new(),
            is_eager,
            first: state.step,
            saves: config.save_steps > 0,
        }
    }

    /// Tells where the run starts.
    pub(crate) fn started(&mut self, start: &Started) {
        self.observer.started(start);
    }

    /// Knows of the passes of a step, before its gradients change anything. Their loss is read when a line of the log needs it,
    /// or when nobody waits for it: on devices that are done by now, and where the gradients are read anyway.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    pub(crate) fn passed(&mut self, state: &mut TrainerState, pending: Rc<Pending>, is_read: bool) -> Result<()> {
        self.pending.push(pending);
        match is_read || self.is_eager || self.is_line(state.step + 1) || self.pending.len() >= MOST_PENDING {
            true => self.count(state),
            false => Ok(()),
        }
    }

    /// Whether the log has a line behind this step.
    fn is_line(&self, step: usize) -> bool {
        step.is_multiple_of(self.logging_steps) || step == self.total
    }

    /// Counts a step that was done.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub(crate) fn stepped(&mut self, state: &mut TrainerState, step: &Step) -> Result<()> {
        state.step += 1;
        state.tokens += step.tokens;
        state.since_line.add_step(step.tokens, step.begun.elapsed().as_secs_f64());
        state.seconds = self.earlier + self.started.elapsed().as_secs_f64();
        let done = StepDone {
            step: state.step,
            epoch: self.epoch(state),
            lr: step.lr,
            tokens: state.tokens,
            tokens_per_second: state.since_line.tokens_per_second(),
            unit: self.unit,
            seconds: state.seconds,
            pending: &step.pending,
        };
        let waited = step.pending.waited();
        self.observer.step(&done, self.total);
        state.since_line.add_seconds(step.pending.waited() - waited);
        if self.is_line(state.step) {
            let StepDone { step: number, epoch, lr, tokens, tokens_per_second, unit, seconds, .. } = done;
            let (loss, grad_norm) = (state.since_line.mean_loss(), Some(step.pending.read()?.grad_norm));
            let unit = unit.into();
            let record =
                TrainRecord { step: number, epoch, loss, lr, grad_norm, tokens, tokens_per_second, unit, seconds };
            state.since_line = SinceLine::default();
            self.observer.logged(&record, self.total);
            self.append(Record::Train(record))?;
        }
        Ok(())
    }

    /// Waits for all steps that a card still computes, before something else begins, and counts their losses.
    ///
    /// # Errors
    /// If a loss or a gradient is not finite, or the device failed.
    pub(crate) fn settle(&mut self, state: &mut TrainerState) -> Result<()> {
        let begun = Instant::now();
        self.count(state)?;
        state.since_line.add_seconds(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Counts the losses of all steps whose passes are known.
    fn count(&mut self, state: &mut TrainerState) -> Result<()> {
        let steps = std::mem::take(&mut self.pending);
        for (step, Found { loss, grad_norm }) in steps.iter().zip(read(&steps)?) {
            self.check_finite("loss", loss, step.step)?;
            self.check_finite("gradient", grad_norm, step.step)?;
            state.last_loss = loss;
            state.since_line.add_loss(loss);
        }
        Ok(())
    }

    /// Refuses a number of step `step`, counted from 0, that is none.
    fn check_finite(&self, what: &str, value: f64, step: usize) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let next = match (step == self.first, self.saves) {
            // Nothing was learned before it, so no rate is to blame.
            (true, _) => "nothing was learned yet, so look at the base, at the adapter and at the data",
            (false, true) => "lower the learning rate; the last checkpoint is whole",
            (false, false) => "lower the learning rate",
        };
        Err(PeftError::NotFinite(format!("the {what} of step {} is {value}: {next}", step + 1)))
    }

    /// Tells of an evaluation that took `seconds`.
    pub(crate) fn evaluated(&mut self, state: &TrainerState, evaluation: &Evaluation, seconds: f64) -> Result<()> {
        let record = EvalRecord {
            step: state.step,
            epoch: self.epoch(state),
            loss: evaluation.loss,
            seconds,
            metrics: evaluation.metrics.clone(),
        };
        self.observer.evaluated(&record);
        self.append(Record::Eval(record))
    }

    /// Tells of a checkpoint.
    pub(crate) fn saved(&mut self, checkpoint: &Path) {
        self.observer.saved(checkpoint);
    }

    /// Whether the run is to end here.
    pub(crate) fn stop_asked(&mut self) -> bool {
        self.observer.stop_asked()
    }

    /// What an evaluation asks.
    pub(crate) fn stops_evaluations(&self) -> Option<StopAsked> {
        self.observer.stops_evaluations()
    }

    fn epoch(&self, state: &TrainerState) -> f64 {
        state.step as f64 / self.steps_per_epoch as f64
    }

    fn append(&mut self, record: Record) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), |log| log.append(&record))
    }
}
