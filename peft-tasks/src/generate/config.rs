//! `generation_config.json`, read and resolved.

use std::path::Path;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::special_tokens::json_object;

/// `generation_config.json`, field for field. `None` means the default of transformers.
///
/// # Example
/// ```
/// # use peft_tasks::generate::GenerationConfig;
/// let config: GenerationConfig = serde_json::from_str(r#"{"do_sample": true, "eos_token_id": [2, 7]}"#)?;
/// assert_eq!(config.plan()?.eos, [2, 7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Most tokens to generate. Goes before `max_length`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and completion together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Fewest tokens to generate before an end token is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_new_tokens: Option<usize>,
    /// Fewest tokens of prompt and completion together before an end token is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<usize>,
    /// Draws tokens by their probability; otherwise the likeliest is taken. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,
    /// Divides the logits when sampling: below 1 bolder, above 1 more even. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Samples among the likeliest so many; 0 among all. Default: 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Samples among the likeliest that have this probability together. Default: 1, among all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Samples among tokens at least this likely, relative to the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Above 1 makes tokens that occurred less likely, in the prompt too. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// No run of so many tokens occurs twice; 0 allows all. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_repeat_ngram_size: Option<usize>,
    /// Ends a sequence: one id or several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<OneOrMany>,
    /// Fills up rows that have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Starts a sequence that has no prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Starts a target behind a source. Default: what `config.json` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_start_token_id: Option<u32>,
    /// The first token of a sequence that would else begin with the model's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forced_bos_token_id: Option<u32>,
    /// The last token of a sequence that reaches its bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forced_eos_token_id: Option<OneOrMany>,
    /// How many sequences are followed at once; 1 is greedy search or sampling. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_beams: Option<usize>,
    /// Above 0 favours long sequences in beam search, below 0 short ones. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_penalty: Option<f64>,
    /// When beam search stops: `false`, `true` or `"never"`. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<Value>,
    /// Tokens that are never written; numbers that are none are passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppress_tokens: Option<Vec<i64>>,
    /// Tokens that what is written does not begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begin_suppress_tokens: Option<Vec<i64>>,
    /// What the drawn tokens depend on. Not a field of transformers. Default: 42.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Fields that are not read. Those that would change the text are refused by [`GenerationConfig::plan`] unless they
    /// are switched off.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One token id or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// `2`
    One(u32),
    /// `[2, 7]`
    Many(Vec<u32>),
}

