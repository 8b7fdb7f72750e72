//! Causal language modelling: every token predicts the next one.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result, forward, ops};
use peft_models::{CausalLm, Pretrained};
use serde_json::{Map, Value};

use crate::data::batch::{Batch, Padding, collate};
use crate::data::columns::{Columns, required};
use crate::data::dataset::Dataset;
use crate::data::messages::{Reader, is_filled, is_list_of_turns};
use crate::data::pack::{PackOrder, PackedRow, collate_packed, pack};
use crate::data::row_template::RowTemplate;
use crate::data::sample::{IGNORED, Preprocessor, Sample, Truncation};
use crate::data::tally::{Answers, Tally};
use crate::data::tensors::line;
use crate::data::text_data::TextData;
use crate::data::tokenizer::Tokenizer;
use crate::eval::metrics;
use crate::tasks::in_batches::in_batches;
use crate::tasks::loss::predicting_rows;
use crate::tasks::task::{Evaluation, Task, scalar};

/// Documents, one in a row or several.
#[derive(Debug, Clone)]
enum Rows {
    Samples(Vec<Sample>),
    Packed(Vec<PackedRow>),
}

/// The task of a causal language model.
///
/// A batch is laid out in rows as wide as its longest document, with several short ones in a row where they fit. A document
/// is read as if it had a row of its own, so the loss is the same, and less is computed for padding. Which documents make a
/// batch, and how their losses are weighted, does not depend on the layout; dropout draws for other places.
///
/// Every document has a row to itself in models that do not [support packing](CausalLm::supports_packing); behind virtual
/// tokens or a prefix; with task ids or token type ids; if rows have adapters of their own ([`forward::can_pack`]); and
/// where no row would be saved.
#[derive(Debug, Clone)]
pub struct LanguageModelling {
    rows: Rows,
    padding: Padding,
    /// With which token texts end, and what says so.
    end: Option<String>,
}

impl LanguageModelling {
    /// A row for every document, padded with `pad_id`. Documents that predict nothing are left out.
    ///
    /// # Errors
    /// If no document is left.
    pub fn padded(samples: Vec<Sample>, pad_id: u32) -> Result<Self> {
        let samples: Vec<Sample> = samples.into_iter().filter(|it| it.targets() > 0).collect();
        if samples.is_empty() {
            return Err(PeftError::Invalid(
                "no row has a token to learn: documents are empty or were cut before the completion".into(),
            ));
        }
        Ok(Self { rows: Rows::Samples(samples), padding: Padding::right(pad_id), end: None })
    }

    /// Several short documents in rows of `max_length` tokens; no document attends to another.
    ///
    /// # Errors
    /// If no document predicts anything, or `max_length` is below 2.
    pub fn packed(samples: Vec<Sample>, max_length: usize, pad_id: u32) -> Result<Self> {
        let samples: Vec<Sample> = samples.into_iter().filter(|it| it.targets() > 0).collect();
        if samples.iter().any(|it| it.task_id.is_some()) {
            return Err(PeftError::config("packing", "puts documents of several tasks into a row; leave it out"));
        }
        let rows = pack(&samples, max_length, PackOrder::BestFit)?;
        if rows.is_empty() {
            return Err(PeftError::Invalid(
                "no row has a token to learn: documents are empty or were cut before the completion".into(),
            ));
        }
        Ok(Self { rows: Rows::Packed(rows), padding: Padding::right(pad_id), end: None })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::Samples(rows) => rows.len(),
            Rows::Packed(rows) => rows.len(),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some items as the model gets them.
    ///
    /// # Errors
    /// If there is no item, or some have a task and others none.
    pub fn batch<M: CausalLm>(&self, model: &M, items: &[usize]) -> Result<Batch> {
        match &self.rows {
            Rows::Samples(rows) => {
                let samples: Vec<&Sample> = items.iter().map(|it| &rows[*it]).collect();
                match together(model, &samples)? {
                    Some(rows) => collate_packed(&rows, &self.padding),
                    None => collate(&samples, &self.padding),
                }
            }
            Rows::Packed(rows) => collate_packed(&items.iter().map(|it| &rows[*it]).collect::<Vec<_>>(), &self.padding),
        }
    }

    fn ids(&self, item: usize) -> &[u32] {
        match &self.rows {
            Rows::Samples(rows) => &rows[item].input_ids,
            Rows::Packed(rows) => &rows[item].input_ids,
        }
    }

    fn labels(&self, item: usize) -> &[i64] {
        match &self.rows {
            Rows::Samples(rows) => &rows[item].labels,
            Rows::Packed(rows) => &rows[item].labels,
        }
    }
}

fn same_tokens(ids: &[u32], sequence: &[i64]) -> bool {
    ids.iter().map(|it| i64::from(*it)).eq(sequence.iter().copied())
}

/// Documents in fewer rows than there are documents, none longer than the longest of them; `None` if each has its own row.
fn together<M: CausalLm>(model: &M, samples: &[&Sample]) -> Result<Option<Vec<PackedRow>>> {
    let bound = |it: &&Sample| it.task_id.is_some() || it.type_ids.is_some();
    if !model.supports_packing() || samples.iter().any(bound) {
        return Ok(None);
    }
    let longest = samples.iter().map(|it| it.len()).max().unwrap_or(0);
    let tokens: usize = samples.iter().map(|it| it.len()).sum();
    if tokens > longest * samples.len().saturating_sub(1) {
        return Ok(None);
    }
    let rows = pack(samples, longest, PackOrder::BestFit)?;
    // To look at every parameter takes longer than all the rest.
    Ok(Some(rows).filter(|it| it.len() < samples.len() && forward::can_pack(model)))
}

impl TextData {
    /// The task of a causal language model: documents, prompts with completions, or conversations.
    ///
    /// # Errors
    /// If the file cannot be read, no column is a text, nothing is to be learned, or conversations have no chat template.
    pub fn causal_lm(&self, base: &(impl Pretrained + ?Sized)) -> Result<LanguageModelling> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        let (samples, end) = self.samples(folder, &tokenizer)?;
        let pad = tokenizer.fill_id();
        let task = match self.packing {
            true => LanguageModelling::packed(samples, self.row_length(folder)?, pad),
            false => LanguageModelling::padded(samples, pad),
        };
        // What settings are to blame for is no fault of the file.
        let task = task
            .map_err(|error| if matches!(error, PeftError::Invalid(_)) { error.in_file(&self.file) } else { error });
        Ok(LanguageModelling { end, ..task? })
    }

