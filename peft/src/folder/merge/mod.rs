//! Adapters folded into the weights of their base: a plain checkpoint.
//!
//! The folder is built beside its place and says what it holds: `config` derives its `config.json` from the tensors that
//! are written, `classes` names the class that reads them, `companions` brings along what belongs to it.

mod classes;
mod companions;
mod config;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::files::checkpoint::{BaseDtype, Checkpoint, FloatType, Placement, Stored};
use peft_core::files::place::StagedFolder;
use peft_core::files::shards::{ShardSize, ShardWriter};
use peft_core::model::merge::Merged;
use peft_core::{Adaptable, ModelSpec, PeftError, Result};
use peft_models::auto::copies_in_file;
use peft_models::common::config::RawConfig;
use peft_tasks::data::tokenizer::{TOKENIZER_FILE, Tokenizer};

use serde_json::{Map, Value};

use crate::device::cpu_device;
use crate::folder::adapted::made_of;
use crate::folder::output::check_output_with;
use crate::load::adapters::{AdapterSource, head_of, is_same_folder, with_adapters};
use crate::load::any_model::AnyModel;
use crate::load::text::{fitted_tokenizer, tokenizer_folder};
use crate::run::fit::blame_the_base;
use crate::run::labels;
use crate::run::quantised::warn_of_another_base;
use crate::run::registry::{KnownTask, Registry};

/// What to merge, and where to write it.
#[derive(Debug, Clone, Default)]
pub struct MergeRequest {
    /// Folder of the base model.
    pub base: PathBuf,
    /// The adapters; all are folded in.
    pub adapters: Vec<AdapterSource>,
    /// Folder to write the checkpoint to.
    pub output: PathBuf,
    /// Name of the task. By default that of the adapters' `task_type`, or of the base's `architectures`.
    pub task: Option<String>,
    /// Element type of the weights. By default that of the base.
    pub float: Option<FloatType>,
    /// Most bytes of a file of weights.
    pub max_shard_size: ShardSize,
    /// Whether a checkpoint that is in the output folder already may be replaced.
    pub overwrite: bool,
}

/// What a merge wrote.
#[derive(Debug, Clone)]
pub struct MergeReport {
    /// Name of the task whose model was merged.
    pub task: &'static str,
    /// Element type of the weights.
    pub float: FloatType,
    /// Files of weights.
    pub weights: Vec<String>,
    /// Files that came along from the base.
    pub from_base: Vec<String>,
    /// Files that came along from an adapter: its tokenizer and chat template.
    pub from_adapter: Vec<String>,
    /// What the base's folder holds beside them.
    pub left_out: Vec<String>,
}

/// Writes a plain checkpoint in which the adapters are folded into the weights.
///
/// Weights are written one tensor after another, so that beside the base no more than a tensor is in memory. Where the
/// device computes with half precision, those of the base stay in its file.
///
/// # Errors
/// If something cannot be read, an adapter does not fit or cannot be merged, a number is not finite or too large for its
/// type, or the output holds a checkpoint already or is the folder of a source.
pub fn merge(request: &MergeRequest, registry: &Registry, place: impl Into<Placement>) -> Result<MergeReport> {
    let MergeRequest { base, adapters, output, .. } = request;
    check_output(request)?;
    let task = registry.tasks.chosen(request.task.as_deref(), adapters, base)?;
    let raw = RawConfig::read(base)?;
    let stored = Checkpoint::open(base)?.float_type();
    let float = request.float.unwrap_or(stored);
    let place = as_stored(place.into(), stored);
    warn_of_another_base(adapters, &raw, &place)?;
    let spec = task.unallocated(&registry.architectures, &raw, &place.device)?.spec();
    let tokenizer = tokenizer(base, adapters, &spec)?;
    let model = task.load(&registry.architectures, base, place, &head_of(adapters))?;
    let model = with_adapters(model, adapters, &registry.methods)?;
    let folders: Vec<PathBuf> = adapters.iter().map(|it| it.folder.clone()).collect();
    check_drawn(&model.drawn(), task)?;
    let merged = model.merged().map_err(|error| made_of(error, &folders))?;

    if let Some(tokenizer) = &tokenizer {
        tell_tokens_beyond(tokenizer, merged.spec());
    }
    let staged = StagedFolder::beside(output)?;
    let companions = companions::copy(base, adapters, staged.path())?;
    let facts = config::Facts {
        task,
        spec: merged.spec(),
        is_tied: merged.is_tied(),
        float,
        labels: labels::of_adapters(adapters)?,
        pad: tokenizer.map(|it| it.fill_id()),
    };
    let described = facts.describe(&raw);
    if merged.spec().layer_order.is_some() {
        check_depth(&described, &merged, task, registry)?;
    }
    let weights = write_weights(&merged, &raw, staged.path(), float, request.max_shard_size)
        .map_err(|error| made_of(blame_the_base(error, model.model(), base), &folders))?;
    config::write(&described, staged.path())?;
    staged.put(companions::is_weight_file)?;
    Ok(MergeReport {
        task: task.name(),
        float,
        weights,
        from_base: companions.from_base,
        from_adapter: companions.from_adapter,
        left_out: companions.left_out,
    })
}

