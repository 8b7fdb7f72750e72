//! What a caller asks of a head.

use peft_core::Labels;
use serde_json::{Value, json};

use crate::common::config::RawConfig;

/// What a classifier is to be, where its folder does not say or says something else.
#[derive(Debug, Clone, Default)]
pub struct ClassifierOptions {
    /// Number of outputs.
    pub num_labels: Option<usize>,
    /// Their names, in order: `id2label`. An adapter that trains the head saves them.
    pub label_names: Option<Vec<String>>,
    /// `regression`, `single_label_classification` or `multi_label_classification`.
    pub problem_type: Option<String>,
    /// The padding token, which decoders must know to find the last token of a row.
    pub pad_token_id: Option<i64>,
    /// Seed of a head that the checkpoint lacks.
    pub seed: u64,
}

impl ClassifierOptions {
    /// A head for these labels, such as those of a data file.
    pub fn for_labels(labels: &Labels) -> Self {
        Self {
            num_labels: Some(labels.names.len().max(1)),
            label_names: (!labels.names.is_empty()).then(|| labels.names.clone()),
            problem_type: labels.problem_type.clone(),
            ..Self::default()
        }
    }

    /// Has `config.json` say what was asked for.
    pub(super) fn write_into(&self, raw: &mut RawConfig) {
        let mut set = |field: &str, value: Value| raw.json.insert(field.to_owned(), value);
        if let Some(labels) = self.num_labels {
            set("num_labels", json!(labels));
        }
        if let Some(names) = &self.label_names {
            let names = names.iter().enumerate().map(|(id, name)| (id.to_string(), Value::from(name.as_str())));
            set("id2label", Value::Object(names.collect()));
        }
        if let Some(kind) = &self.problem_type {
            set("problem_type", json!(kind));
        }
    }
}
