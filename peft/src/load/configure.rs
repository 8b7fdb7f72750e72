//! Configurations of any method from `adapter_config.json`, with what only this crate can add to them.

use std::path::Path;

use peft_core::{MethodRegistry, PeftConfig, Result};
use serde_json::{Map, Value};

/// The configuration that a JSON object describes, ready for a fresh adapter on the model in `folder`.
///
/// A prompt that starts from a text needs its ids: the tokenizer is that of `tokenizer_name_or_path`, if it is a folder,
/// or else the model's.
pub fn configure(
    #[allow(unused_mut)] mut json: Map<String, Value>,
    folder: &Path,
    methods: &MethodRegistry,
) -> Result<Box<dyn PeftConfig>> {
    #[cfg(feature = "prompt")]
    if let Some(text) = initial_text(&json) {
        let named = json.get("tokenizer_name_or_path").and_then(Value::as_str).map(Path::new);
        let tokenizer = peft_tasks::data::tokenizer::Tokenizer::load(named.filter(|it| it.is_dir()).unwrap_or(folder))?;
        // With its special tokens, as the reference splits it.
        let ids: Vec<i64> = tokenizer.ids(text, true)?.into_iter().map(i64::from).collect();
        if json.get("tokenizer_name_or_path").is_none_or(Value::is_null) {
            json.insert("tokenizer_name_or_path".into(), folder.display().to_string().into());
        }
        match json.get("peft_type").and_then(Value::as_str) {
            Some(peft_prompt::PROMPT_TUNING) => {
                let config = peft_prompt::PromptTuningConfig::parse(json)?;
                return Ok(Box::new(peft_prompt::PromptTuningConfig { init_ids: Some(ids), ..config }));
            }
            Some(peft_prompt::MULTITASK_PROMPT_TUNING) => {
                let config = peft_prompt::MultitaskPromptTuningConfig::parse(json)?;
                return Ok(Box::new(peft_prompt::MultitaskPromptTuningConfig { init_ids: Some(ids), ..config }));
            }
            _ => {}
        }
    }
    // Without methods that start from a text the folder has nothing to add.
    let _ = folder;
    methods.parse(json)
}

#[cfg(feature = "prompt")]
fn initial_text(json: &Map<String, Value>) -> Option<&str> {
    json.get("prompt_tuning_init").and_then(Value::as_str).filter(|it| *it == "TEXT")?;
    json.get("prompt_tuning_init_text")?.as_str()
}

/// Between how many tasks a prompt of this configuration tells.
pub fn tasks(json: &Map<String, Value>) -> usize {
    let multitask = json.get("peft_type").and_then(Value::as_str) == Some("MULTITASK_PROMPT_TUNING");
    let named = json.get("num_tasks").and_then(Value::as_u64).filter(|_| multitask);
    named.map_or(1, |it| it as usize)
}

/// Positions of a model that a prompt of this configuration takes up.
pub fn virtual_positions(json: &Map<String, Value>) -> usize {
    json.get("num_virtual_tokens").and_then(Value::as_u64).unwrap_or(0) as usize
}
