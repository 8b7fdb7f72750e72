//! From a data file and a tokenizer to a task.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};
use peft_models::common::config::RawConfig;
use peft_tasks::data::chat::{ChatTemplate, messages};
use peft_tasks::data::columns::Columns;
use peft_tasks::data::dataset::{Dataset, Row, TextRows};
use peft_tasks::data::labels::LabelSet;
use peft_tasks::data::sample::{Padding, Sample, SampleBuilder, Side};
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::tasks::language_modelling::LanguageModelling;
use peft_tasks::tasks::masked_language_modelling::{MaskedLanguageModelling, Masking};
use peft_tasks::tasks::question_answering::{Question, QuestionAnswering, windows};
use peft_tasks::tasks::sequence_classification::SequenceClassification;
use peft_tasks::tasks::sequence_to_sequence::SequenceToSequence;
use peft_tasks::tasks::similarity::Similarity;
use peft_tasks::tasks::token_classification::TokenClassification;
use serde_json::Value;

/// Where the rows come from and how they become samples.
#[derive(Debug, Clone, Default)]
pub struct TextData {
    /// JSONL, JSON, CSV, TSV or plain text.
    pub file: PathBuf,
    /// Which column is what; the usual names are recognised.
    pub columns: Columns,
    /// Longest row in tokens. Longer texts are cut into pieces, longer answers and sentences are cut off.
    pub max_length: Option<usize>,
    /// Positions of the model that a prompt takes up before every row.
    pub reserved: usize,
    /// Between how many tasks a prompt tells. Above 1 the column `task_id` says which one a row is of.
    pub tasks: usize,
    /// Several texts in a row.
    pub packing: bool,
    /// Whether prompts are learned too.
    pub train_on_prompt: bool,
    /// Tokens of a long text that the next window repeats, when answers are looked for; a third of `max_length` if not
    /// set.
    pub doc_stride: Option<usize>,
}

/// Longest row if neither the user nor the model says: rows of texts must end somewhere.
const MAX_LENGTH: usize = 512;
/// Column of the task of a row, called as the argument of the reference's models is, in the singular.
const TASK_COLUMN: &str = "task_id";

impl TextData {
    fn read(&self) -> Result<(Dataset, Columns)> {
        let data = Dataset::read(&self.file, TextRows::Document)?;
        let columns = self.columns.clone().or_detected(&data.columns())?;
        Ok((data, columns))
    }

    /// The task that a row is of, if the prompt wants to know.
    fn task_id(&self, data: &Dataset, row: &Row) -> Result<Option<i64>> {
        if self.tasks <= 1 {
            return Ok(None);
        }
        match data.value(row, TASK_COLUMN)?.as_u64() {
            Some(id) if id < self.tasks as u64 => Ok(Some(id as i64)),
            _ => {
                let reason = format!("column `{TASK_COLUMN}` must hold the number of a task, 0 to {}", self.tasks - 1);
                Err(data.bad_row(row, reason))
            }
        }
    }