/// Refuses to write down what was drawn, which no two loads have alike. The pooler of a model without a head takes no part.
fn check_drawn(drawn: &[String], task: KnownTask<'_>) -> Result<()> {
    let Some(first) = drawn.first().filter(|_| task.name() != "feature-extraction") else { return Ok(()) };
    let more = if drawn.len() > 1 { format!(" and {} more", drawn.len() - 1) } else { String::new() };
    Err(PeftError::Invalid(format!(
        "refusing to merge: neither the base nor an adapter holds `{first}`{more}, so that the merged model would compute with \
         random weights; train the adapter again here, which saves them, or merge into a base that has them"
    )))
}

/// A tokenizer may know more tokens than the model has rows: padding that nobody looks up, or a mistake.
fn tell_tokens_beyond(tokenizer: &Tokenizer, spec: &ModelSpec) {
    let Some(rows) = spec.token_table().map(|it| it.shape[0]).filter(|it| *it < tokenizer.vocab_size()) else { return };
    tracing::warn!(
        "the tokenizer{} knows {} tokens, and the embedding matrix has {rows} rows: the model cannot read the others",
        tokenizer.path().map_or(String::new(), |it| format!(" {}", it.display())),
        tokenizer.vocab_size()
    );
}

/// Refuses a base whose layers have been repeated in a way that no configuration can say, such as ModernBERT's, of which the
/// first layer alone lacks a norm.
fn check_depth(
    described: &Map<String, Value>,
    merged: &Merged<AnyModel>,
    task: KnownTask<'_>,
    registry: &Registry,
) -> Result<()> {
    let raw = RawConfig::of(described.clone());
    let read = task.unallocated(&registry.architectures, &raw, &cpu_device()?)?.spec();
    let shapes = |spec: &ModelSpec| spec.iter().map(|it| (it.path(), it.shape.clone())).collect::<BTreeMap<_, _>>();
    if shapes(&read) == shapes(merged.spec()) && read.layer_types == merged.spec().layer_types {
        return Ok(());
    }
    let reason = "a checkpoint of this architecture cannot have its layers in this order: keep the adapter unmerged";
    Err(PeftError::unsupported("merging `layer_replication`", reason))
}

/// The tokenizer that goes along, if there is one. It must know the tokens of a table that has grown.
fn tokenizer(base: &Path, adapters: &[AdapterSource], spec: &ModelSpec) -> Result<Option<Tokenizer>> {
    if !tokenizer_folder(base, adapters).join(TOKENIZER_FILE).is_file() {
        return Ok(None);
    }
    fitted_tokenizer(base, spec, adapters).map(Some)
}

/// Refuses to write over a source, or over a checkpoint that nobody gave away.
fn check_output(request: &MergeRequest) -> Result<()> {
    let MergeRequest { base, adapters, output, overwrite, .. } = request;
    if is_same_folder(base, output) {
        return Err(PeftError::config("--output", "is the base model's folder: a base is never written"));
    }
    if adapters.iter().any(|it| is_same_folder(&it.folder, output)) {
        return Err(PeftError::config("--output", "is the folder of an adapter that is merged: give another"));
    }
    check_output_with(output, *overwrite, companions::is_weight_file)
}

/// The base as its file has it, where the device knows such numbers: what is computed is the same, bit for bit.
fn as_stored(place: Placement, stored: FloatType) -> Placement {
    let dtype = match stored {
        FloatType::F32 => burn::tensor::DType::F32,
        FloatType::F16 => burn::tensor::DType::F16,
        FloatType::BF16 => burn::tensor::DType::BF16,
    };
    match place.device.supports_dtype(dtype) {
        true => place.with_dtype(BaseDtype::Auto),
        false => place,
    }
}

fn write_weights(
    merged: &Merged<AnyModel>,
    raw: &RawConfig,
    folder: &Path,
    float: FloatType,
    limit: ShardSize,
) -> Result<Vec<String>> {
    let spec = merged.spec();
    let copies = copies_in_file(raw.model_type()?, spec, merged.is_tied());
    let copies_of = |path: &str| copies.iter().filter(|it| it.of == path).map(|it| it.key.clone()).collect::<Vec<_>>();
    // Models of diffusers name a class in place of a type.
    let stem = if raw.json.contains_key("_class_name") { "diffusion_pytorch_model" } else { "model" };
    let mut writer = ShardWriter::called(stem, folder, entries(spec, &copies_of), float, limit);
    let scale = config::head_scale(raw, merged.is_tied());
    merged.each(&mut |mut tensor| {
        if let Some((_, scale)) = scale.filter(|(head, _)| tensor.key == *head) {
            let scaled: Vec<f32> = tensor.data.iter::<f32>().map(|it| it * scale).collect();
            tensor.data = TensorData::new(scaled, tensor.data.shape().clone());
        }
        for key in copies_of(&tensor.key) {
            writer.write(Stored { key, data: tensor.data.clone() })?;
        }
        writer.write(tensor)
    })?;
    writer.finish()
}

fn entries(spec: &ModelSpec, copies_of: &dyn Fn(&str) -> Vec<String>) -> Vec<(String, Vec<usize>)> {
    let mut entries = Vec::new();
    for param in spec.iter() {
        let (path, shape) = (param.path(), param.shape_on_disk());
        entries.extend(copies_of(&path).into_iter().map(|key| (key, shape.clone())));
        entries.push((path, shape));
    }
    entries
}
