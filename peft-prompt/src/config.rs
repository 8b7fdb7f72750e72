//! The fields that all prompt methods share, and what they come to for a model.

use std::sync::Arc;

use peft_core::config::fields::{self, SavedModules};
use peft_core::{ModelSpec, ParamSpec, PeftError, Plan, PlanRow, PromptShape, Result, replacement_row_beside_prompt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The fields of `adapter_config.json` that all prompt methods share. What is not given comes from the model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PromptLearning {
    /// Number of virtual tokens.
    #[serde(default)]
    pub num_virtual_tokens: Option<usize>,
    /// Width of a virtual token; of all key heads together for a prefix.
    #[serde(default)]
    pub token_dim: Option<usize>,
    /// 2 for a model with encoder and decoder.
    #[serde(default)]
    pub num_transformer_submodules: Option<usize>,
    /// Number of heads; of key heads for a prefix.
    #[serde(default)]
    pub num_attention_heads: Option<usize>,
    /// Number of layers.
    #[serde(default)]
    pub num_layers: Option<usize>,
    /// Modules that are trained and saved whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// `CAUSAL_LM`, `SEQ_CLS`, …: says what becomes of token types, and adds the head of the task to `modules_to_save`.
    #[serde(default)]
    pub task_type: Option<String>,
}

/// Sizes that a model and a configuration agree on.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// The embedding matrix.
    pub(crate) table: Arc<ParamSpec>,
    pub(crate) virtual_tokens: usize,
    pub(crate) submodules: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    pub(crate) drops_token_types: bool,
}

impl Sizes {
    /// Rows of the tables that tokens come from: those of the decoder follow those of the encoder.
    pub(crate) fn rows(&self) -> usize {
        self.virtual_tokens * self.submodules
    }

    /// What a configuration did not say, as the reference writes it.
    pub(crate) fn derived(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        for (field, value) in [
            ("token_dim", self.width),
            ("num_transformer_submodules", self.submodules),
            ("num_attention_heads", self.heads),
            ("num_layers", self.layers),
        ] {
            fields.insert(field.into(), value.into());
        }
        fields
    }
}

/// Whether a prompt consists of tokens or of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tokens,
    Prefix,
}

impl PromptLearning {
    /// Some virtual tokens for a task, everything else from the model.
    pub fn new(num_virtual_tokens: usize, task_type: &str) -> Self {
        let (num_virtual_tokens, task_type) = (Some(num_virtual_tokens), Some(task_type.to_owned()));
        Self { num_virtual_tokens, task_type, ..Self::default() }
    }

    pub(crate) fn sizes(&self, spec: &ModelSpec, kind: Kind) -> Result<Sizes> {
        let Some(shape) = &spec.prompts else {
            let model = spec.model_type.as_deref().map_or("this model".to_owned(), |it| format!("model_type `{it}`"));
            let reason = match spec.token_table() {
                Some(_) => "it does not say where its words come from",
                None => {
                    "it has no table of words, beside which virtual tokens could stand: use a method that changes weights, \
                     such as LoRA"
                }
            };
            return Err(PeftError::unsupported(format!("a prompt on {model}"), reason));
        };
        let path = format!("{}.weight", shape.table);
        let Some(table) = spec.get(&path) else {
            return Err(PeftError::unsupported("a prompt on this model", format!("it has no `{path}`")));
        };
        let virtual_tokens = match self.num_virtual_tokens {
            None => return Err(PeftError::config("num_virtual_tokens", "is missing; 8 to 50 are usual")),
            Some(0) => return Err(PeftError::config("num_virtual_tokens", "must be at least 1")),
            Some(count) => count,
        };
        let submodules = self.num_transformer_submodules.unwrap_or(match self.task_type.as_deref() {
            Some("SEQ_2_SEQ_LM") => 2,
            _ => 1,
        });
        if !(1..=2).contains(&submodules) {
            return Err(PeftError::config("num_transformer_submodules", format!("is {submodules}, expected 1 or 2")));
        }
        let PromptShape { d_model, layers, heads, kv_heads, d_head, .. } = *shape;
        let (width, heads) = match kind {
            Kind::Tokens => (d_model, heads),
            Kind::Prefix => (kv_heads * d_head, kv_heads),
        };
        let mut given = vec![("token_dim", self.token_dim, width)];
        // The reference counts the layers of the encoder, where there is one: what is left over goes nowhere.
        let layers = self.num_layers.filter(|it| *it >= layers).unwrap_or(layers);
        if kind == Kind::Prefix {
            given.extend([
                ("num_attention_heads", self.num_attention_heads, heads),
                ("num_layers", self.num_layers, layers),
            ]);
        }
        for (field, value, wanted) in given {
            if let Some(value) = value.filter(|it| *it != wanted) {
                return Err(PeftError::config(field, format!("is {value}, but the model has {wanted}")));
            }
        }
        // The reference's wrapper of each of these tasks puts type 0 before them, the other wrappers drop them.
        let drops_token_types = !matches!(self.task_type.as_deref(), None | Some("SEQ_CLS" | "TOKEN_CLS"));
        Ok(Sizes { table: table.clone(), virtual_tokens, submodules, width, heads, layers, drops_token_types })
    }

    fn saved(&self) -> SavedModules {
        SavedModules::new(self.modules_to_save.as_ref(), self.task_type.as_deref())
    }

    /// A plan of one prompt and of the modules that are saved beside it. `export_form` is the row of a prompt without its
    /// encoder, where it has one.
    pub(crate) fn plan(
        &self,
        method: &str,
        spec: &ModelSpec,
        row: PlanRow,
        export_form: Option<PlanRow>,
        derived: Map<String, Value>,
    ) -> Result<Plan> {
        let mut plan = Plan::new(method, spec);
        self.saved().add_with(&mut plan, spec, replacement_row_beside_prompt)?;
        let saved = std::mem::take(&mut plan.rows);
        let with = |row: PlanRow| std::iter::once(row).chain(saved.clone()).collect::<Vec<_>>();
        plan.export_form = export_form.map(with);
        plan.rows = with(row);
        plan.derived = derived;
        Ok(plan)
    }

    /// The fields of a configuration as the reference writes them.
    pub(crate) fn write<T: Serialize>(&self, config: &T) -> Result<Map<String, Value>> {
        fields::config_json(config, &self.saved())
    }
}