    fn max_length(&self, model: &Path) -> Result<usize> {
        let raw = RawConfig::read(model)?;
        let named = ["n_positions", "max_position_embeddings"].iter().find_map(|it| raw.json.get(*it)?.as_u64());
        let limit = match raw.model_type()? {
            // Their positions are distances, which have no end; `n_positions` says what T5 was trained on.
            "t5" | "mt5" => None,
            // Positions count from one behind the padding token.
            "roberta" | "xlm-roberta" => {
                let first = raw.json.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1) + 1;
                named.map(|it| it.saturating_sub(first))
            }
            _ => named,
        };
        let limit = limit.map_or(usize::MAX, |it| (it as usize).saturating_sub(self.reserved));
        let wanted = self.max_length.unwrap_or(MAX_LENGTH.min(limit));
        if wanted > limit {
            let prompt = if self.reserved > 0 { " behind the prompt" } else { "" };
            let reason = format!("is {wanted}, but the model has {limit} positions{prompt}");
            return Err(PeftError::config("max_length", reason));
        }
        Ok(wanted)
    }

    /// Samples of a language model: texts, prompts with completions, or conversations.
    pub fn language_samples(&self, model: &Path, tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
        let (data, columns) = self.read()?;
        let max_length = self.max_length(model)?;
        let mut builder = SampleBuilder::new(tokenizer);
        builder.train_on_prompt = self.train_on_prompt;
        let mut samples = Vec::new();
        let template =
            match &columns.messages {
                Some(_) => Some(ChatTemplate::load(model, tokenizer.special())?.ok_or_else(|| {
                    PeftError::bad_file(model, "it has no chat template, which rows of messages need")
                })?),
                None => None,
            };
        for row in &data.rows {
            let mut of_row = self.language_row(&data, row, &columns, template.as_ref(), &mut builder, max_length)?;
            let task_id = self.task_id(&data, row)?;
            of_row.iter_mut().for_each(|it| it.task_id = task_id);
            samples.extend(of_row);
        }
        Ok(samples)
    }

    fn language_row(
        &self,
        data: &Dataset,
        row: &Row,
        columns: &Columns,
        template: Option<&ChatTemplate>,
        builder: &mut SampleBuilder<'_>,
        max_length: usize,
    ) -> Result<Vec<Sample>> {
        if let (Some(column), Some(template)) = (&columns.messages, template) {
            builder.max_length = Some(max_length);
            return Ok(vec![builder.chat(template, &messages(data, row, column)?)?]);
        }
        if let Some(column) = &columns.completion {
            builder.max_length = Some(max_length);
            let (prompt, completion) = (columns.prompt_of(data, row)?, data.text(row, column)?);
            return Ok(vec![builder.completion(&prompt, &completion)?]);
        }
        builder.max_length = None;
        let column = peft_tasks::data::columns::required("text", &columns.text)?;
        Ok(builder.text(&data.text(row, column)?)?.chunks(max_length))
    }

    /// The task of a causal language model.
    pub fn language_modelling(&self, model: &Path, tokenizer: &Tokenizer) -> Result<LanguageModelling> {
        let samples = self.language_samples(model, tokenizer)?;
        let pad = tokenizer.pad_id().unwrap_or_else(|| tokenizer.fill_id());
        if self.packing {
            LanguageModelling::packed(samples, self.max_length(model)?, pad)
        } else {
            LanguageModelling::padded(samples, pad)
        }
    }

    /// The task of a masked language model: texts of one column, of which a share of the words is hidden. What is longer
    /// than a row is cut off.
    pub fn masked_language_modelling(
        &self,
        model: &Path,
        tokenizer: &Tokenizer,
        share: f64,
        seed: u64,
    ) -> Result<MaskedLanguageModelling> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(PeftError::config("masked", format!("is {share}, expected a share in (0, 1]")));
        }
        let mask = tokenizer.mask_id().ok_or_else(|| {
            PeftError::bad_file(model, "its tokenizer names no `mask_token`, which masked words need")
        })?;
        let masking = Masking { mask, vocab: tokenizer.vocab_size(), share, seed };
        let (data, columns) = self.read()?;
        let column = peft_tasks::data::columns::required("text", &columns.text)?;
        let max_length = self.max_length(model)?;
        let mut samples = Vec::new();
        for (number, row) in data.rows.iter().enumerate() {
            let text = tokenizer.encode_within(&data.text(row, column)?, None, max_length)?;
            let task_id = self.task_id(&data, row)?;
            samples.push(Sample { task_id, ..masking.hide(number as u64, &text) });
        }
        MaskedLanguageModelling::new(samples, Padding::right(tokenizer.fill_id()))
    }

    /// What the label column holds.
    pub fn label_set(&self) -> Result<LabelSet> {
        let (data, columns) = self.read()?;
        LabelSet::learn(&data, peft_tasks::data::columns::required("label", &columns.label)?, None)
    }

    /// The task of a sequence classifier. `side` is where shorter rows are filled up.
    pub fn classification(
        &self,
        model: &Path,
        tokenizer: &Tokenizer,
        set: &LabelSet,
    ) -> Result<SequenceClassification> {
        let (data, columns) = self.read()?;
        let (text, label) = (
            peft_tasks::data::columns::required("text", &columns.text)?,
            peft_tasks::data::columns::required("label", &columns.label)?,
        );
        let mut builder = SampleBuilder::new(tokenizer);
        builder.max_length = Some(self.max_length(model)?);
        builder.truncate = Side::Right;
        let (mut samples, mut labels) = (Vec::new(), Vec::new());
        for row in &data.rows {
            let pair = columns.text_pair.as_ref().map(|it| data.text(row, it)).transpose()?;
            let mut sample = builder.sequence(&data.text(row, text)?, pair.as_deref())?;
            sample.task_id = self.task_id(&data, row)?;
            if sample.is_empty() {
                return Err(data.bad_row(row, "the text is empty"));
            }
            samples.push(sample);
            labels.push(set.label(&data, row, label)?);
        }
        let pad = tokenizer.pad_id().unwrap_or_else(|| tokenizer.fill_id());
        SequenceClassification::new(samples, labels, set.clone(), Padding::right(pad))
    }

    /// The task of a model that turns texts into vectors: pairs of texts, and a score for each if a label column is named
    /// or found.
    pub fn similarity(&self, model: &Path, tokenizer: &Tokenizer) -> Result<Similarity> {
        let (data, columns) = self.read()?;
        let first = peft_tasks::data::columns::required("text", &columns.text)?;
        let second = peft_tasks::data::columns::required("text_pair", &columns.text_pair)?;
        let mut builder = SampleBuilder::new(tokenizer);
        builder.max_length = Some(self.max_length(model)?);
        let (mut firsts, mut seconds, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for row in &data.rows {
            for (texts, column) in [(&mut firsts, first), (&mut seconds, second)] {
                let mut sample = builder.sequence(&data.text(row, column)?, None)?;
                sample.task_id = self.task_id(&data, row)?;
                texts.push(sample);
            }
            if let Some(column) = &columns.label {
                let text = data.text(row, column)?;
                let score = text.trim().parse();
                scores.push(score.map_err(|_| {
                    data.bad_row(row, format!("column `{column}` holds `{text}`, expected how alike the texts are"))
                })?);
            }
        }
        Similarity::new(firsts, seconds, scores, Padding::right(tokenizer.fill_id()))
    }

    /// Words and tags: lists in two columns, by their usual names or those that were given for text and label.
    fn words(&self) -> Result<(Dataset, String, String)> {
        let data = Dataset::read(&self.file, TextRows::Lines)?;
        let columns = data.columns();
        let find = |given: &Option<String>, what: &'static str, usual: &[&str]| {
            let hit = usual.iter().find_map(|it| columns.iter().find(|name| name == it)).cloned();
            given.clone().or(hit).ok_or_else(|| {
                PeftError::config(what, format!("is not set, and no column is called {}", usual.join(", ")))
            })
        };
        let words = find(&self.columns.text, "text", &["tokens", "words", "text"])?;
        let tags = find(&self.columns.label, "label", &["ner_tags", "tags", "pos_tags", "labels", "label"])?;
        Ok((data, words, tags))
    }

    /// The tags that a file of words holds: names in order, or numbers from 0.
    pub fn tag_names(&self) -> Result<Vec<String>> {
        let (data, _, column) = self.words()?;
        let mut names = BTreeSet::new();
        let mut largest = None;
        for row in &data.rows {
            for tag in list(&data, row, &column)? {
                match (tag.as_str(), tag.as_u64()) {
                    (Some(name), _) => names.extend([name.to_owned()]),
                    (None, Some(number)) if number < MAX_TAGS => largest = largest.max(Some(number)),
                    _ => return Err(data.bad_row(row, format!("column `{column}` holds {tag}, expected tags"))),
                }
            }
        }
        match (names.is_empty(), largest) {
            (false, None) => Ok(names.into_iter().collect()),
            (true, Some(largest)) => Ok((0..=largest).map(|it| it.to_string()).collect()),
            (true, None) => Err(PeftError::bad_file(&self.file, format!("column `{column}` holds no tag"))),
            (false, Some(_)) => {
                Err(PeftError::bad_file(&self.file, format!("column `{column}` holds names as well as numbers")))
            }
        }
    }

    /// The task of a token classifier. A word's tag goes to its first token.
    pub fn token_classification(
        &self,
        model: &Path,
        tokenizer: &Tokenizer,
        names: &[String],
    ) -> Result<TokenClassification> {
        let (data, words, tags) = self.words()?;
        let mut builder = SampleBuilder::new(tokenizer);
        builder.max_length = Some(self.max_length(model)?);
        let mut samples = Vec::new();
        for row in &data.rows {
            let items = list(&data, row, &words)?;
            let text = items.iter().map(|it| match it.as_str() {
                Some(word) => Ok(word.to_owned()),
                None => Err(data.bad_row(row, format!("column `{words}` holds {it}, expected words"))),
            });
            let text = text.collect::<Result<Vec<_>>>()?;
            let number = |tag: &Value| {
                let name = tag.as_str().map_or_else(|| tag.to_string(), str::to_owned);
                let place = names.iter().position(|it| *it == name);
                place
                    .map(|it| it as i64)
                    .ok_or_else(|| data.bad_row(row, format!("tag `{name}` is none of {}", names.join(", "))))
            };
            let numbers = list(&data, row, &tags)?.iter().map(number).collect::<Result<Vec<_>>>()?;
            let mut sample = builder.words(&text, &numbers).map_err(|error| data.bad_row(row, error))?;
            sample.task_id = self.task_id(&data, row)?;
            samples.push(sample);
        }
        TokenClassification::new(samples, names.to_vec(), Padding::right(tokenizer.fill_id()))
    }

    /// Questions about texts in SQuAD's columns, or those that were given for text, prompt and label.
    fn questions(&self) -> Result<(Dataset, Vec<Question>)> {
        let data = Dataset::read(&self.file, TextRows::Lines)?;
        let columns = data.columns();
        let find = |given: &Option<String>, usual: &str| {
            let hit = columns.iter().find(|it| it.eq_ignore_ascii_case(usual)).cloned();
            given.clone().or(hit).ok_or_else(|| {
                PeftError::config("data", format!("has no column `{usual}`; it has {}", columns.join(", ")))
            })
        };
        let [context, question, answers] = [
            find(&self.columns.text, "context")?,
            find(&self.columns.prompt, "question")?,
            find(&self.columns.label, "answers")?,
        ];
        let read = |row: &Row| {
            let text = data.text(row, &context)?;
            let places = answer_places(data.value(row, &answers)?, &text)
                .map_err(|reason| data.bad_row(row, format!("column `{answers}`: {reason}")))?;
            // transformers takes spaces off the front of questions, which may be so many that no text fits behind.
            let question = data.text(row, &question)?.trim_start().to_owned();
            Ok(Question { question, context: text, answers: places })
        };
        let questions = data.rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok((data, questions))
    }

    /// The task of a model that finds answers. With an adapter, the reference does not tell the model which text a token
    /// is of (`PeftModelForQuestionAnswering.forward`), so `adapted` leaves that out too.
    pub fn question_answering(&self, model: &Path, tokenizer: &Tokenizer, adapted: bool) -> Result<QuestionAnswering> {
        let (data, questions) = self.questions()?;
        let max_length = self.max_length(model)?;
        let stride = self.doc_stride.unwrap_or(max_length / 3);
        let cut = |(row, asked): (&Row, &Question)| {
            let mut windows =
                windows(tokenizer, asked, max_length, stride).map_err(|error| data.bad_row(row, error))?;
            if adapted {
                windows.iter_mut().for_each(|it| it.sample.type_ids = None);
            }
            Ok(windows)
        };
        let windows = data.rows.iter().zip(&questions).map(cut).collect::<Result<Vec<_>>>()?;
        QuestionAnswering::new(questions, windows, Padding::right(tokenizer.fill_id()))
    }

    /// The task of an encoder with a decoder: prompts are sources, completions are targets.
    pub fn sequence_to_sequence(&self, model: &Path, tokenizer: &Tokenizer) -> Result<SequenceToSequence> {
        let (data, columns) = self.read()?;
        let completion = peft_tasks::data::columns::required("completion", &columns.completion)?;
        let max_length = self.max_length(model)?;
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        for row in &data.rows {
            let encode = |text: &str| {
                let encoded = tokenizer.encode_within(text, None, max_length)?;
                if encoded.ids.is_empty() {
                    return Err(data.bad_row(row, "a text is empty"));
                }
                Ok(Sample { input_ids: encoded.ids, ..Sample::default() })
            };
            let mut source = encode(&columns.prompt_of(&data, row)?)?;
            source.task_id = self.task_id(&data, row)?;
            sources.push(source);
            targets.push(encode(&data.text(row, completion)?)?);
        }
        SequenceToSequence::new(sources, targets, Padding::right(tokenizer.fill_id()))
    }
}

