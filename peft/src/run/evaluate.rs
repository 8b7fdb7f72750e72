//! Measuring a model, with or without adapters, whatever the task.

use std::sync::Arc;

use peft_core::{Adaptable, PeftError, Result, WEIGHTS_FILE, nn};
use peft_models::auto::ClassifierOptions;
use peft_models::common::config::RawConfig;
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::task::{Evaluation, Task};
use peft_tasks::train::limits::{self, Limit, Range};

use crate::load::adapters::{AdapterSource, head_of, with_adapters};
use crate::load::text::{fitted_tokenizer, with_text_files};
use crate::run::fit::{RunContext, blame_the_base};
use crate::run::labels::for_head;
use crate::run::quantised::warn_of_another_base;
use crate::task::{TaskKind, TaskOptions, TaskSource};

/// What to measure, and on what.
#[derive(Debug, Clone)]
pub struct EvalRequest {
    /// The file, and how its rows become samples.
    pub data: TextData,
    /// Adapters, all active, in this order.
    pub adapters: Vec<AdapterSource>,
    /// Samples in a forward pass.
    pub batch_size: usize,
    /// Settings that only some kinds of tasks read.
    pub options: TaskOptions,
}

/// What the numbers of an evaluation may be.
const LIMITS: [Limit<EvalRequest>; 5] = [
    Limit::whole("batch_size", |it| Some(it.batch_size), 1, limits::MOST_ROWS),
    Limit::whole("max_length", |it| it.data.max_length, 1, limits::MOST_TOKENS),
    Limit::whole("doc_stride", |it| it.data.doc_stride, 0, limits::MOST_TOKENS),
    Limit::whole("max_new_tokens", |it| it.options.max_new_tokens, 1, limits::MOST_TOKENS),
    Limit::number("masked_share", |it| Some(it.options.masked_share), Range::Within(0.0, 1.0)),
];

impl EvalRequest {
    /// Says what makes no sense before anything is loaded.
    ///
    /// # Errors
    /// If a number is out of its range.
    pub fn check(&self) -> Result<()> {
        limits::check(self, &LIMITS)
    }
}

/// Loss and measures over all rows of the data.
pub(crate) fn evaluate<K: TaskKind>(kind: &K, request: &EvalRequest, context: &RunContext<'_>) -> Result<Evaluation> {
    let (data, adapters) = (&request.data, &request.adapters);
    let raw = RawConfig::read(context.base)?;
    warn_of_another_base(adapters, &raw, context.place)?;
    let unloaded = kind.unallocated(context.architectures, &raw, &context.place.device)?;
    let spec = unloaded.spec();
    let tokenizer = match kind.reads_text() {
        true => Some(Arc::new(fitted_tokenizer(context.base, &spec, adapters)?)),
        false => None,
    };
    let data = match &tokenizer {
        Some(tokenizer) => with_text_files(data.clone(), tokenizer, context.base, &spec, adapters)?,
        None => data.clone(),
    };
    let pad_token_id = tokenizer.as_ref().map(|it| it.fill_id().into());
    let head = ClassifierOptions { pad_token_id, ..head_of(adapters) };
    let model = kind.load(context.architectures, context.base, context.place, &head)?;
    let learn = || match kind.learn_labels(&data, context.base)? {
        Some(labels) => Ok(labels),
        None => Err(PeftError::Invalid(format!("{} has a head with labels, and learns none", kind.name()))),
    };
    let labels = kind.head(&model).map(|head| for_head(adapters, context.base, head, learn)).transpose()?;
    let model = with_adapters(model, adapters, context.methods)?;
    let options = TaskOptions { adapted: !adapters.is_empty(), ..request.options.clone() };
    let source = TaskSource {
        data: &data,
        base: context.base,
        tokenizer: tokenizer.as_deref(),
        labels: labels.as_ref(),
        options: &options,
        device: &context.place.device,
    };
    let task = kind.task(&source)?;
    let evaluation = task.evaluate(&nn::eval(model.model()), request.batch_size, &context.place.device)?;
    if !evaluation.loss.is_finite() {
        let names: Vec<String> = adapters.iter().map(|it| it.folder.join(WEIGHTS_FILE).display().to_string()).collect();
        let whose = if names.is_empty() { "of the base".to_owned() } else { format!("with {}", names.join(" and ")) };
        let reason = format!("the loss is {}: numbers {whose} are infinite, or become too large", evaluation.loss);
        return Err(blame_the_base(PeftError::NotFinite(reason), model.model(), context.base));
    }
    Ok(evaluation)
}
