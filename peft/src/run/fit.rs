//! Training an adapter as a run says, whatever the task.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use peft_core::files::checkpoint::{Checkpoint, Placement, write_atomically};
use peft_core::model::values::first_not_finite;
use peft_core::{
    Adaptable, AdapterFolder, DEFAULT_ADAPTER, MethodRegistry, ModelSpec, PeftError, PeftModel, Plan, Result,
    base_reference, nn, read_config,
};
use peft_models::auto::ArchitectureRegistry;
use peft_models::common::config::RawConfig;
use peft_tasks::data::labels::LabelSet;
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::parallel::group;
use peft_tasks::tasks::task::{Evaluation, Task};
use peft_tasks::train::curve::Curve;
use peft_tasks::train::folder::CURVE_FILE;
use peft_tasks::train::log::{self, LOG_FILE};
use peft_tasks::train::{Observer, Outcome, RunFolder, Trainer};
use serde_json::{Map, Value};

use crate::load::adapters::AdapterSource;
use crate::load::configure::configure;
use crate::load::names::adapter_folder;
use crate::load::text::{fitted, load_tokenizer, rows_with, tokenizer_folder, train_new_tokens, with_text_files};
#[cfg(feature = "lora")]
use crate::run::calibrate::{calibrated, made_up, makes_up_for_codes, start_of};
use crate::run::config::RunConfig;
use crate::run::drawn;
use crate::run::labels::of_adapters;
use crate::task::{TaskKind, TaskSource};

/// Sees a run as it goes: what [`Observer`] sees of the steps, and what comes before them.
pub trait RunObserver: Observer {
    /// What takes a while before the first step: a text such as `reading poems.txt`.
    fn busy(&mut self, with: &str) {
        let _ = with;
    }

    /// What is worth a line about the data: the token that texts end with.
    fn remark(&mut self, text: &str) {
        let _ = text;
    }

