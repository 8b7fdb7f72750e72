//! What a run tells while it goes: lines of its log, and calls of an observer.

use std::time::Instant;

use peft_core::Result;

use crate::tasks::task::Evaluation;
use crate::train::batches::Steps;
use crate::train::checkpoint::TrainerState;
use crate::train::config::TrainConfig;
use crate::train::log::{EvalRecord, Record, RunLog, TrainRecord};

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

/// What a step came to.
pub(crate) struct Step {
    pub(crate) loss: f64,
    pub(crate) lr: f64,
    pub(crate) grad_norm: f64,
    pub(crate) tokens: u64,
}

/// The log and the observer of a run.
pub(crate) struct Progress<'a> {
    log: Option<RunLog>,
    observer: &'a mut dyn Observer,
    logging_steps: usize,
    steps_per_epoch: usize,
    total: usize,
    started: Instant,
    /// Seconds of the parts of the run before this one.
    earlier: f64,
    since_line: SinceLine,
}

impl<'a> Progress<'a> {
    /// From where a run is, which `state` says.
    pub(crate) fn new(
        log: Option<RunLog>,
        observer: &'a mut dyn Observer,
        state: &TrainerState,
        steps: &Steps,
        config: &TrainConfig,
    ) -> Self {
        Self {
            log,
            observer,
            logging_steps: config.logging_steps.max(1),
            steps_per_epoch: steps.per_epoch(),
            total: steps.total(),
            started: Instant::now(),
            earlier: state.seconds,
            since_line: SinceLine::new(),
        }
    }

    /// Counts a step that was done.
    pub(crate) fn stepped(&mut self, state: &mut TrainerState, step: &Step) -> Result<()> {
        state.step += 1;
        state.tokens += step.tokens;
        state.seconds = self.earlier + self.started.elapsed().as_secs_f64();
        self.since_line.add(step);
        let mut record = TrainRecord {
            step: state.step,
            epoch: self.epoch(state),
            loss: step.loss,
            lr: step.lr,
            grad_norm: Some(step.grad_norm),
            tokens: state.tokens,
            tokens_per_second: self.since_line.tokens_per_second(),
            seconds: state.seconds,
        };
        self.observer.step(&record, self.total);
        if state.step.is_multiple_of(self.logging_steps) || state.step == self.total {
            record.loss = self.since_line.mean_loss();
            self.append(Record::Train(record))?;
            self.since_line = SinceLine::new();
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

    fn epoch(&self, state: &TrainerState) -> f64 {
        state.step as f64 / self.steps_per_epoch as f64
    }

    fn append(&mut self, record: Record) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), |log| log.append(&record))
    }
}

/// Steps since the last line of the log.
struct SinceLine {
    started: Instant,
    loss: f64,
    steps: usize,
    tokens: u64,
}

impl SinceLine {
    fn new() -> Self {
        Self { started: Instant::now(), loss: 0.0, steps: 0, tokens: 0 }
    }

    fn add(&mut self, step: &Step) {
        self.loss += step.loss;
        self.steps += 1;
        self.tokens += step.tokens;
    }

    fn mean_loss(&self) -> f64 {
        self.loss / self.steps.max(1) as f64
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}