    /// Samples of a language model: documents, prompts with completions, or conversations. And with what they end.
    fn samples(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<(Vec<Sample>, Option<String>)> {
        let (data, columns) = self.read()?;
        let max_length = self.row_length(folder)?;
        let source = Source::of(&data, &columns, self)?;
        let template = match source {
            Source::Messages(_) | Source::Turns(_) | Source::Instructions(_) => {
                Some(self.template_of(folder, tokenizer)?.ok_or_else(|| {
                    PeftError::bad_file(folder, format!("it has no chat template, which {} need", source.what()))
                })?)
            }
            Source::Completions(_) | Source::Documents(_) => None,
        };
        // What is cut has to be told from what was never there, so the cutting is done below.
        let builder = Preprocessor { max_length: None, ..self.preprocessor(folder, tokenizer)? };
        let reader = Reader { assistant_role: self.assistant_role.clone(), learns_prompts: self.train_on_prompt };
        let prompts = self.prompt_template.as_deref().map(RowTemplate::new).transpose()?;
        let (mut samples, mut tally) = (Vec::new(), Tally::default());
        for row in &data.rows {
            let prompt = || match &prompts {
                Some(template) => template.render(&data, row),
                None => columns.prompt_of(&data, row),
            };
            let conversation = match source {
                Source::Documents(column) => {
                    let task_id = self.task_id(&data, row)?;
                    let whole = builder.text(&data.text(row, column)?).map_err(|error| data.bad_row(row, error))?;
                    let pieces = whole.chunks(max_length);
                    samples.extend(pieces.into_iter().map(|it| Sample { task_id, ..it }));
                    continue;
                }
                Source::Completions(column) => Err((prompt()?, data.text(row, column)?)),
                Source::Messages(column) => Ok(reader.conversation(&data, row, &columns, column)?),
                Source::Turns(parts) => Ok(reader.completion(&data, row, &columns, parts)?),
                Source::Instructions(column) => {
                    Ok(reader.instruction(&data, row, &columns, prompt()?, data.text(row, column)?)?)
                }
            };
            let (before, answers) = match (&conversation, template.as_deref()) {
                (Ok(conversation), Some(template)) => {
                    conversation.messages.iter().for_each(|it| tally.speaks(&it.role));
                    let answers = Answers::of(&conversation.messages);
                    (builder.conversation(template, conversation).map_err(|error| data.bad_row(row, error))?, answers)
                }
                (Err((prompt, completion)), _) => {
                    let sample = builder.completion(prompt, completion);
                    (sample.map_err(|error| data.bad_row(row, error))?, Answers::Learned)
                }
                (Ok(_), None) => return Err(PeftError::Invalid("a conversation has no chat template".into())),
            };
            if self.truncation == Truncation::Refuse && before.len() > max_length {
                let reason = format!("it has {} tokens, more than `max_length`, {max_length}", before.len());
                return Err(data.bad_row(row, reason));
            }
            let mut sample = before.clone();
            sample.truncate(max_length, self.truncation.side());
            tally.count_language(&before, &sample, answers);
            sample.task_id = self.task_id(&data, row)?;
            samples.push(sample);
        }
        tally.say(max_length, &data).map_err(|error| match template.as_ref().and_then(|it| it.file()) {
            Some(file) => PeftError::Invalid(format!("{error}; {} words them", file.display())),
            None => error,
        })?;
        self.say_unread(&data, &source.columns(&columns));
        let end = match tokenizer.eos_id() {
            Some(id) if source.ends_with_eos() => {
                let (token, said) = (tokenizer.token(id).unwrap_or_default(), tokenizer.special().source("eos_token"));
                Some(format!("texts end with {token:?} ({id}), as {} says", said.unwrap_or("the tokenizer")))
            }
            None if source.ends_with_eos() => {
                tracing::warn!(
                    "no file names an end token, so the model does not learn where a text ends: write `eos_token` into \
                     tokenizer_config.json"
                );
                None
            }
            _ => None,
        };
        Ok((samples, end))
    }
}

/// Where the texts of a language model come from: the column, or that of prompts and that of completions.
#[derive(Clone, Copy)]
enum Source<'a> {
    Documents(&'a str),
    Completions(&'a str),
    Messages(&'a str),
    /// Prompt and completion are lists of turns.
    Turns([&'a str; 2]),
    /// Prompts with what was said before.
    Instructions(&'a str),
}

impl<'a> Source<'a> {
    fn of(data: &Dataset, columns: &'a Columns, settings: &TextData) -> Result<Self> {
        if let Some(column) = &columns.messages {
            return Ok(Self::Messages(column));
        }
        let Some(completion) = &columns.completion else {
            return Ok(Self::Documents(required("text", &columns.text, data)?));
        };
        let any = |column: &str, test: fn(&Value) -> bool| {
            data.rows.iter().any(|row| row.fields.get(column).is_some_and(test))
        };
        if let Some(prompt) = &columns.prompt
            && any(completion, is_list_of_turns)
        {
            return Ok(Self::Turns([prompt, completion]));
        }
        let before = [&columns.system, &columns.history].into_iter().flatten();
        let mut filled = before.filter(|column| any(column, |it| is_filled(Some(it))));
        // A template that words the prompt may have put them into it.
        match filled.next().filter(|_| settings.prompt_template.is_none()) {
            Some(_) => Ok(Self::Instructions(completion)),
            None => Ok(Self::Completions(completion)),
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Instructions(_) => "columns `system` and `history`",
            _ => "rows of messages",
        }
    }

    /// Chat templates write end tokens themselves.
    fn ends_with_eos(&self) -> bool {
        matches!(self, Self::Documents(_) | Self::Completions(_))
    }

    fn columns(&self, columns: &'a Columns) -> Vec<&'a Option<String>> {
        let Columns { text, prompt, context, completion, messages, system, history, tools, .. } = columns;
        match self {
            Self::Documents(_) => vec![text],
            Self::Completions(_) => vec![prompt, context, completion],
            Self::Messages(_) => vec![messages, system, tools],
            Self::Turns(_) => vec![prompt, completion, system, tools],
            Self::Instructions(_) => vec![prompt, context, completion, system, history, tools],
        }
    }
}

impl<M: CausalLm> Task<M> for LanguageModelling {
    fn remarks(&self) -> Vec<String> {
        self.end.iter().cloned().collect()
    }

    fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|it| self.labels(it).len()).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.labels(*it).len()).sum()
    }

    fn targets(&self, virtual_tokens: usize, items: &[usize]) -> usize {
        // Behind virtual tokens the first token of a row is predicted too.
        let first = usize::from(virtual_tokens == 0);
        let of = |item: &usize| self.labels(*item).iter().skip(first).filter(|it| **it != IGNORED).count();
        items.iter().map(of).sum()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        let batch = self.batch(model, items)?;
        let hidden = model.hidden(&batch.input(device), None);
        let [size, seq, d_model] = hidden.dims();
        let (rows, next) = predicting_rows(&batch.labels, batch.width, seq - batch.width);
        let hidden = hidden.reshape([size * seq, d_model]).select(0, line(&rows, device));
        let next = line(&next, device);
        let mean = match model.head_weight() {
            Some(weight) => ops::linear_cross_entropy(hidden, weight, next, 0.0),
            None => ops::cross_entropy(model.head(hidden), next),
        };
        Ok(mean.mul_scalar(rows.len() as f64))
    }

    fn places(&self, model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        Ok(Some(self.batch(model, items)?.places(labelled)))
    }

    fn notes(&self, model: &M) -> Vec<String> {
        let note = |sequence: Vec<i64>| {
            let holds = |item: &usize| self.ids(*item).windows(sequence.len()).any(|it| same_tokens(it, &sequence));
            let without = (0..self.len()).filter(|it| !holds(it)).count();
            let rows = self.len();
            (without > 0).then(|| {
                format!(
                    "{without} of {rows} rows do not hold the tokens {sequence:?} that the adapter waits for \
                     (alora_invocation_tokens): it learns nothing from them"
                )
            })
        };
        forward::invocations(model).into_iter().filter_map(note).collect()
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let virtual_tokens = forward::virtual_tokens(model);
        let parts = in_batches(self.len(), batch_size, |items, _| {
            Ok((scalar(&self.loss_sum(model, items, device)?), Task::<M>::targets(self, virtual_tokens, items)))
        })?;
        let sum: f64 = parts.iter().map(|it| it.0).sum();
        let count: usize = parts.iter().map(|it| it.1).sum();
        let mut metrics = Map::new();
        metrics.insert("perplexity".into(), Value::from(metrics::perplexity(sum, count)?));
        Ok(Evaluation { loss: sum / count as f64, metrics })
    }
}
