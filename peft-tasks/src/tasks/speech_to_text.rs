//! Speech recognition: a text for every recording.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use peft_core::{Adaptable, PeftError, Result};
use peft_models::{AudioInput, Pretrained, Seq2SeqLm};
use serde_json::{Map, Value};

use crate::data::audio::{FeatureExtractor, Features, Recording, Recordings};
use crate::data::batch::{Batch, Padding, collate};
use crate::data::dataset::{Dataset, Row, kind};
use crate::data::sample::{Sample, Truncation};
use crate::data::tally::Tally;
use crate::data::text_data::TextData;
use crate::data::tokenizer::Tokenizer;
use crate::eval::metrics;
use crate::eval::word_errors::{ErrorRate, TextNormalizer};
use crate::generate::speech::{SpeechConfig, SpeechPlan, SpeechRequest, Transcript, batch_of, transcribe};
use crate::tasks::in_batches::{in_batches, over_batches};
use crate::tasks::sequence_to_sequence::target_loss;
use crate::tasks::task::{Evaluation, Task, scalar};

/// Usual names of the column of recordings.
const AUDIO: [&str; 8] = ["audio", "path", "file", "file_name", "filename", "audio_path", "audio_filepath", "wav"];

/// Usual names of the column of transcripts.
const TEXT: [&str; 5] = ["text", "sentence", "transcription", "transcript", "normalized_text"];

/// Column of the language of a row, which goes before that of all.
const LANGUAGE: &str = "language";

/// The task of a model that writes what it hears.
#[derive(Debug)]
pub struct SpeechToText {
    recordings: Recordings,
    targets: Vec<Sample>,
    texts: Vec<String>,
    padding: Padding,
    written: Option<WrittenSpeech>,
}

/// How an evaluation writes transcripts, to compare them with what was said.
#[derive(Debug, Clone)]
pub struct WrittenSpeech {
    /// Turns ids into text.
    pub tokenizer: Tokenizer,
    /// How to write.
    pub plan: SpeechPlan,
}

impl SpeechToText {
    /// Recordings, what was said in them, and the tokens that are to be written for that: `input_ids` of `targets`, from the
    /// language to the end token.
    ///
    /// # Errors
    /// If there are none, or not as many of one as of the others.
    pub fn new(recordings: Recordings, texts: Vec<String>, targets: Vec<Sample>, padding: Padding) -> Result<Self> {
        let counts = [recordings.items().len(), texts.len(), targets.len()];
        if counts[0] == 0 || counts != [counts[0]; 3] || targets.iter().any(Sample::is_empty) {
            return Err(PeftError::Invalid(format!(
                "every recording needs a transcript of at least one token, and there must be some: {} recordings, {} texts, \
                 {} targets",
                counts[0], counts[1], counts[2]
            )));
        }
        Ok(Self { recordings, targets, texts, padding, written: None })
    }

    /// Has every evaluation write transcripts and measure them: word and character error rate.
    pub fn with_writing(mut self, written: WrittenSpeech) -> Self {
        self.written = Some(written);
        self
    }

    fn source(&self, items: &[usize], device: &Device) -> Result<AudioInput> {
        let features: Vec<Features> = items.iter().map(|it| self.recordings.window(*it)).collect::<Result<_>>()?;
        batch_of(&features, device)
    }

    fn target(&self, items: &[usize]) -> Result<Batch> {
        let samples: Vec<Sample> =
            items.iter().map(|it| Sample::language(self.targets[*it].input_ids.clone())).collect();
        collate(&samples, &self.padding)
    }

    /// The error rates of transcripts: of words, of characters, and of words without case and punctuation.
    fn measure<M: Seq2SeqLm<AudioInput> + Adaptable>(
        &self,
        written: &WrittenSpeech,
        model: &M,
        batch_size: usize,
        device: &Device,
    ) -> Result<[(&'static str, f64); 3]> {
        let normalizer = TextNormalizer::new()?;
        let [mut words, mut characters, mut plain] = [ErrorRate::default(); 3];
        // A recording that is longer than the window is written with times, which would change what is written for others.
        let (long, short): (Vec<usize>, Vec<usize>) =
            (0..self.texts.len()).partition(|it| self.recordings.is_long(*it));
        let mut batches: Vec<&[usize]> = short.chunks(batch_size.max(1)).collect();
        batches.extend(long.chunks(1));
        let frames = self.recordings.extractor().config().frames();
        let texts = over_batches(&batches, |chunk, next| {
            let is_long = self.recordings.is_long(chunk[0]);
            if !next.iter().any(|it| self.recordings.is_long(*it)) {
                self.recordings.announce(next);
            }
            let load = |it: &usize| if is_long { self.recordings.whole(*it) } else { self.recordings.window(*it) };
            let features: Vec<Features> = chunk.iter().map(load).collect::<Result<_>>()?;
            let transcripts = transcribe(model, &features, frames, &written.plan, device, |_, _| Ok(()))?;
            let text = |it: &Transcript| written.tokenizer.decode(&it.words(&written.plan), true);
            transcripts.iter().map(text).collect::<Result<Vec<String>>>()
        })?;
        for (item, text) in batches.concat().into_iter().zip(texts.concat()) {
            let said = &self.texts[item];
            words.add_words(said, &text);
            characters.add_characters(said, &text);
            plain.add_words(&normalizer.apply(said)?, &normalizer.apply(&text)?);
        }
        Ok([("wer", words.rate()), ("cer", characters.rate()), ("normalized_wer", plain.rate())])
    }
}

impl TextData {
    /// The files of recordings that a column names.
    ///
    /// # Errors
    /// If the data file cannot be read, or has no such column.
    pub fn recordings(&self) -> Result<Vec<PathBuf>> {
        let data = self.data()?;
        let column = self.columns.of_part_called("audio", &AUDIO, &data)?;
        data.rows.iter().map(|row| audio_path(&data, row, &column)).collect()
    }