impl OneOrMany {
    /// The ids as a list.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

/// Fields that change which tokens come out and that this version does not compute, with the value that switches each
/// off.
const REFUSED: &[(&str, f64)] = &[
    ("assistant_early_exit", 0.0),
    ("bad_words_ids", 0.0),
    ("constraints", 0.0),
    ("diversity_penalty", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("force_words_ids", 0.0),
    ("forced_decoder_ids", 0.0),
    ("guidance_scale", 1.0),
    ("max_time", 0.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("penalty_alpha", 0.0),
    ("prompt_lookup_num_tokens", 0.0),
    ("sequence_bias", 0.0),
    ("stop_strings", 0.0),
    ("top_h", 0.0),
    ("typical_p", 1.0),
    ("watermarking_config", 0.0),
];

impl GenerationConfig {
    /// Reads `generation_config.json` of a folder. Where there is none, older models say the same in their `config.json`:
    /// `GenerationConfig.from_model_config` of transformers. The defaults where neither file is there.
    ///
    /// # Errors
    /// A file does not parse.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("generation_config.json");
        if let Some(json) = json_object(&path)? {
            return Self::of(json).map_err(|error| PeftError::bad_file(&path, error));
        }
        let path = folder.as_ref().join("config.json");
        Self::of_model(json_object(&path)?.unwrap_or_default()).map_err(|error| PeftError::bad_file(&path, error))
    }

    /// What `text_config` in the `config.json` of a folder says: of a language model behind a picture. transformers goes by it
    /// alone: `generate` of such a model calls that of its language model, which knows no `generation_config.json`.
    ///
    /// # Errors
    /// The file is missing or does not parse.
    pub fn load_text_config(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let mut json = json_object(&path)?.unwrap_or_default();
        let text = match json.remove("text_config") {
            Some(Value::Object(text)) => text,
            _ => Map::new(),
        };
        Self::of_model(text).map_err(|error| PeftError::bad_file(&path, error))
    }

    fn of_model(mut json: Map<String, Value>) -> serde_json::Result<Self> {
        // All the others describe the model.
        let known = Self::fields();
        json.retain(|field, _| known.contains(&field.as_str()) || REFUSED.iter().any(|it| it.0 == field));
        Self::of(json)
    }

    fn of(mut json: Map<String, Value>) -> serde_json::Result<Self> {
        // Some models write -1 where there is no such token.
        json.retain(|field, value| !(field.ends_with("_token_id") && value.as_i64().is_some_and(|it| it < 0)));
        serde_json::from_value(Value::Object(json))
    }

    /// The fields that are read.
    fn fields() -> [&'static str; 22] {
        [
            "max_new_tokens",
            "max_length",
            "min_new_tokens",
            "min_length",
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "no_repeat_ngram_size",
            "eos_token_id",
            "pad_token_id",
            "bos_token_id",
            "decoder_start_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "num_beams",
            "length_penalty",
            "early_stopping",
            "suppress_tokens",
            "begin_suppress_tokens",
        ]
    }

    /// The same as [`plan`](GenerationConfig::plan), for settings that began as those of a folder: what is wrong in its file is
    /// said of that.
    ///
    /// # Errors
    /// As [`plan`](GenerationConfig::plan).
    pub fn plan_for(&self, folder: &Path) -> Result<GenerationPlan> {
        self.plan().map_err(|error| {
            let own = ["generation_config.json", "config.json"].map(|it| folder.join(it));
            let file = own.iter().find(|it| it.is_file());
            let of_file =
                Self::load(folder).and_then(|it| it.plan()).map_or_else(|it| it.to_string(), |_| String::new());
            match file.filter(|_| of_file == error.to_string()) {
                Some(file) => error.in_file(file),
                None => error,
            }
        })
    }

    /// Checks every field and fills in the defaults.
    ///
    /// # Errors
    /// A value out of range, and a field that asks for another way of generating.
    pub fn plan(&self) -> Result<GenerationPlan> {
        if let Some(beams) = self.num_beams.filter(|it| !(1..=MAX_BEAMS).contains(it)) {
            return Err(PeftError::config("num_beams", format!("is {beams}, expected 1 to {MAX_BEAMS}")));
        }
        let early_stopping = match &self.early_stopping {
            None | Some(Value::Null | Value::Bool(false)) => EarlyStopping::Heuristic,
            Some(Value::Bool(true)) => EarlyStopping::FirstComplete,
            Some(Value::String(word)) if word == "never" => EarlyStopping::Never,
            Some(other) => {
                let reason = format!("is {other}, expected true, false or \"never\"");
                return Err(PeftError::config("early_stopping", reason));
            }
        };
        for (field, neutral) in REFUSED {
            let on = match self.other.get(*field) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::Array(items)) => !items.is_empty(),
                Some(Value::Object(fields)) => !fields.is_empty(),
                Some(Value::Number(number)) => number.as_f64() != Some(*neutral),
                Some(Value::Bool(true) | Value::String(_)) => true,
            };
            if on {
                let reason = "it would change the text; take it out of the generation config";
                return Err(PeftError::unsupported(format!("`{field}`"), reason));
            }
        }
        let range = |field: &str, value: Option<f64>, fallback: f64, ok: fn(f64) -> bool, expected: &str| {
            let value = value.unwrap_or(fallback);
            let reason = || format!("is {value}, expected {expected}");
            if ok(value) { Ok(value) } else { Err(PeftError::config(field, reason())) }
        };
        let positive = |it: f64| it > 0.0 && it.is_finite();
        let share = |it: f64| (0.0..=1.0).contains(&it);
        let above = "a number above 0";
        let warmer = "a number above 0; for the likeliest token every time set `do_sample` to false";
        if self.max_new_tokens == Some(0) {
            return Err(PeftError::config("max_new_tokens", "is 0, expected at least 1"));
        }
        let min_p = self.min_p.map(|it| range("min_p", Some(it), 0.0, share, "a number from 0 to 1")).transpose()?;
        let sampling = Sampling {
            temperature: range("temperature", self.temperature, 1.0, positive, warmer)? as f32,
            top_k: self.top_k.unwrap_or(50),
            top_p: range("top_p", self.top_p, 1.0, share, "a number from 0 to 1")?,
            min_p: min_p.map(|it| it as f32),
        };
        Ok(GenerationPlan {
            max_new_tokens: self.max_new_tokens,
            max_length: self.max_length,
            min_new_tokens: self.min_new_tokens.unwrap_or(0),
            min_length: self.min_length.unwrap_or(0),
            repetition_penalty: range("repetition_penalty", self.repetition_penalty, 1.0, positive, above)? as f32,
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(0),
            sampling: self.do_sample.unwrap_or(false).then_some(sampling),
            eos: self.eos_token_id.as_ref().map(OneOrMany::to_vec).unwrap_or_default(),
            seed: self.seed.unwrap_or(42),
            tasks: Vec::new(),
            bos: self.bos_token_id,
            decoder_start: self.decoder_start_token_id,
            forced_bos: self.forced_bos_token_id,
            forced_eos: self.forced_eos_token_id.as_ref().map(OneOrMany::to_vec).unwrap_or_default(),
            num_beams: self.num_beams.unwrap_or(1),
            length_penalty: range("length_penalty", self.length_penalty, 1.0, f64::is_finite, "a number")? as f32,
            early_stopping,
            suppressed: tokens_of(self.suppress_tokens.as_ref()),
            suppressed_first: tokens_of(self.begin_suppress_tokens.as_ref()),
            times: None,
        })
    }
}

