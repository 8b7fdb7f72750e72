//! Sequence-to-sequence language modelling: a target for every source.

use burn::tensor::{Device, Tensor};
use peft_core::{Adaptable, PeftError, Result, ops};
use peft_models::{EncoderInput, ModelInput, Pretrained, Seq2SeqLm};
use serde_json::{Map, Value};

use crate::data::batch::{Batch, Padding, collate};
use crate::data::columns::required;
use crate::data::row_template::RowTemplate;
use crate::data::sample::{IGNORED, Sample};
use crate::data::tally::Tally;
use crate::data::tensors::{grid, line};
use crate::data::text_data::TextData;
use crate::data::tokenizer::Tokenizer;
use crate::eval::metrics;
use crate::eval::overlap::TextScores;
use crate::generate::config::GenerationPlan;
use crate::generate::seq2seq::generate_targets;
use crate::tasks::in_batches::in_batches;
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of an encoder with a decoder.
#[derive(Debug, Clone)]
pub struct SequenceToSequence {
    sources: Vec<Sample>,
    targets: Vec<Sample>,
    padding: Padding,
    written: Option<Written>,
}

/// How an evaluation generates predictions, to compare them with the targets: `predict_with_generate` of transformers.
#[derive(Debug, Clone)]
pub struct Written {
    /// Turns ids into text.
    pub tokenizer: Tokenizer,
    /// How to generate.
    pub plan: GenerationPlan,
}

impl SequenceToSequence {
    /// Sources, and the targets that belong to them: their `input_ids` are what is to be written, the end token included.
    ///
    /// # Errors
    /// If there are none, not as many of one as of the other, or one of them is empty.
    pub fn new(sources: Vec<Sample>, targets: Vec<Sample>, padding: Padding) -> Result<Self> {
        if sources.is_empty() || sources.len() != targets.len() {
            let counts = format!("{} sources and {} targets", sources.len(), targets.len());
            return Err(PeftError::Invalid(format!("every source needs a target, and there must be some: {counts}")));
        }
        if sources.iter().chain(&targets).any(Sample::is_empty) {
            return Err(PeftError::Invalid("a source or a target has no token; leave empty rows out".into()));
        }
        Ok(Self { sources, targets, padding, written: None })
    }

    /// Has every evaluation generate predictions and measure them: exact matches, ROUGE, BLEU.
    pub fn with_writing(mut self, written: Written) -> Self {
        self.written = Some(written);
        self
    }

    fn source(&self, items: &[usize], device: &Device) -> Result<ModelInput> {
        let samples: Vec<Sample> =
            items.iter().map(|it| Sample { labels: Vec::new(), ..self.sources[*it].clone() }).collect();
        let mut input = collate(&samples, &self.padding)?.input(device);
        // Encoders of this kind know no sentences A and B.
        input.token_type_ids = None;
        Ok(input)
    }

    fn target(&self, items: &[usize]) -> Result<Batch> {
        let samples: Vec<Sample> =
            items.iter().map(|it| Sample::language(self.targets[*it].input_ids.clone())).collect();
        collate(&samples, &self.padding)
    }