    /// The task of a model that writes what it hears: a column holds the names of recordings, relative to the data file, and
    /// another what is said in them. A column `language` goes before the language that is asked for.
    ///
    /// # Errors
    /// If the file or a recording cannot be read, a column is missing, or the model does not know a language.
    pub fn speech_to_text(&self, base: &(impl Pretrained + ?Sized), request: &SpeechRequest) -> Result<SpeechToText> {
        let folder = base.folder()?;
        let (tokenizer, config) = (self.tokenizer_of(folder)?, SpeechConfig::load(folder)?);
        let extractor = FeatureExtractor::load(folder)?;
        if self.truncation == Truncation::Left {
            return Err(PeftError::config(
                "truncation",
                "is `left`, but recordings and transcripts are cut at their end",
            ));
        }
        let data = self.data()?;
        let audio = self.columns.of_part_called("audio", &AUDIO, &data)?;
        let files = self.recordings()?;
        let text = match &self.columns.text {
            Some(column) => column.clone(),
            None => self.columns.of_part_called("text", &TEXT, &data)?,
        };
        let end = config.generation.plan()?.eos.first().copied().or(tokenizer.eos_id());
        let end = end.ok_or_else(|| PeftError::config("eos_token_id", "is in no file of the model"))?;
        let limit = self.row_length(folder)?;
        if request.language.is_none() && config.is_multilingual() && !data.columns().iter().any(|it| it == LANGUAGE) {
            tracing::warn!(
                "no language is given: labels name neither language nor task, which transcripts begin with later on"
            );
        }
        let (mut recordings, mut texts, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut tally = Tally::default();
        for (row, file) in data.rows.iter().zip(files) {
            recordings.push(Recording::open(file)?);
            let said = data.text(row, &text)?;
            let of_row = row.fields.get(LANGUAGE).and_then(Value::as_str).filter(|it| !it.is_empty());
            let language = of_row.map(str::to_owned).or_else(|| request.language.clone());
            let prefix = config.label_prefix(&SpeechRequest { language, ..request.clone() });
            let mut input_ids = prefix.map_err(|error| data.bad_row(row, error))?;
            input_ids.extend(tokenizer.ids(&said, false).map_err(|error| data.bad_row(row, error))?);
            input_ids.push(end);
            let mut sample = Sample { input_ids, ..Sample::default() };
            let whole = sample.len();
            if whole > limit && self.truncation == Truncation::Refuse {
                let reason = format!("its transcript has {whole} tokens, more than {limit}, and nothing may be cut");
                return Err(data.bad_row(row, reason));
            }
            sample.truncate(limit, Truncation::Right.side());
            tally.count(whole, &sample);
            targets.push(sample);
            texts.push(said);
        }
        tally.say(limit, &data)?;
        let window = extractor.config().chunk_length;
        let recordings = Recordings::new(recordings, extractor);
        let long: Vec<usize> = (0..texts.len()).filter(|it| recordings.is_long(*it)).collect();
        if let Some(first) = long.first() {
            let first = recordings.items()[*first].path.display();
            let all =
                format!("{} of {} recordings are longer than {window} seconds ({first})", long.len(), texts.len());
            if self.truncation == Truncation::Refuse {
                return Err(PeftError::bad_file(&self.file, format!("{all}, and nothing may be cut")));
            }
            tracing::warn!("{all}: a loss counts their first {window} seconds against the whole transcript");
        }
        let read = [Some(audio), Some(text), Some(LANGUAGE.to_owned())];
        self.say_unread(&data, &read.iter().collect::<Vec<_>>());
        SpeechToText::new(recordings, texts, targets, Padding::right(tokenizer.fill_id()))
    }
}

/// The file of a row's recording; its name is relative to the data file. What `datasets` writes is an object with a `path`.
fn audio_path(data: &Dataset, row: &Row, column: &str) -> Result<PathBuf> {
    let value = data.value(row, column)?;
    let name = value.as_str().or_else(|| value.get("path").and_then(Value::as_str)).filter(|it| !it.trim().is_empty());
    let name = name.ok_or_else(|| {
        data.bad_row(row, format!("column `{column}` is {}, expected the name of a recording", kind(value)))
    })?;
    let folder = data.path(row).parent().unwrap_or(Path::new(""));
    Ok(folder.join(name))
}

impl<M: Seq2SeqLm<AudioInput> + Adaptable> Task<M> for SpeechToText {
    fn lengths(&self) -> Vec<usize> {
        self.targets.iter().map(Sample::len).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.targets[*it].len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        Task::<M>::tokens(self, items)
    }

    fn announce(&self, items: &[usize]) {
        self.recordings.announce(items);
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        target_loss(model, &self.source(items, device)?, &self.target(items)?, device)
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.targets.len(), batch_size, |items, next| {
            self.recordings.announce(next);
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