fn tokens_of(ids: Option<&Vec<i64>>) -> Vec<u32> {
    ids.into_iter().flatten().filter_map(|it| u32::try_from(*it).ok()).collect()
}

/// What a sequence is generated with, checked and without gaps.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationPlan {
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and completion together.
    pub max_length: Option<usize>,
    /// Fewest tokens to generate.
    pub min_new_tokens: usize,
    /// Fewest tokens of prompt and completion together.
    pub min_length: usize,
    /// 1 for none.
    pub repetition_penalty: f32,
    /// 0 for none.
    pub no_repeat_ngram_size: usize,
    /// How to draw; `None` takes the likeliest token.
    pub sampling: Option<Sampling>,
    /// Tokens that end a sequence.
    pub eos: Vec<u32>,
    /// What the drawn tokens depend on.
    pub seed: u64,
    /// Number of the task of every sequence, or one for all, where a prompt tells tasks apart.
    pub tasks: Vec<i64>,
    /// Starts a sequence that has no prompt.
    pub bos: Option<u32>,
    /// Starts a target behind a source.
    pub decoder_start: Option<u32>,
    /// Follows a single first token.
    pub forced_bos: Option<u32>,
    /// Ends a sequence that reaches its bound.
    pub forced_eos: Vec<u32>,
    /// 1 for no search.
    pub num_beams: usize,
    /// The power of a sequence's length that its score is divided by.
    pub length_penalty: f32,
    /// When beam search stops.
    pub early_stopping: EarlyStopping,
    /// Tokens that are never written.
    pub suppressed: Vec<u32>,
    /// Tokens that nothing begins with.
    pub suppressed_first: Vec<u32>,
    /// How tokens of times are written, by models of speech that are asked for them.
    pub times: Option<TimeRules>,
}

/// How tokens of times are written: in pairs, and none before the one that was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRules {
    /// The token that says that there are no times; those of times follow it.
    pub no_times: u32,
    /// The latest time that a text begins with, counted in tokens from the first of them.
    pub latest_first: Option<u32>,
}

impl TimeRules {
    /// The token of 0 seconds.
    pub fn first(self) -> u32 {
        self.no_times + 1
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Above 0.
    pub temperature: f32,
    /// 0 for all tokens.
    pub top_k: usize,
    /// 1 for all tokens.
    pub top_p: f64,
    /// `None` for all tokens.
    pub min_p: Option<f32>,
}

/// More texts than anybody follows at once. For a vocabulary of 256,000 the scores of so many take a gigabyte.
const MAX_BEAMS: usize = 1024;

/// New tokens where a configuration names no bound, as in transformers.
const DEFAULT_NEW_TOKENS: usize = 20;

impl GenerationPlan {
    /// How many tokens may follow a prompt.
    ///
    /// # Errors
    /// The prompt fills `max_length` already.
    pub fn budget(&self, prompt_length: usize) -> Result<usize> {
        match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => Ok(new),
            (None, Some(total)) if total > prompt_length => Ok(total - prompt_length),
            (None, Some(total)) => Err(PeftError::config(
                "max_length",
                format!("is {total} and the prompt has {prompt_length} tokens; set `max_new_tokens` instead"),
            )),
            (None, None) => Ok(DEFAULT_NEW_TOKENS),
        }
    }
}

