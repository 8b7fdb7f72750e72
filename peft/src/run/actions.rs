//! The three things that a program does with any task: train, evaluate, compute one pass.

use std::path::Path;

use peft_core::files::checkpoint::{Placement, Stored};
use peft_core::sharding::ShardedBase;
use peft_core::{PeftError, Result};
use peft_tasks::parallel::group;
use peft_tasks::tasks::task::Evaluation;
use peft_tasks::train::{RunFolder, Start};

use crate::device::best_device;
use crate::load::adapters::is_same_folder;
use crate::load::names::model_folder;
use crate::run::config::{RUN_FILE, RunConfig};
use crate::run::evaluate::EvalRequest;
use crate::run::fit::{RunContext, RunObserver, RunReport};
use crate::run::forward::ForwardRequest;
use crate::run::registry::Registry;

/// Trains an adapter as `run` says, and leaves it in `run.output` with its log, its loss curve and the run itself. `start`
/// says what to do about an earlier run in that folder; `true` goes on from its last checkpoint, if there is one.
///
/// A run that its observer ends before its time leaves a checkpoint, and no adapter yet.
///
/// # Errors
/// If anything that the run names is missing, unknown or does not fit; if a loss is not finite; if the disk says no.
pub fn train(
    run: &RunConfig,
    registry: &Registry,
    start: impl Into<Start>,
    observer: &mut dyn RunObserver,
) -> Result<RunReport> {
    run.check()?;
    let task = registry.tasks.get(&run.task)?;
    [Some(&run.data.train), run.data.eval.as_ref()].into_iter().flatten().try_for_each(|it| task.check_data(it))?;
    let place = Placement::on(&best_device(run.device.as_deref())?)
        .with_dtype(run.dtype)
        .with_quantization(run.quantization.clone())
        .with_llm_int8_threshold(run.llm_int8_threshold)
        .with_shards(shards(run.shard_base)?);
    for (field, name) in [("model", Some(&run.model)), ("init_from", run.init_from.as_ref())] {
        if name.is_some_and(|it| is_same_folder(Path::new(it), &run.output)) {
            let reason = format!("is the folder of `{field}`, which a run never writes to: take another");
            return Err(PeftError::config("output", reason));
        }
    }
    // Before anything is fetched or read: a folder that is in use, or was used, is the likeliest mistake.
    let earlier = RunConfig::read(run.output.join(RUN_FILE));
    let wrote_tokenizer = earlier.is_ok_and(|it| it.init_from.is_some() || !it.data.new_tokens.is_empty());
    let folder = RunFolder::open(&run.output, start.into())?.with_tokenizer(wrote_tokenizer);
    let base = model_folder(&run.model)?;
    task.fit(run, &context(registry, &base, &place), &folder, observer)
}

/// Measures the base model in `base`, with the adapters of `request`, as the task of this name does.
///
/// # Errors
/// If something cannot be read or does not fit.
pub fn evaluate(
    task: &str,
    base: &Path,
    request: &EvalRequest,
    registry: &Registry,
    place: impl Into<Placement>,
) -> Result<Evaluation> {
    request.check()?;
    let task = registry.tasks.get(task)?;
    task.check_data(&request.data.file)?;
    task.evaluate(request, &context(registry, base, &place.into()))
}

/// Computes one forward pass: `logits` (or `last_hidden_state`), `loss` if there are labels, and `grad.<key>` if asked
/// for.
///
/// # Errors
/// If something cannot be read or does not fit.
pub fn forward(request: &ForwardRequest, registry: &Registry, place: impl Into<Placement>) -> Result<Vec<Stored>> {
    let task = registry.tasks.get(&request.task)?;
    task.pass(request, &context(registry, &request.model, &place.into()))
}

/// A base that the processes of this run keep together, if it is `asked` for and there are several.
///
/// # Errors
/// If the process group cannot do that.
pub fn shards(asked: bool) -> Result<Option<ShardedBase>> {
    let base = if asked { group::sharded_base()? } else { None };
    if asked && base.is_none() {
        tracing::warn!(
            "`shard_base` changes nothing: one process alone keeps the whole base; start several with mpirun"
        );
    }
    Ok(base)
}

fn context<'a>(registry: &'a Registry, base: &'a Path, place: &'a Placement) -> RunContext<'a> {
    RunContext { methods: &registry.methods, architectures: &registry.architectures, base, place }
}
