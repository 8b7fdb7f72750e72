//! The log of a run: one JSON object a line, appended as the run goes.
//!
//! A process may be killed at any time. A line that was cut off is left out when reading, and a resumed run forgets
//! what it is about to do again.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use peft_core::files::plain::read_bytes;
use peft_core::{PeftError, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Name of the log in the output folder of a run.
pub const LOG_FILE: &str = "train_log.jsonl";

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// What training did since the last such line.
    Train(TrainRecord),
    /// What an evaluation found.
    Eval(EvalRecord),
}

/// What training did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainRecord {
    /// Optimiser steps done.
    pub step: usize,
    /// Epochs done, with a fraction.
    pub epoch: f64,
    /// Mean loss a token (or a row) since the last line. Written as `null` when it is not finite.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Norm of all gradients before clipping, where it was computed.
    pub grad_norm: Option<f64>,
    /// Tokens seen since the start, filling excluded; or what else `unit` says.
    pub tokens: u64,
    /// Tokens a second since the last line, or what else `unit` says.
    pub tokens_per_second: f64,
    /// What is counted: `tokens`, or `pictures` where a row is none of tokens. Written where it is not `tokens`.
    #[serde(skip_serializing_if = "is_usual")]
    pub unit: Cow<'static, str>,
    /// Seconds since the start of the run, earlier parts of a resumed one included.
    pub seconds: f64,
}

impl Default for TrainRecord {
    fn default() -> Self {
        Self {
            step: 0,
            epoch: 0.0,
            loss: 0.0,
            lr: 0.0,
            grad_norm: None,
            tokens: 0,
            tokens_per_second: 0.0,
            unit: TOKENS.into(),
            seconds: 0.0,
        }
    }
}

/// What most tasks count.
pub(crate) const TOKENS: &str = "tokens";

fn is_usual(unit: &str) -> bool {
    unit == TOKENS
}

/// What an evaluation found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalRecord {
    /// Optimiser steps done.
    pub step: usize,
    /// Epochs done, with a fraction.
    pub epoch: f64,
    /// Mean loss over the evaluation rows. Written as `null` when it is not finite.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Seconds that the evaluation took.
    pub seconds: f64,
    /// Accuracy, perplexity and what else a task measures.
    #[serde(flatten)]
    pub metrics: Map<String, Value>,
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|it| it.unwrap_or(f64::NAN))
}

impl Record {
    /// Optimiser steps done at this line.
    pub fn step(&self) -> usize {
        match self {
            Self::Train(it) => it.step,
            Self::Eval(it) => it.step,
        }
    }
}

/// A log that is being written.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

impl RunLog {
    /// Goes on with a log after `step` optimiser steps: lines of later steps are dropped, and so is a line that was cut
    /// off. What stays keeps its bytes. A log that is missing is started, and its folder is made.
    ///
    /// # Errors
    /// The file is no log.
    pub fn resume(path: impl AsRef<Path>, step: usize) -> Result<Self> {
        Self::resume_if(path.as_ref(), |record| record.step() <= step)
    }

    /// The same for a run that goes on with the evaluation of this step.
    pub(crate) fn resume_before_evaluation(path: &Path, step: usize) -> Result<Self> {
        let stays = |record: &Record| match record {
            Record::Train(it) => it.step <= step,
            Record::Eval(it) => it.step < step,
        };
        Self::resume_if(path, stays)
    }

    fn resume_if(path: &Path, stays: impl Fn(&Record) -> bool) -> Result<Self> {
        if path.exists() {
            let kept = lines(path)?.iter().take_while(|(record, _)| stays(record)).map(|it| it.1).last();
            // Only ever shortened: a crash leaves either the old log or the new one.
            let file = OpenOptions::new().write(true).open(path).map_err(PeftError::io("open", path))?;
            file.set_len(kept.unwrap_or(0)).map_err(PeftError::io("write", path))?;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(PeftError::io("create", folder))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(PeftError::io("open", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends a line. It is handed to the system at once: a killed process loses no whole line.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let text = line(&self.path, record)?;
        self.file.write_all(text.as_bytes()).map_err(PeftError::io("write", &self.path))
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a log. A last line that was cut off is left out.
///
/// # Errors
/// There is no file, or another line is no record.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    Ok(lines(path.as_ref())?.into_iter().map(|it| it.0).collect())
}

/// The records of a log, each with the byte that its line ends before.
fn lines(path: &Path) -> Result<Vec<(Record, u64)>> {
    // A cut may fall inside a character.
    let bytes = read_bytes(path)?;
    let (mut records, mut end) = (Vec::new(), 0);
    for (index, line) in bytes.split_inclusive(|it| *it == b'\n').enumerate() {
        end += line.len() as u64;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        // Also one that lacks nothing but its end: what is appended would go on in the same line.
        if !line.ends_with(b"\n") {
            break;
        }
        match serde_json::from_slice(line) {
            Ok(record) => records.push((record, end)),
            Err(error) => return Err(PeftError::bad_row(path, index + 1, format!("not a line of a run log: {error}"))),
        }
    }
    Ok(records)
}

fn line(path: &Path, record: &Record) -> Result<String> {
    let json = serde_json::to_string(record).map_err(|error| PeftError::bad_file(path, error))?;
    Ok(json + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: usize, loss: f64) -> Record {
        Record::Train(TrainRecord { step, loss, grad_norm: Some(1.5), ..TrainRecord::default() })
    }

    fn eval(step: usize) -> Record {
        let metrics = Map::from_iter([("accuracy".to_owned(), Value::from(0.5))]);
        Record::Eval(EvalRecord { step, loss: 2.0, metrics, ..EvalRecord::default() })
    }

    fn steps(path: &Path) -> Vec<usize> {
        read(path).unwrap().iter().map(Record::step).collect()
    }

    #[test]
    fn records_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/log.jsonl");
        let mut log = RunLog::resume(&path, 0).unwrap();
        let records = [train(1, 2.5), train(2, 0.1 + 0.2), eval(2)];
        records.iter().for_each(|it| log.append(it).unwrap());
        assert_eq!(read(&path).unwrap(), records);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"kind":"train","step":1,"epoch":0.0,"loss":2.5,"#), "{text}");
        assert!(text.contains(r#""accuracy":0.5}"#), "{text}");
    }

    #[test]
    fn a_loss_that_is_no_number_comes_back_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        RunLog::resume(&path, 0).unwrap().append(&train(1, f64::NAN)).unwrap();
        assert!(matches!(&read(&path).unwrap()[..], [Record::Train(it)] if it.loss.is_nan()));
    }

    #[test]
    fn resuming_drops_what_will_be_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = RunLog::resume(&path, 0).unwrap();
        [train(1, 1.0), train(2, 1.0), eval(2), train(3, 1.0)].iter().for_each(|it| log.append(it).unwrap());
        log.file.write_all(b"{\"kind\":\"train\",\"st").unwrap();
        assert_eq!(steps(&path), [1, 2, 2, 3]);

        let before = std::fs::read(&path).unwrap();
        let mut log = RunLog::resume(&path, 2).unwrap();
        assert_eq!(steps(&path), [1, 2, 2]);
        let kept = std::fs::read(&path).unwrap();
        assert_eq!(kept, before[..kept.len()]);
        log.append(&train(3, 0.5)).unwrap();
        assert_eq!(steps(&path), [1, 2, 2, 3]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_elsewhere_is_an_error_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        std::fs::write(&path, "{\"kind\":\"eval\",\"step\":1}\nhello\n{\"kind\":\"eval\"}\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2: not a line of a run log"), "{error}");
    }
}
