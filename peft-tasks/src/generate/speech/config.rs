//! What `generation_config.json` of a Whisper says beyond that of other models, and what is asked for.
//!
//! Source: `transformers/models/whisper/generation_whisper.py` (5.23), `_retrieve_init_tokens` and what it goes by.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use peft_core::{PeftError, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::data::special_tokens::json_object;
use crate::generate::config::{GenerationConfig, GenerationPlan, TimeRules};
use crate::generate::speech::languages::language_token;

/// Whether a transcript is in the language of the recording, or in English.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpeechTask {
    /// What was said.
    #[default]
    Transcribe,
    /// What was said, in English.
    Translate,
}

impl fmt::Display for SpeechTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transcribe => "transcribe",
            Self::Translate => "translate",
        })
    }
}

impl FromStr for SpeechTask {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "transcribe" => Ok(Self::Transcribe),
            "translate" => Ok(Self::Translate),
            _ => Err(PeftError::config("task", format!("is `{name}`, expected transcribe or translate"))),
        }
    }
}

/// What is asked of a transcript; `None` is what the model's files say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpeechRequest {
    /// Name or code of the language; heard where neither this nor a file says it.
    pub language: Option<String>,
    /// Whether to translate.
    pub task: Option<SpeechTask>,
    /// Whether to write times.
    pub timestamps: Option<bool>,
}

/// `generation_config.json` of a Whisper.
#[derive(Debug, Clone, Default)]
pub struct SpeechConfig {
    /// What every model's has.
    pub generation: GenerationConfig,
    special: Special,
}

/// What only Whisper's has.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Special {
    is_multilingual: Option<bool>,
    lang_to_id: Option<BTreeMap<String, u32>>,
    task_to_id: Option<BTreeMap<String, u32>>,
    no_timestamps_token_id: Option<u32>,
    max_initial_timestamp_index: Option<u32>,
    forced_decoder_ids: Option<Vec<(u32, Option<u32>)>>,
    language: Option<String>,
    task: Option<String>,
    return_timestamps: Option<bool>,
}

/// Fields that change what is written and that this version does not compute.
const REFUSED: [&str; 5] = [
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "condition_on_prev_tokens",
    "prompt_ids",
];

impl SpeechConfig {
    /// Reads `generation_config.json` of a folder, and from `config.json` the tokens that older models force.
    ///
    /// # Errors
    /// A file does not parse, or asks for what is not computed.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut generation = GenerationConfig::load(folder)?;
        let path = folder.join("generation_config.json");
        let mut json = json_object(&path)?.unwrap_or_default();
        if json.get("forced_decoder_ids").is_none_or(Value::is_null)
            && let Some(forced) =
                json_object(&folder.join("config.json"))?.and_then(|mut it| it.remove("forced_decoder_ids"))
        {
            json.insert("forced_decoder_ids".to_owned(), forced);
        }
        for field in REFUSED {
            if json.get(field).is_some_and(|it| !it.is_null() && *it != false) {
                let reason = "it changes transcripts and is not computed; take it out of the generation config";
                return Err(PeftError::unsupported(format!("`{field}`"), reason).in_file(&path));
            }
        }
        // The tokens stand in the prompt of the decoder.
        generation.other.remove("forced_decoder_ids");
        let special = serde_json::from_value(Value::Object(json)).map_err(|error| PeftError::bad_file(&path, error))?;
        Ok(Self { generation, special })
    }

    /// Whether the model knows several languages, so that tasks can be told apart.
    pub fn is_multilingual(&self) -> bool {
        self.special.is_multilingual != Some(false) && self.special.task_to_id.is_some()
    }

    /// The request, to transcribe if nothing else is asked for and no file says it. The reference names no task where the
    /// language is heard, and models then write anything.
    pub fn transcribing(&self, request: SpeechRequest) -> SpeechRequest {
        let is_open =
            request.task.is_none() && self.special.task.is_none() && self.special.forced_decoder_ids.is_none();
        let task = if is_open && self.is_multilingual() { Some(SpeechTask::Transcribe) } else { request.task };
        SpeechRequest { task, ..request }
    }

    /// Checks what is asked for, and says how transcripts are written.
    ///
    /// # Errors
    /// If the model does not know the language or writes no times, or a setting makes no sense.
    pub fn plan(&self, request: &SpeechRequest) -> Result<SpeechPlan> {
        let special = &self.special;
        if special.is_multilingual == Some(false) && (request.language.is_some() || request.task.is_some()) {
            let field = if request.language.is_some() { "language" } else { "task" };
            return Err(PeftError::config(field, "cannot be chosen: this model knows English only"));
        }
        let timestamps = request.timestamps.or(special.return_timestamps).unwrap_or(false);
        if timestamps && special.no_timestamps_token_id.is_none() {
            let reason = "are asked for, but generation_config.json has no `no_timestamps_token_id`";
            return Err(PeftError::config("timestamps", reason));
        }
        Ok(SpeechPlan {
            generation: self.generation.plan()?,
            languages: special.lang_to_id.as_ref().map(|it| it.values().copied().collect()).unwrap_or_default(),
            prompt: self.prompt(request)?,
            times: special
                .no_timestamps_token_id
                .map(|no_times| TimeRules { no_times, latest_first: special.max_initial_timestamp_index }),
            timestamps,
        })
    }

    /// What stands between the start of a transcript and its first word, without the token that there are no times;
    /// `None` for a language that is to be heard.
    fn prompt(&self, request: &SpeechRequest) -> Result<Vec<Option<u32>>> {
        let special = &self.special;
        let named = special.task.as_deref().map(str::parse::<SpeechTask>).transpose()?;
        let (language, task) = (request.language.as_ref().or(special.language.as_ref()), request.task.or(named));
        let mut prompt = match (language, task) {
            (None, None) => forced(special.forced_decoder_ids.as_deref().unwrap_or_default())?,
            _ => Vec::new(),
        };
        let place = |prompt: &mut Vec<Option<u32>>, token| match prompt.first_mut() {
            Some(first) => *first = token,
            None => prompt.push(token),
        };
        let outdated =
            |field: &str| PeftError::config(field, "cannot be chosen: generation_config.json has no tokens for it");
        match (language, &special.lang_to_id) {
            (Some(language), Some(tokens)) => place(&mut prompt, Some(language_token(language, tokens)?)),
            (Some(_), None) => return Err(outdated("language")),
            (None, Some(_)) if prompt.first().is_none_or(Option::is_none) => place(&mut prompt, None),
            (None, _) => {}
        }
        let tasks = special.task_to_id.as_ref();
        let token = |task: SpeechTask| tasks.and_then(|it| it.get(&task.to_string())).copied();
        let chosen = match task {
            Some(task) => Some(token(task).ok_or_else(|| outdated("task"))?),
            None if language.is_some() => token(SpeechTask::Transcribe),
            None => None,
        };
        prompt.extend(chosen.map(Some));
        Ok(prompt)
    }

    /// The tokens that the labels of a transcript begin with, as the reference's tokenizer writes them behind the start:
    /// language and task where they are given, then that there are no times.
    ///
    /// # Errors
    /// As [`SpeechConfig::plan`].
    pub fn label_prefix(&self, request: &SpeechRequest) -> Result<Vec<u32>> {
        let without = Self { special: Special { forced_decoder_ids: None, ..self.special.clone() }, ..self.clone() };
        let mut prefix: Vec<u32> = without.plan(request)?.prompt.into_iter().flatten().collect();
        prefix.extend(self.special.no_timestamps_token_id);
        Ok(prefix)
    }
}

