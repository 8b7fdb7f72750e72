//! What a run shows: the plan, a progress bar, evaluations.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use peft_core::Plan;
use peft_tasks::tasks::task::Evaluation;
use peft_tasks::train::Observer;
use peft_tasks::train::log::{EvalRecord, TrainRecord};

use crate::run::fit::RunObserver;

/// A progress bar with loss, tokens per second and time left.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }

    fn line(&self, line: &str) {
        if self.0.is_hidden() { println!("{line}") } else { self.0.println(line) }
    }
}

impl Observer for Bar {
    fn step(&mut self, record: &TrainRecord, total: usize) {
        self.0.set_length(total as u64);
        self.0.set_position(record.step as u64);
        self.0.set_message(format!("loss {:.4}  {:.0} tokens/s", record.loss, record.tokens_per_second));
    }

    fn evaluated(&mut self, record: &EvalRecord) {
        self.line(&format!("step {}: evaluation loss {:.4}  {}", record.step, record.loss, metrics(&record.metrics)));
    }
}

impl RunObserver for Bar {
    fn labels(&mut self, names: &[String]) {
        self.line(&format!("labels: {}", names.join(", ")));
    }

    fn planned(&mut self, plan: &Plan) {
        self.line(&plan.to_string());
    }

    fn before(&mut self, evaluation: &Evaluation) {
        self.line(&format!("before: evaluation loss {:.4}  {}", evaluation.loss, metrics(&evaluation.metrics)));
    }
}

fn metrics(metrics: &serde_json::Map<String, serde_json::Value>) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {}", short(value))).collect::<Vec<_>>().join("  ")
}

/// A number with four digits behind the point.
pub(super) fn short(value: &serde_json::Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |it| format!("{it:.4}"))
}
