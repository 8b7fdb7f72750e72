//! What the outputs of a classifier mean.

use serde_json::{Map, Value};

/// What the outputs of a head mean, as fields of the reference's `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `regression`, `single_label_classification` or `multi_label_classification`; `None` for labels of tokens.
    pub problem_type: Option<String>,
    /// Output → name: `id2label`. Empty for a regression.
    pub names: Vec<String>,
}

impl Labels {
    /// The fields `problem_type`, `id2label` and `label2id`.
    pub fn to_json(&self) -> Map<String, Value> {
        let ids = || self.names.iter().enumerate();
        let id2label: Map<String, Value> =
            ids().map(|(id, name)| (id.to_string(), Value::from(name.as_str()))).collect();
        let label2id: Map<String, Value> = ids().map(|(id, name)| (name.clone(), Value::from(id))).collect();
        let mut json = Map::new();
        json.insert("problem_type".into(), self.problem_type.clone().into());
        json.insert("id2label".into(), id2label.into());
        json.insert("label2id".into(), label2id.into());
        json
    }
}