/// When to stop looking for better sequences: `early_stopping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// When the best running sequence, at its present length, is worse than the worst that has ended.
    #[default]
    Heuristic,
    /// When as many sequences have ended as there are beams.
    FirstComplete,
    /// When no running sequence can become better than the worst that has ended.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> GenerationConfig {
        serde_json::from_str(json).unwrap()
    }

    fn refusal(json: &str) -> String {
        config(json).plan().unwrap_err().to_string()
    }

    #[test]
    fn lengths() {
        let budget = |json: &str, prompt| config(json).plan().unwrap().budget(prompt);
        assert_eq!(budget("{}", 7).unwrap(), 20);
        assert_eq!(budget(r#"{"max_length": 10}"#, 7).unwrap(), 3);
        assert_eq!(budget(r#"{"max_length": 10, "max_new_tokens": 9}"#, 7).unwrap(), 9);
        assert!(budget(r#"{"max_length": 7}"#, 7).unwrap_err().to_string().contains("set `max_new_tokens` instead"));
    }

    #[test]
    fn what_would_give_another_text_is_refused() {
        assert!(refusal(r#"{"early_stopping": "soon"}"#).starts_with("`early_stopping` is \"soon\""));
        assert!(refusal(r#"{"bad_words_ids": [[1]]}"#).starts_with("`bad_words_ids` is not supported yet"));
        assert!(refusal(r#"{"do_sample": true, "temperature": 0}"#).contains("set `do_sample` to false"));
        assert!(refusal(r#"{"top_p": 1.5}"#).starts_with("`top_p` is 1.5"));
        assert!(refusal(r#"{"max_new_tokens": 0}"#).starts_with("`max_new_tokens` is 0"));
    }

    #[test]
    fn files_of_the_hub_are_read_and_written_back() {
        let json = r#"{"eos_token_id":[2,7],"_from_model_config":true,"typical_p":1.0,"constraints":null,"x":1}"#;
        let config = config(json);
        assert!(config.plan().is_ok());
        assert_eq!(serde_json::to_string(&config).unwrap(), json);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::load(folder.path()).unwrap(), GenerationConfig::default());
        std::fs::write(folder.path().join("generation_config.json"), json).unwrap();
        assert_eq!(GenerationConfig::load(folder.path()).unwrap(), config);
    }

    /// `GenerationConfig.from_model_config` of transformers 5.24 on the same file.
    #[test]
    fn older_models_say_it_in_config_json() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "config.json",
            r#"{"model_type": "bart", "eos_token_id": [2, 5], "pad_token_id": -1, "bos_token_id": null,
                "decoder_start_token_id": 7, "num_beams": 4, "n_layer": 12}"#,
        );
        let plan = GenerationConfig::load(folder.path()).unwrap().plan().unwrap();
        assert_eq!((plan.eos, plan.bos, plan.decoder_start, plan.num_beams), (vec![2, 5], None, Some(7), 4));
        // A file of its own says everything.
        write("generation_config.json", r#"{"eos_token_id": 3}"#);
        let plan = GenerationConfig::load(folder.path()).unwrap().plan().unwrap();
        assert_eq!((plan.eos, plan.num_beams), (vec![3], 1));
        write("generation_config.json", "{");
        assert!(GenerationConfig::load(folder.path()).unwrap_err().to_string().contains("generation_config.json"));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_said_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("generation_config.json");
        std::fs::write(&file, r#"{"do_sample": true, "temperature": -1.0}"#).unwrap();
        let config = GenerationConfig::load(folder.path()).unwrap();
        let said = |config: &GenerationConfig| config.plan_for(folder.path()).unwrap_err().to_string();
        assert!(said(&config).starts_with(&format!("{} is not usable: `temperature`", file.display())));
        // What was asked for beside it is nobody else's fault.
        let asked = GenerationConfig { temperature: Some(-2.0), ..config };
        assert!(said(&asked).starts_with("`temperature`"));
    }

    #[test]
    fn beams_have_a_limit() {
        assert!(refusal(r#"{"num_beams": 1000000}"#).starts_with("`num_beams` is 1000000, expected 1 to 1024"));
        assert!(refusal(r#"{"num_beams": 0}"#).starts_with("`num_beams` is 0"));
    }
}