/// More tags than any scheme has: beyond it the column holds something else.
const MAX_TAGS: u64 = 10_000;

/// Where answers stand in their text, in bytes: SQuAD's `{"text": […], "answer_start": […]}`, a list of `{"text", "answer_start"}`, or
/// either as JSON in a cell. Starts count characters, as in Python.
fn answer_places(value: &Value, context: &str) -> std::result::Result<Vec<Range<usize>>, String> {
    let place = |text: &Value, start: &Value| {
        let (Some(text), Some(start)) = (text.as_str(), start.as_u64()) else {
            return Err(format!("{text} and {start} are no text and its start"));
        };
        let first = context.char_indices().map(|it| it.0).nth(start as usize);
        let place = first.map(|first| first..first + text.len());
        match place.filter(|it| context.get(it.clone()) == Some(text)) {
            Some(place) => Ok(place),
            None => Err(format!("`{text}` does not stand at character {start} of the text")),
        }
    };
    let shape = r#"expected {"text": […], "answer_start": […]}"#;
    match value {
        Value::String(cell) => match serde_json::from_str::<Value>(cell) {
            Ok(Value::String(_)) | Err(_) => Err(format!("it holds `{cell}`, {shape}")),
            Ok(value) => answer_places(&value, context),
        },
        Value::Array(items) => items.iter().map(|it| place(&it["text"], &it["answer_start"])).collect(),
        Value::Object(fields) => {
            let list = |name: &str| fields.get(name).and_then(Value::as_array);
            let (Some(texts), Some(starts)) = (list("text"), list("answer_start")) else {
                return Err(format!("it holds {value}, {shape}"));
            };
            if texts.len() != starts.len() {
                return Err(format!("it holds {} texts and {} starts", texts.len(), starts.len()));
            }
            texts.iter().zip(starts).map(|(text, start)| place(text, start)).collect()
        }
        other => Err(format!("it holds {other}, {shape}")),
    }
}

/// A list in a column; text is a list of words.
fn list(data: &Dataset, row: &Row, column: &str) -> Result<Vec<Value>> {
    match data.value(row, column)? {
        Value::Array(items) => Ok(items.clone()),
        Value::String(text) => Ok(text.split_whitespace().map(Value::from).collect()),
        other => Err(data.bad_row(row, format!("column `{column}` holds {other}, expected a list"))),
    }
}

impl TextData {
    /// A file.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), ..Self::default() }
    }

    /// The task of a causal language model.
    pub fn causal_lm(&self, base: &impl peft_models::Pretrained) -> Result<LanguageModelling> {
        let folder = base.folder()?;
        self.language_modelling(folder, &Tokenizer::load(folder)?)
    }
}