/// Tokens by their places, which must follow each other from 1.
fn forced(ids: &[(u32, Option<u32>)]) -> Result<Vec<Option<u32>>> {
    if ids.first().is_none_or(|it| it.0 != 1) {
        return Ok(Vec::new());
    }
    if let Some((at, _)) = ids.iter().enumerate().find(|(at, it)| it.0 as usize != at + 1) {
        let reason = format!("has no entry for place {}, but for later ones", at + 1);
        return Err(PeftError::config("forced_decoder_ids", reason));
    }
    Ok(ids.iter().map(|it| it.1).collect())
}

/// How transcripts are written, checked and without gaps.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeechPlan {
    /// What holds for any model. Its `times` are not read.
    pub generation: GenerationPlan,
    /// The tokens of languages, for a language that is to be heard.
    pub(crate) languages: Vec<u32>,
    /// What follows the start token; `None` for a language that is to be heard.
    pub(crate) prompt: Vec<Option<u32>>,
    /// How times are written, if the model knows any.
    pub(crate) times: Option<TimeRules>,
    /// Whether they are.
    pub timestamps: bool,
}

impl SpeechPlan {
    /// The first token of a time; none is one if the model knows none.
    pub fn first_time(&self) -> u32 {
        self.times.map_or(u32::MAX, TimeRules::first)
    }

    /// Whether the language of a recording is heard first.
    pub(crate) fn hears_language(&self) -> bool {
        self.prompt.contains(&None) && !self.languages.is_empty()
    }

    /// What stands before the words of a transcript, in a language that was heard or that is given.
    pub(crate) fn prompt_for(&self, start: u32, heard: Option<u32>, timestamps: bool) -> Vec<u32> {
        let no_times = self.times.map(|it| it.no_times);
        let mut prompt: Vec<Option<u32>> = [Some(start)].into_iter().chain(self.prompt.iter().copied()).collect();
        if let Some(slot) = prompt.get_mut(1).filter(|it| it.is_none()) {
            *slot = heard;
        }
        match (timestamps, prompt.last() == Some(&no_times)) {
            (false, false) => prompt.push(no_times),
            (true, true) if no_times.is_some() => {
                prompt.pop();
            }
            _ => {}
        }
        prompt.into_iter().flatten().collect()
    }

    /// The plan of one window, whose prompt has so many tokens. Source: `_set_max_new_tokens_and_length`.
    pub(crate) fn for_window(&self, prompt: usize, timestamps: bool) -> GenerationPlan {
        GenerationPlan {
            max_length: self.generation.max_length.map(|it| it + prompt),
            times: self.times.filter(|_| timestamps),
            ..self.generation.clone()
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