    /// What the labels of the data are.
    fn labels(&mut self, labels: &LabelSet) {
        let _ = labels;
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

/// What splits the texts of a run.
struct Text {
    tokenizer: Arc<Tokenizer>,
    /// Ids of tokens that the base does not know.
    new_ids: Vec<u32>,
    /// Rows that the embedding matrix must grow to for them.
    new_rows: Option<usize>,
}

impl Text {
    fn load(run: &RunConfig, base: &Path, earlier: &[AdapterSource], spec: &ModelSpec) -> Result<Self> {
        let (tokenizer, new_ids) = load_tokenizer(base, earlier)?.with_new_tokens(&run.data.new_tokens)?;
        let rows = rows_with(spec, earlier)?;
        let new_rows = new_ids.iter().map(|it| *it as usize + 1).max().filter(|it| rows.is_some_and(|rows| *it > rows));
        let tokenizer = Arc::new(fitted(tokenizer, rows_with(spec, &[])?, new_rows.or(rows))?);
        Ok(Self { tokenizer, new_ids, new_rows })
    }
}

/// Parse, prepare, fit, save.
pub(crate) fn fit<K: TaskKind>(
    kind: &K,
    run: &RunConfig,
    context: &RunContext<'_>,
    folder: &RunFolder,
    observer: &mut dyn RunObserver,
) -> Result<RunReport> {
    let RunContext { methods, architectures, base, place } = *context;
    place.device.seed(run.training.seed);

    let init_from = run.init_from.as_deref().map(adapter_folder).transpose()?;
    let mut method = method_of(run, kind.task_type(), init_from.as_deref())?;
    let unloaded = kind.unallocated(architectures, &RawConfig::read(base)?, &place.device)?;
    let spec = unloaded.spec();
    let earlier: Vec<AdapterSource> = init_from.iter().map(AdapterSource::new).collect();
    let text = kind.reads_text().then(|| Text::load(run, base, &earlier, &spec)).transpose()?;
    if text.is_none() && !run.data.new_tokens.is_empty() {
        return Err(PeftError::config("new_tokens", format!("are for tasks on text, which {} is not", kind.name())));
    }
    let new_ids = text.as_ref().map_or(&[][..], |it| &it.new_ids);
    train_new_tokens(&mut method, new_ids, &spec, unloaded.is_tied())?;
    let prepared = RunConfig { method: method.clone(), ..run.clone() };
    let config = configure(method.clone(), base, methods)?;

    let tokenizer = text.as_ref().map(|it| it.tokenizer.as_ref());
    let data_of = |file: &Path| match &text {
        Some(text) => with_text_files(prepared.text_data(file), &text.tokenizer, base, &spec, &earlier),
        None => Ok(prepared.text_data(file)),
    };
    let (data, options) = (data_of(&run.data.train)?, run.task_options());
    observer.busy(&format!("reading {}", run.data.train.display()));
    let labels = match of_adapters(&earlier)? {
        Some(labels) => Some(LabelSet::from_labels(&labels)?),
        None => kind.learn_labels(&data, base)?,
    };
    let source =
        TaskSource { data: &data, base, tokenizer, labels: labels.as_ref(), options: &options, device: &place.device };
    let task = kind.task(&source)?;
    task.remarks().iter().for_each(|it| observer.remark(it));
    let held_out = run.data.eval.as_ref().map(|file| data_of(file)).transpose()?;
    let held_out = held_out.as_ref().map(|data| kind.task(&TaskSource { data, ..source })).transpose()?;
    // The samples hold all that is needed of the rows.
    drop(data);

    let mut head = labels.as_ref().map(|it| kind.head_for(it, tokenizer)).unwrap_or_default();
    head.seed = run.training.seed;
    observer.busy(&format!("loading {}", run.model));
    let mut model = PeftModel::new(kind.load(architectures, base, place, &head)?);
    if let Some(rows) = text.as_ref().and_then(|it| it.new_rows) {
        model.resize_vocabulary(rows)?;
    }
    model.set_base_name(&run.model);
    if let Some(labels) = &labels {
        observer.labels(labels);
    }
    match &init_from {
        Some(adapter) => {
            model.adopt_tables(&AdapterFolder::open(adapter)?)?;
            model.load_adapter(adapter, DEFAULT_ADAPTER, methods)?;
            model.set_config(DEFAULT_ADAPTER, config)?;
        }
        None => {
            // What is looked at before the adapter is there must see the layers that it will have.
            model = model.with_replicated_layers(config.as_ref())?;
            let config = match drawn::save(&mut method, config.as_ref(), model.spec()) {
                true => configure(method.clone(), base, methods)?,
                false => config,
            };
            #[cfg(feature = "lora")]
            let config = match start_of(&method) {
                Some(start) => {
                    observer.busy(&format!("looking at the data for a start with {start}"));
                    calibrated(start, method.clone(), &model, &task, run, &place.device)?
                }
                None if makes_up_for_codes(&method, base, place)? => {
                    observer.busy("comparing the quantised layers with those of the file");
                    made_up(method.clone(), &model, base)?
                }
                None => config,
            };
            // What asks for it is the method of the run, which may stand in a file.
            model.add_adapter_as(DEFAULT_ADAPTER, config, run.training.seed).map_err(|error| match error {
                PeftError::Invalid(reason) => PeftError::config("method", format!("makes no adapter here: {reason}")),
                error => error,
            })?;
        }
    }
    observer.planned(&model.adapters()[DEFAULT_ADAPTER].plan);
    model.set_labels(DEFAULT_ADAPTER, labels.as_ref().map(|it| kind.labels_to_save(it)))?;

    // A run that goes on has been measured before.
    if let Some(held_out) = held_out.as_ref().filter(|_| folder.checkpoint().is_none()) {
        observer.busy("evaluating before the first step");
        // The base alone, if nothing was trained yet: a fresh adapter may change what it computes.
        model.set_enabled(init_from.is_some());
        observer.before(&measured(&model, held_out, run, context)?);
        model.set_enabled(true);
    }
    let started = Instant::now();
    let identity = run.identity(init_from.as_deref(), |file| kind.mark_data(&prepared.text_data(file)))?;
    let trainer = Trainer::new(&mut model, &task, run.training.clone()).eval(held_out.as_ref()).folder(folder);
    let outcome = trainer.belongs_to(identity).observer(observer).run();
    let outcome = outcome.map_err(|error| blame_the_base(error, model.model(), base))?;
    let seconds = started.elapsed().as_secs_f64();
    if outcome.interrupted {
        // Not the adapter that was asked for: the checkpoint has what is there.
        return Ok(RunReport { outcome, seconds });
    }

    group::on_first(|| {
        model.save_adapter(folder.path(), DEFAULT_ADAPTER)?;
        kind.finish(folder.path(), model.spec())?;
        // An adapter that goes on from one with a tokenizer of its own needs it as well.
        if let Some(tokenizer) = tokenizer.filter(|_| !new_ids.is_empty() || tokenizer_folder(base, &earlier) != base) {
            tokenizer.save(folder.path(), base)?;
        }
        run.write(folder.path())?;
        draw_curve(folder.path())
    })?;
    Ok(RunReport { outcome, seconds })
}

/// The configuration of the run's adapter, or of the one that it goes on from. Whatever a template says, it is one of this
/// base and this task.
fn method_of(run: &RunConfig, task_type: Option<&str>, init_from: Option<&Path>) -> Result<Map<String, Value>> {
    let mut method = match init_from {
        Some(adapter) => read_config(adapter)?,
        None => run.method.clone(),
    };
    let (name, revision) = base_reference(&run.model);
    method.insert("base_model_name_or_path".into(), name.into());
    method.insert("revision".into(), revision.into());
    if let Some(task_type) = task_type {
        method.insert("task_type".into(), task_type.into());
    }
    Ok(method)
}

/// An evaluation before the first step, whose loss must be a number.
fn measured<M: Module, T: Task<M>>(
    model: &PeftModel<M>,
    held_out: &T,
    run: &RunConfig,
    context: &RunContext<'_>,
) -> Result<Evaluation> {
    let RunContext { base, place, .. } = *context;
    let evaluated = held_out.evaluate(&nn::eval(model.model()), run.training.eval_batch_size, &place.device)?;
    if evaluated.loss.is_finite() {
        return Ok(evaluated);
    }
    let reason = format!("the evaluation before the first step is {}: look at its data", evaluated.loss);
    Err(blame_the_base(PeftError::NotFinite(reason), model.model(), base))
}

/// The picture of the log beside it.
fn draw_curve(folder: &Path) -> Result<()> {
    let records = log::read(folder.join(LOG_FILE))?;
    let curve = Curve::from_records("Loss", &records).to_svg()?;
    write_atomically(folder.join(CURVE_FILE), curve.as_bytes())
}

/// A loss that is no number says nothing about the training if the base itself holds none.
pub(crate) fn blame_the_base<M: Module>(error: PeftError, model: &M, base: &Path) -> PeftError {
    match (error, first_not_finite(model)) {
        (PeftError::NotFinite(_), Some(path)) => {
            let checkpoint = Checkpoint::open(base).ok();
            let file = checkpoint.as_ref().and_then(|it| it.file_of(&path)).unwrap_or(base);
            PeftError::bad_file(file, format!("`{path}` holds NaN or infinity: the file is damaged, fetch it again"))
        }
        (error, _) => error,
    }
}
