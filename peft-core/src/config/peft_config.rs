//! What a method's configuration can do, and how a configuration is found for a folder.

use std::fmt::Debug;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::fields::COMMON_FIELDS;
use crate::config::limits::check_numbers;
use crate::config::projected::GradientProjection;
use crate::error::{PeftError, Result};
use crate::files::checkpoint::{Stored, TensorFile};
use crate::plan::plan::Plan;
use crate::spec::ModelSpec;

/// A method's configuration: the contents of `adapter_config.json`, parsed.
///
/// A method outside this workspace implements this trait, [`Adapter`](crate::Adapter) and
/// [`AdapterBuilder`](crate::AdapterBuilder), and [`Tuner`] if it is to be registered. Everything else (applying, training,
/// saving, loading, merging) is there. `examples/custom_method.rs` is a whole one.
pub trait PeftConfig: Debug + Send + Sync {
    /// `peft_type` of the file: `LORA`. The same as [`MethodInfo::peft_type`] of [`Tuner::INFO`], by which the file is read.
    fn peft_type(&self) -> &str;

    /// Says what the configuration does to a model, or everything that keeps it from it. No tensor is touched.
    ///
    /// An implementation
    /// - calls [`refuse_unknown`] with the fields that it does not know;
    /// - honours `modules_to_save`, and the heads that `task_type` adds to it:
    ///   [`SavedModules`](crate::config::fields::SavedModules) does both;
    /// - sets [`Plan::unmatched`] to the target names that matched nothing, which `PeftModel` refuses;
    /// - has at most one row for a parameter: of two, only one is built.
    ///
    /// # Errors
    /// If the configuration makes no sense, or does not fit the model.
    fn plan(&self, spec: &ModelSpec) -> Result<Plan>;

    /// The field `task_type`, if the configuration has one. A fresh adapter whose configuration leaves it open takes that
    /// of the model.
    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        None
    }

    /// Whether a tied head stays tied although layers of the configuration may bear its name.
    ///
    /// Otherwise a head that the configuration adapts gets a weight of its own when the adapter is added.
    fn keeps_head_tied(&self, spec: &ModelSpec) -> bool {
        let _ = spec;
        false
    }

    /// The ranges of the base's layers, `[start, end)`, that the model is made of while it has the adapter:
    /// `layer_replication`. `None`, or no range, leaves the base as it is.
    fn layer_replication(&self) -> Option<&[[usize; 2]]> {
        None
    }

    /// The configuration as `adapter_config.json` holds it. `peft_type` and the common fields are added on saving.
    fn to_json(&self) -> Result<Map<String, Value>>;

    /// The tensors as the file holds them. All of them for most methods.
    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        tensors
    }

    /// Whether a file may hold this tensor although the adapter computes it: what older releases of the reference saved.
    fn passes_over(&self, _key: &str) -> bool {
        false
    }

    /// The configuration as `adapter_config.json` beside those tensors says it. The same for most methods.
    fn to_file_json(&self) -> Result<Map<String, Value>> {
        self.to_json()
    }

    /// The tensors of a folder that this very configuration wrote, as they were before
    /// [`to_file`](PeftConfig::to_file). `None` where these are the same.
    fn read_back(&self, file: &TensorFile) -> Result<Option<Vec<Stored>>> {
        let _ = file;
        Ok(None)
    }

    /// What the method does between the steps of a run. Nothing for most methods.
    fn after_step(&self) -> Option<Box<dyn AfterStep>> {
        None
    }

    /// The configuration as one whose gradients an optimizer can project, as LoRA-FA does.
    fn as_gradient_projection(&self) -> Option<&dyn GradientProjection> {
        None
    }
}

/// Changes an adapter after every optimizer step, as AdaLoRA does when it takes ranks away.
///
/// A [`PeftConfig`] makes one for a run. Tensors are keyed as in the adapter file, whole.
pub trait AfterStep: Debug + Send {
    /// Looks at the tensors after step number `step`, counted from 0, and at the gradients that moved them. Returns
    /// the tensors that change.
    fn after_step(&mut self, step: usize, tensors: &[Stored], gradients: &[Stored]) -> Result<Vec<Stored>>;

    /// The configuration as it now is.
    fn config(&self) -> Box<dyn PeftConfig>;

    /// What a resumed run must know, as tensors of floats.
    fn state(&self) -> Vec<Stored>;

    /// Goes on from a [`state`](AfterStep::state).
    fn restore(&mut self, state: Vec<Stored>) -> Result<()>;
}

/// What a method is called and where it comes from, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MethodInfo {
    /// Its name.
    pub name: &'static str,
    /// `peft_type` of its files.
    pub peft_type: &'static str,
    /// What it trains, in a line.
    pub what: &'static str,
    /// Where it was published, or where the reference has it.
    pub paper: &'static str,
    /// The crate that has it.
    pub package: &'static str,
}

