//! What a run tells while it goes: lines of its log, and calls of an observer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use peft_core::Result;

use crate::tasks::interruption::StopAsked;
use crate::tasks::task::Evaluation;
use crate::train::batches::Steps;
use crate::train::config::TrainConfig;
use crate::train::log::{EvalRecord, Record, RunLog, TrainRecord};
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

    /// After every step, `record.step` of `total`.
    fn step(&mut self, record: &TrainRecord, total: usize) {
        let _ = (record, total);
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

/// What a step came to.
pub(crate) struct Step {
    pub(crate) loss: f64,
    pub(crate) lr: f64,
    pub(crate) grad_norm: f64,
    pub(crate) tokens: u64,
    /// Seconds that it took.
    pub(crate) seconds: f64,
}

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
        }
    }

    /// Tells where the run starts.
    pub(crate) fn started(&mut self, start: &Started) {
        self.observer.started(start);
    }

    /// Counts a step that was done.
    pub(crate) fn stepped(&mut self, state: &mut TrainerState, step: &Step) -> Result<()> {
        state.step += 1;
        state.tokens += step.tokens;
        state.last_loss = step.loss;
        state.seconds = self.earlier + self.started.elapsed().as_secs_f64();
        state.since_line.add(step.loss, step.tokens, step.seconds);
        let mut record = TrainRecord {
            step: state.step,
            epoch: self.epoch(state),
            loss: step.loss,
            lr: step.lr,
            grad_norm: Some(step.grad_norm),
            tokens: state.tokens,
            tokens_per_second: state.since_line.tokens_per_second(),
            unit: self.unit.into(),
            seconds: state.seconds,
        };
        self.observer.step(&record, self.total);
        if state.step.is_multiple_of(self.logging_steps) || state.step == self.total {
            record.loss = state.since_line.mean_loss();
            state.since_line = SinceLine::default();
            self.observer.logged(&record, self.total);
            self.append(Record::Train(record))?;
        }
        Ok(())
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
