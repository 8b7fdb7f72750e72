//! What a run shows: the plan, a progress bar, evaluations. Without a terminal the bar is a line now and then.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use peft_core::{Plan, Result};
use peft_tasks::data::labels::LabelSet;
use peft_tasks::tasks::interruption::StopAsked;
use peft_tasks::tasks::task::Evaluation;
use peft_tasks::train::log::{EvalRecord, TrainRecord};
use peft_tasks::train::{Observer, Started, StepDone};

use super::stop::StopSignals;
use super::terminal::{Steady, complain, is_quiet};
use crate::run::fit::RunObserver;

/// A progress bar with loss, tokens per second and time left.
pub(super) struct Bar {
    bar: ProgressBar,
    out: Steady,
    /// Whether signals end the run in good order once it trains.
    stoppable: bool,
    signals: Option<StopSignals>,
    /// When a loss was shown.
    shown: Option<Instant>,
}

/// A number that changes faster is not read.
const READABLE: Duration = Duration::from_millis(300);

impl Bar {
    /// For a run that is not worth a checkpoint.
    pub(super) fn new() -> Self {
        let bar = if is_quiet() { ProgressBar::hidden() } else { ProgressBar::new(0) };
        bar.set_style(style("{spinner} {msg}  {elapsed}"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, out: Steady::default(), stoppable: false, signals: None, shown: None }
    }

    /// For a run that leaves a checkpoint when a signal ends it.
    pub(super) fn stoppable() -> Self {
        Self { stoppable: true, ..Self::new() }
    }

    /// Takes the bar away. What is printed afterwards is the outcome.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Prints a line above the bar.
    pub(super) fn line(&mut self, text: impl Display) {
        let out = &mut self.out;
        self.bar.suspend(|| out.line(text));
    }

    /// The signal that ended the run: its name and its exit code.
    pub(super) fn signal(&self) -> Option<(&'static str, u8)> {
        self.signals.as_ref()?.came()
    }

    /// What became of the output, when the work is done.
    pub(super) fn end(self) -> Result<ExitCode> {
        self.out.end().map(|()| ExitCode::SUCCESS)
    }

    /// What is not worth a line of the outcome, on standard error, where the bar is.
    fn note(&self, text: impl Display) {
        self.bar.suspend(|| complain(text));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Observer for Bar {
    fn started(&mut self, start: &Started) {
        let Started { step, total, checkpoint, anew, changed, finished } = start;
        let place = checkpoint.as_deref().map(|it| it.display().to_string()).unwrap_or_default();
        if *anew {
            self.line("there is no checkpoint to resume from: the run starts anew");
        } else if *finished {
            self.line(format_args!("the run is finished: {place} is its end, after {step} of {total} steps"));
        } else if checkpoint.is_some() {
            self.line(format_args!("resumed from {place}, after {step} of {total} steps"));
        }
        if !changed.is_empty() {
            let rate = changed.iter().any(|it| it.contains("max_steps") || it.contains("num_train_epochs"));
            let rate = if rate { "; the learning rate follows the schedule of the new length" } else { "" };
            self.line(format_args!("changed since the checkpoint: {}{rate}", changed.join(", ")));
        }
        self.bar.set_style(style("{bar:30} {pos}/{len}  {msg}  {eta} left"));
        self.bar.set_message("");
        self.bar.reset();
        if self.stoppable {
            let bar = self.bar.clone();
            match StopSignals::listen(move |text| bar.suspend(|| complain(text))) {
                Ok(signals) => self.signals = Some(signals),
                Err(error) => self.note(format_args!("warning: Ctrl-C will leave no checkpoint: {error}")),
            }
        }
    }

    fn step(&mut self, done: &StepDone<'_>, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done.step as u64);
        // To read a loss is to wait for a card: only as often as people can read it.
        if !self.bar.is_hidden() && self.shown.is_none_or(|it| it.elapsed() >= READABLE) {
            let (loss, StepDone { tokens_per_second, unit, .. }) = (done.loss(), done);
            self.bar.set_message(format!("loss {loss:.4}  {tokens_per_second:.0} {unit}/s"));
            self.shown = Some(Instant::now());
        }
    }

    fn logged(&mut self, record: &TrainRecord, total: usize) {
        if self.bar.is_hidden() {
            let TrainRecord { step, loss, lr, tokens_per_second, unit, .. } = record;
            complain(format_args!("step {step}/{total}  loss {loss:.4}  lr {lr:.2e}  {tokens_per_second:.0} {unit}/s"));
        }
    }

    fn evaluated(&mut self, record: &EvalRecord) {
        self.line(format_args!(
            "step {}: evaluation loss {:.4}  {}",
            record.step,
            record.loss,
            metrics(&record.metrics)
        ));
    }

    fn saved(&mut self, checkpoint: &Path) {
        if self.bar.is_hidden() {
            complain(format_args!("checkpoint {}", checkpoint.display()));
        }
    }

    fn stop_asked(&mut self) -> bool {
        self.signal().is_some()
    }

    fn stops_evaluations(&self) -> Option<StopAsked> {
        self.signals.as_ref().map(StopSignals::watch)
    }
}

impl RunObserver for Bar {
    fn busy(&mut self, with: &str) {
        match self.bar.is_hidden() {
            true => complain(format_args!("{with} …")),
            false => self.bar.set_message(format!("{with} …")),
        }
    }

    fn remark(&mut self, text: &str) {
        self.note(text);
    }

    fn labels(&mut self, labels: &LabelSet) {
        match labels.names.is_empty() {
            true => self.line("labels: a number"),
            false => self.line(format_args!("labels: {}", labels.names.join(", "))),
        }
    }

    fn planned(&mut self, plan: &Plan) {
        self.line(plan);
    }

    fn before(&mut self, evaluation: &Evaluation) {
        self.line(format_args!("before: evaluation loss {:.4}  {}", evaluation.loss, metrics(&evaluation.metrics)));
    }
}

fn metrics(metrics: &serde_json::Map<String, serde_json::Value>) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {}", short(value))).collect::<Vec<_>>().join("  ")
}

/// A number with four digits behind the point.
pub(super) fn short(value: &serde_json::Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |it| format!("{it:.4}"))
}