/// A configuration that can be read, and says of itself what it is: what [`MethodRegistry::with_method`] registers.
pub trait Tuner: PeftConfig + Serialize + Sized + 'static {
    /// Name, paper and crate.
    const INFO: MethodInfo;

    /// Parses `adapter_config.json`.
    ///
    /// `json` is the whole file: it also has `peft_type` and the other
    /// [common fields](crate::config::fields::COMMON_FIELDS). So a struct must not have serde's `deny_unknown_fields`. Keep
    /// unknown fields in a flattened map: they are written back, and [`PeftConfig::plan`] refuses them.
    ///
    /// # Errors
    /// If a field is wrong. Unknown fields that are switched on may be refused here already.
    fn from_json(json: Map<String, Value>) -> Result<Self>;

    /// The fields of the configuration with their defaults, as `peft methods` lists them.
    ///
    /// By default those of a file that has `peft_type` only. Override it if the configuration has fields that must be
    /// given.
    ///
    /// # Errors
    /// If a file with `peft_type` only is no configuration.
    fn defaults() -> Result<Map<String, Value>> {
        let json = Map::from_iter([("peft_type".to_owned(), Value::from(Self::INFO.peft_type))]);
        let fields = serde_json::to_value(Self::from_json(json)?);
        let mut fields = match fields {
            Ok(Value::Object(fields)) => fields,
            _ => return Err(PeftError::Invalid("a configuration is an object".into())),
        };
        fields.retain(|field, _| !COMMON_FIELDS.contains(&field.as_str()));
        Ok(fields)
    }
}

impl<T: PeftConfig + ?Sized> PeftConfig for Box<T> {
    fn peft_type(&self) -> &str {
        (**self).peft_type()
    }
    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        (**self).plan(spec)
    }
    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        (**self).task_type_mut()
    }
    fn keeps_head_tied(&self, spec: &ModelSpec) -> bool {
        (**self).keeps_head_tied(spec)
    }
    fn layer_replication(&self) -> Option<&[[usize; 2]]> {
        (**self).layer_replication()
    }
    fn to_json(&self) -> Result<Map<String, Value>> {
        (**self).to_json()
    }
    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        (**self).to_file(tensors)
    }
    fn passes_over(&self, key: &str) -> bool {
        (**self).passes_over(key)
    }
    fn to_file_json(&self) -> Result<Map<String, Value>> {
        (**self).to_file_json()
    }
    fn read_back(&self, file: &TensorFile) -> Result<Option<Vec<Stored>>> {
        (**self).read_back(file)
    }
    fn after_step(&self) -> Option<Box<dyn AfterStep>> {
        (**self).after_step()
    }
    fn as_gradient_projection(&self) -> Option<&dyn GradientProjection> {
        (**self).as_gradient_projection()
    }
}

type Parse = Box<dyn Fn(Map<String, Value>) -> Result<Box<dyn PeftConfig>> + Send + Sync>;

/// A method that is known and says what it is.
#[derive(Debug, Clone, Copy)]
pub struct RegisteredMethod {
    /// Name, paper and crate.
    pub about: MethodInfo,
    /// Name of the configuration's type.
    pub config: &'static str,
    /// The fields of the configuration with their defaults.
    pub defaults: fn() -> Result<Map<String, Value>>,
}

/// The methods that a program knows, by `peft_type`.
#[derive(Default)]
pub struct MethodRegistry {
    known: Vec<(String, Parse)>,
    described: Vec<RegisteredMethod>,
}

impl Debug for MethodRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl MethodRegistry {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns a method: how its `adapter_config.json` is parsed.
    pub fn with<T: PeftConfig + 'static>(
        mut self,
        peft_type: impl Into<String>,
        parse: impl Fn(Map<String, Value>) -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        let parse: Parse = Box::new(move |config| Ok(Box::new(parse(config)?)));
        self.known.push((peft_type.into(), parse));
        self
    }

    /// Learns a method that says of itself what it is.
    pub fn with_method<T: Tuner>(mut self) -> Self {
        let config = std::any::type_name::<T>();
        let config = config.rsplit("::").next().unwrap_or(config);
        self.described.push(RegisteredMethod { about: T::INFO, config, defaults: T::defaults });
        self.with(T::INFO.peft_type, T::from_json)
    }

    /// The methods that say what they are.
    pub fn described(&self) -> &[RegisteredMethod] {
        &self.described
    }

    /// The `peft_type`s that are known.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(|(name, _)| name.as_str())
    }

    /// The configuration that a JSON object describes.
    ///
    /// # Errors
    /// If it names no method that is known, a number is beyond what anything can hold, or the method refuses it.
    pub fn parse(&self, config: Map<String, Value>) -> Result<Box<dyn PeftConfig>> {
        check_numbers(&config)?;
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
/// `harmless` are the method's own; the [common fields](crate::config::fields::COMMON_FIELDS) are known.
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
