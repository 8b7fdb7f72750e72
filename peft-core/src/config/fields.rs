//! What the configurations of all methods have in common: trained biases, whole modules, fields without meaning.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{PeftError, Result, nearest};
use crate::plan::plan::{Plan, PlanRow};
use crate::plan::replacement::replacement_row;
use crate::plan::targets::is_saved_whole;
use crate::spec::{ModelSpec, ParamSpec};

/// Fields of every `adapter_config.json` that say nothing about the numbers of a trained adapter.
pub const COMMON_FIELDS: [&str; 9] = [
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "tags",
    "library_name",
];

/// Which biases are trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// The biases of adapted layers; a file spells it after the method, `lora_only`.
    AdaptedOnly,
}

impl Bias {
    /// Adds the biases to a plan whose rows are the adapted layers.
    pub fn add_to(self, plan: &mut Plan, spec: &ModelSpec, saved: &SavedModules) {
        if self == Self::None {
            return;
        }
        let adapted: Vec<String> = plan.rows.iter().map(|it| it.param.module.clone()).collect();
        for param in spec.iter().filter(|it| it.name == "bias") {
            let wrappers = adapted.iter().filter(|it| **it == param.module).count();
            if saved.contains(&param.module) || (self == Self::AdaptedOnly && wrappers == 0) {
                continue;
            }
            // The reference wraps an adapted layer, once for every adapted parameter, and keeps the original below.
            let inner = ".base_layer".repeat(wrappers);
            plan.rows.push(replacement_row(param, format!("{}{inner}.{}", param.module, param.name)));
        }
    }
}

impl Serialize for Bias {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            Self::None => "none",
            Self::All => "all",
            Self::AdaptedOnly => "lora_only",
        })
    }
}

impl<'de> Deserialize<'de> for Bias {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            // `boft_only`, `oft_only`, …: each method of the reference spells its own name.
            other if other.ends_with("_only") => Ok(Self::AdaptedOnly),
            other => Err(serde::de::Error::custom(format!("bias `{other}` is not none, all or <method>_only"))),
        }
    }
}

/// `modules_to_save`, and the heads that the task adds to it.
#[derive(Debug, Clone, Default)]
pub struct SavedModules {
    given: Vec<String>,
    heads: Vec<String>,
}

impl SavedModules {
    /// From the fields `modules_to_save` and `task_type`.
    pub fn new(modules_to_save: Option<&Vec<String>>, task_type: Option<&str>) -> Self {
        let given = modules_to_save.cloned().unwrap_or_default();
        let heads: &[&str] = match task_type {
            Some("SEQ_CLS" | "TOKEN_CLS") => &["classifier", "score"],
            Some("QUESTION_ANS") => &["qa_outputs"],
            _ => &[],
        };
        let heads = heads.iter().map(|it| (*it).to_owned()).filter(|it| !given.contains(it)).collect();
        Self { given, heads }
    }

    /// All names: those that were given, then those of the task.
    pub fn names(&self) -> Vec<String> {
        self.given.iter().chain(&self.heads).cloned().collect()
    }

    /// Whether the module of this path is saved, or one around it.
    pub fn contains(&self, module: &str) -> bool {
        self.given.iter().chain(&self.heads).any(|name| is_saved_whole(module, name))
    }

    /// Adds a trained copy of every parameter of these modules.
    ///
    /// # Errors
    /// If a name that was given is in no module. A head that the task adds may be absent.
    pub fn add_to(&self, plan: &mut Plan, spec: &ModelSpec) -> Result<()> {
        self.add_with(plan, spec, replacement_row)
    }

    /// The same with another kind of row, made of a parameter and its key.
    ///
    /// # Errors
    /// As [`SavedModules::add_to`].
    pub fn add_with(
        &self,
        plan: &mut Plan,
        spec: &ModelSpec,
        row: impl Fn(&Arc<ParamSpec>, String) -> PlanRow,
    ) -> Result<()> {
        for param in spec.iter().filter(|it| self.contains(&it.module)) {
            plan.rows.push(row(param, param.path()));
        }
        for name in &self.given {
            let is_head_of_task = ["classifier", "score", "qa_outputs"].contains(&name.as_str());
            if !is_head_of_task && !spec.iter().any(|it| is_saved_whole(&it.module, name)) {
                let available: Vec<String> = spec.modules().map(str::to_owned).collect();
                let leaves: Vec<&str> = available.iter().map(|it| it.rsplit('.').next().unwrap_or(it)).collect();
                return Err(PeftError::NothingMatched {
                    field: "modules_to_save",
                    targets: format!("{name:?}"),
                    nearest: nearest(name, leaves),
                    available,
                });
            }
        }
        Ok(())
    }
}

/// For `#[serde(deserialize_with)]`: `null` reads as the default, an empty map or list.
pub fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// For `#[serde(serialize_with)]`: whole numbers are written as integers, for some readers accept nothing else.
pub fn integer_if_whole<S: Serializer>(value: &f64, to: S) -> std::result::Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e15 { to.serialize_i64(*value as i64) } else { to.serialize_f64(*value) }
}

/// Parses `adapter_config.json` into the struct of a method.
pub fn parse_config<T: DeserializeOwned>(json: Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(json))
        .map_err(|error| PeftError::config("adapter_config.json", format!("cannot be read: {error}")))
}

/// The fields of a method's struct, with the heads of the task among the saved modules.
pub fn config_json<T: Serialize>(config: &T, saved: &SavedModules) -> Result<Map<String, Value>> {
    let json = serde_json::to_value(config).map_err(|error| PeftError::Invalid(error.to_string()))?;
    let Value::Object(mut json) = json else {
        return Err(PeftError::Invalid("a configuration is an object".into()));
    };
    let names = saved.names();
    if !names.is_empty() {
        json.insert("modules_to_save".into(), names.into());
    }
    Ok(json)
}

/// Refuses 0 for a number that counts something.
pub fn check_positive(field: &str, value: usize) -> Result<()> {
    if value == 0 { Err(PeftError::config(field, "must be at least 1")) } else { Ok(()) }
}

/// Refuses a share of dropped elements outside 0 ≤ p < 1.
pub fn check_dropout(field: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        Ok(())
    } else {
        Err(PeftError::config(field, format!("is {value}, but must lie in 0 ≤ p < 1")))
    }
}
