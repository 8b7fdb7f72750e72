//! Training an adapter as a run says, whatever the task.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use peft_core::files::checkpoint::{Placement, write_atomically};
use peft_core::{DEFAULT_ADAPTER, MethodRegistry, PeftModel, Plan, Result, nn};
use peft_models::auto::ArchitectureRegistry;
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::tasks::task::{Evaluation, Task};
use peft_tasks::train::curve::Curve;
use peft_tasks::train::log::{self, LOG_FILE};
use peft_tasks::train::{Observer, Outcome, Trainer};

use crate::load::configure::configure;
use crate::run::config::RunConfig;
use crate::task::{TaskKind, TaskSource};

/// Sees a run as it goes: what [`Observer`] sees of the steps, and what comes before them.
pub trait RunObserver: Observer {
    /// What the labels of the data are.
    fn labels(&mut self, names: &[String]) {
        let _ = names;
    }

    /// What will be trained.
    fn planned(&mut self, plan: &Plan) {
        let _ = plan;
    }

    /// The evaluation before the first step.
    fn before(&mut self, evaluation: &Evaluation) {
        let _ = evaluation;
    }
}

impl RunObserver for () {}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// What the loop came to.
    pub outcome: Outcome,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Where a run finds what it names.
pub(crate) struct RunContext<'a> {
    pub(crate) methods: &'a MethodRegistry,
    pub(crate) architectures: &'a ArchitectureRegistry,
    /// Folder of the base model.
    pub(crate) base: &'a Path,
    pub(crate) place: &'a Placement,
}

/// Parse, prepare, fit, save.
pub(crate) fn fit<K: TaskKind>(
    kind: &K,
    run: &RunConfig,
    context: &RunContext<'_>,
    resume: bool,
    observer: &mut dyn RunObserver,
) -> Result<RunReport> {
    let RunContext { methods, architectures, base, place } = *context;
    place.device.seed(run.training.seed);

    let mut method = run.method.clone();
    if let Some(task_type) = kind.task_type() {
        method.insert("task_type".into(), task_type.into());
    }
    let config = configure(method, base, methods)?;

    let tokenizer = Arc::new(Tokenizer::load(base)?);
    let text_data = |file| run.text_data(file).tokenizer(tokenizer.clone());
    let (data, options) = (text_data(&run.data.train), run.task_options());
    let labels = kind.learn_labels(&data)?;
    let source = TaskSource { data: &data, base, tokenizer: &tokenizer, labels: labels.as_ref(), options: &options };
    let task = kind.task(&source)?;
    let held_out = run.data.eval.as_ref().map(|file| text_data(file));
    let held_out = held_out.as_ref().map(|data| kind.task(&TaskSource { data, ..source })).transpose()?;

    let mut head = labels.as_ref().map(|it| kind.head_for(it, &tokenizer)).unwrap_or_default();
    head.seed = run.training.seed;
    let mut model = PeftModel::new(kind.load(architectures, base, place, &head)?);
    model.set_base_name(&run.model);
    if let Some(labels) = &labels {
        observer.labels(&labels.names);
    }
    let plan = model.add_adapter_as(DEFAULT_ADAPTER, config, run.training.seed)?;
    observer.planned(plan);
    model.set_labels(DEFAULT_ADAPTER, labels.as_ref().map(|it| kind.labels_to_save(it)))?;

    if let Some(held_out) = &held_out {
        let evaluated = held_out.evaluate(&nn::eval(model.model()), run.training.eval_batch_size, &place.device)?;
        observer.before(&evaluated);
    }
    let started = Instant::now();
    let trainer = Trainer::new(&mut model, &task, run.training.clone()).eval(held_out.as_ref());
    let outcome = trainer.output(&run.output).resume(resume).observer(observer).run()?;
    let seconds = started.elapsed().as_secs_f64();

    model.save_adapter(&run.output, DEFAULT_ADAPTER)?;
    run.write(&run.output)?;
    let records = log::read(run.output.join(LOG_FILE))?;
    write_atomically(run.output.join("loss.svg"), Curve::from_records("Loss", &records).to_svg()?.as_bytes())?;
    Ok(RunReport { outcome, seconds })
}