    fn measure<M: Seq2SeqLm + Adaptable>(
        &self,
        written: &Written,
        model: &M,
        batch_size: usize,
        device: &Device,
    ) -> Result<[(&'static str, f64); 5]> {
        let texts = in_batches(self.sources.len(), batch_size, |items, _| {
            let texts = generate_targets(model, &self.source(items, device)?, &written.plan, device, |_, _| Ok(()))?;
            texts.iter().map(|it| written.tokenizer.decode(it, true)).collect::<Result<Vec<_>>>()
        })?;
        let mut scores = TextScores::default();
        for (target, text) in self.targets.iter().zip(texts.concat()) {
            scores.add(&written.tokenizer.decode(&target.input_ids, true)?, &text);
        }
        Ok(scores.metrics())
    }
}

/// The loss on the targets of a batch, summed over their tokens; `[1]`.
///
/// # Errors
/// If the encoder reads no such source, or `config.json` does not say how targets begin.
pub(crate) fn target_loss<S: EncoderInput, M: Seq2SeqLm<S>>(
    model: &M,
    source: &S,
    target: &Batch,
    device: &Device,
) -> Result<Tensor<1>> {
    model.check_source(source)?;
    let encoded = model.encode(source);
    let read = model.shift_right(grid(&target.labels, target.rows, target.width, device))?;
    let hidden = model.decode(&ModelInput::ids(read), &encoded, None);
    // The head for what is learned only; virtual tokens of the decoder stand in front.
    let [batch, total, d_model] = hidden.dims();
    let first = total - target.width;
    let (rows, labels): (Vec<i64>, Vec<i64>) = target
        .labels
        .iter()
        .enumerate()
        .filter(|(_, label)| **label != IGNORED)
        .map(|(at, label)| ((at / target.width * total + first + at % target.width) as i64, *label))
        .unzip();
    let hidden = hidden.reshape([batch * total, d_model]).select(0, line(&rows, device));
    let mean = ops::cross_entropy(model.head(hidden), line(&labels, device));
    Ok(mean.mul_scalar(rows.len() as f64))
}

impl TextData {
    /// The task of an encoder with a decoder: prompts are sources, completions are targets.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing or a sequence is empty.
    pub fn seq2seq_lm(&self, base: &(impl Pretrained + ?Sized)) -> Result<SequenceToSequence> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        let (data, columns) = self.read()?;
        let completion = required("completion", &columns.completion, &data)?;
        let builder = self.preprocessor(folder, &tokenizer)?;
        let prompts = self.prompt_template.as_deref().map(RowTemplate::new).transpose()?;
        let (mut sources, mut targets, mut tally) = (Vec::new(), Vec::new(), Tally::default());
        for row in &data.rows {
            let mut encode = |text: &str| {
                let encoded = builder.encode(text, None).map_err(|error| data.bad_row(row, error))?;
                if encoded.ids.is_empty() {
                    return Err(data.bad_row(row, "a text is empty"));
                }
                let sample = Sample { input_ids: encoded.ids, ..Sample::default() };
                tally.count(sample.len() + encoded.cut, &sample);
                Ok(sample)
            };
            let prompt = match &prompts {
                Some(template) => template.render(&data, row)?,
                None => columns.prompt_of(&data, row)?,
            };
            let mut source = encode(&prompt)?;
            source.task_id = self.task_id(&data, row)?;
            sources.push(source);
            targets.push(encode(&data.text(row, completion)?)?);
        }
        tally.say(self.row_length(folder)?, &data)?;
        self.say_unread(&data, &[&columns.prompt, &columns.context, &columns.completion]);
        SequenceToSequence::new(sources, targets, Padding::right(tokenizer.fill_id())).map_err(|error| data.bad(error))
    }
}

impl<M: Seq2SeqLm + Adaptable> Task<M> for SequenceToSequence {
    fn lengths(&self) -> Vec<usize> {
        self.sources.iter().zip(&self.targets).map(|(source, target)| source.len() + target.len()).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.sources[*it].len() + self.targets[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.iter().map(|it| self.targets[*it].len()).sum()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        target_loss(model, &self.source(items, device)?, &self.target(items)?, device)
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.sources.len(), batch_size, |items, _| {
            Ok((scalar(&self.loss_sum(model, items, device)?), Task::<M>::targets(self, 0, items)))
        })?;
        let sum: f64 = parts.iter().map(|it| it.0).sum();
        let count: usize = parts.iter().map(|it| it.1).sum();
        let mut metrics = Map::new();
        metrics.insert("perplexity".into(), Value::from(metrics::perplexity(sum, count)?));
        if let Some(written) = &self.written {
            for (name, value) in self.measure(written, model, batch_size, device)? {
                metrics.insert(name.into(), value.into());
            }
        }
        Ok(Evaluation { loss: sum / count as f64, metrics })
    }
}
