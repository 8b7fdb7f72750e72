//! What a method's configuration can do, and how a configuration is found for a folder.

use std::fmt::Debug;

use serde_json::{Map, Value};

use crate::after_step::AfterStep;
use crate::checkpoint::Stored;
use crate::error::{PeftError, Result};
use crate::plan::Plan;
use crate::shared::COMMON_FIELDS;
use crate::site::Sites;

/// A method's configuration: the contents of `adapter_config.json`, parsed.
///
/// A method outside this workspace implements this trait and [`Adapter`](crate::Adapter), and everything else (applying,
/// training, saving, loading, merging) is there.
pub trait Tuner: Debug + Send + Sync {
    /// `peft_type` of the file: `LORA`.
    fn peft_type(&self) -> &str;

    /// Says what the configuration does to a model, or everything that keeps it from it.
    fn plan(&self, sites: &Sites) -> Result<Plan>;

    /// The configuration as `adapter_config.json` holds it. `peft_type` and the common fields are added on saving.
    fn to_json(&self) -> Result<Map<String, Value>>;

    /// The tensors as the file holds them. All of them for most methods.
    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        tensors
    }

    /// What the method does between the steps of a run. Nothing for most methods.
    fn after_step(&self) -> Option<Box<dyn AfterStep>> {
        None
    }
}

impl<T: Tuner + ?Sized> Tuner for Box<T> {
    fn peft_type(&self) -> &str {
        (**self).peft_type()
    }
    fn plan(&self, sites: &Sites) -> Result<Plan> {
        (**self).plan(sites)
    }
    fn to_json(&self) -> Result<Map<String, Value>> {
        (**self).to_json()
    }
    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        (**self).to_file(tensors)
    }
    fn after_step(&self) -> Option<Box<dyn AfterStep>> {
        (**self).after_step()
    }
}

type Parse = Box<dyn Fn(Map<String, Value>) -> Result<Box<dyn Tuner>> + Send + Sync>;

/// The methods that a program knows, by `peft_type`.
#[derive(Default)]
pub struct Methods {
    known: Vec<(String, Parse)>,
}

impl Debug for Methods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Methods {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns a method: how its `adapter_config.json` is parsed.
    pub fn with<T: Tuner + 'static>(
        mut self,
        peft_type: impl Into<String>,
        parse: impl Fn(Map<String, Value>) -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        let parse: Parse = Box::new(move |config| Ok(Box::new(parse(config)?)));
        self.known.push((peft_type.into(), parse));
        self
    }

    /// The `peft_type`s that are known.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(|(name, _)| name.as_str())
    }

    /// The configuration that a JSON object describes.
    pub fn parse(&self, config: Map<String, Value>) -> Result<Box<dyn Tuner>> {
        let Some(peft_type) = config.get("peft_type").and_then(Value::as_str) else {
            return Err(PeftError::config("peft_type", "is missing: this is no adapter_config.json"));
        };
        match self.known.iter().find(|(name, _)| name == peft_type) {
            Some((_, parse)) => parse(config),
            None => {
                let known: Vec<&str> = self.names().collect();
                Err(PeftError::unsupported(format!("peft_type {peft_type}"), format!("known are {}", known.join(", "))))
            }
        }
    }
}

/// Whether a JSON value leaves a feature switched off: null, false, zero, empty.
pub fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Refuses fields that a configuration does not know unless they are switched off or never touch the numbers.
///
/// The reference drops unknown fields with a warning; for another implementation that would be wrong numbers in silence.
/// `harmless` are the method's own; the [common fields](crate::shared::COMMON_FIELDS) are known.
pub fn refuse_unknown<'a>(unknown: impl IntoIterator<Item = (&'a String, &'a Value)>, harmless: &[&str]) -> Result<()> {
    for (field, value) in unknown {
        let is_harmless = COMMON_FIELDS.iter().chain(harmless).any(|it| it == field);
        if !is_off(value) && !is_harmless {
            let reason =
                format!("is switched on ({value}), and this version does not know what it does to the numbers");
            return Err(PeftError::config(field.clone(), reason));
        }
    }
    Ok(())
}
