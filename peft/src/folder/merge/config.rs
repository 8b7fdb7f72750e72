//! `config.json` of a merged checkpoint: that of the base, with what follows from the tensors that were written.

use std::path::Path;

use peft_core::files::checkpoint::{FloatType, write_atomically};
use peft_core::{Labels, ModelSpec, PeftError, Result};
use peft_models::common::config::{LabelConfig, RawConfig};
use serde_json::{Map, Value, json};

use super::classes::class;
use crate::run::registry::KnownTask;

/// What is known of the weights that were written.
pub(super) struct Facts<'a> {
    pub(super) task: KnownTask<'a>,
    pub(super) spec: &'a ModelSpec,
    /// Whether the head is the embedding matrix.
    pub(super) is_tied: bool,
    pub(super) float: FloatType,
    /// What the adapters say of the outputs.
    pub(super) labels: Option<Labels>,
    /// The token that fills up short rows.
    pub(super) pad: Option<u32>,
}

/// The key of the head that takes in what the output of a T5's decoder is multiplied with before it, and that number. Only a
/// head of its own does. mT5 scales nothing.
pub(super) fn head_scale(raw: &RawConfig, is_tied: bool) -> Option<(&'static str, f32)> {
    let (text, key) = match of_text(&raw.json) {
        Some(text) => (text, "language_model.lm_head.weight"),
        None => (&raw.json, "lm_head.weight"),
    };
    let is_t5 = text.get("model_type").is_some_and(|it| it == "t5");
    let said = |field: &str| text.get(field).and_then(Value::as_bool);
    let scaled = said("scale_decoder_outputs").or(said("tie_word_embeddings")).unwrap_or(true);
    let d_model = text.get("d_model").and_then(Value::as_f64).unwrap_or(512.0);
    (is_t5 && !is_tied && scaled).then(|| (key, d_model.powf(-0.5) as f32))
}

/// The configuration of a language model behind a picture, which has the head.
fn of_text(json: &Map<String, Value>) -> Option<&Map<String, Value>> {
    let is_meant = json.get("model_type").is_some_and(|it| it == "blip-2");
    json.get(TEXT_CONFIG).filter(|_| is_meant).and_then(Value::as_object)
}

const TEXT_CONFIG: &str = "text_config";

/// Layers whose rows are the outputs of a classifier.
const SCORES: [&str; 4] =
    ["score.weight", "classifier.weight", "classifier.out_proj.weight", "decode_head.classifier.weight"];

/// What the number of layers is called.
const DEPTHS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];

impl Facts<'_> {
    /// The base's configuration, made true.
    pub(super) fn describe(&self, raw: &RawConfig) -> Map<String, Value> {
        let mut json = raw.json.clone();
        // Weights are written in full, whatever the base was kept in.
        json.shift_remove("quantization_config");
        // Files of diffusers say nothing of numbers, words or heads.
        if json.contains_key("_class_name") {
            return json;
        }
        self.tell_class(&mut json);
        self.tell_dtype(&mut json);
        self.tell_rows(&mut json);
        self.tell_depth(&mut json);
        self.tell_head(&mut json);
        if has_labels(self.task) {
            self.tell_labels(&mut json, raw);
        }
        // A decoder's classifier looks at the last token that is not padding. It was trained with the tokenizer's.
        if let (Some(pad), Some(_)) = (self.pad, self.spec.get("score.weight")) {
            json.insert("pad_token_id".into(), pad.into());
        }
        json
    }

    fn tell_class(&self, json: &mut Map<String, Value>) {
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let of_base = json.get("architectures").and_then(|it| it.get(0)).and_then(Value::as_str);
        if let Some(class) = class(model_type, self.task.name(), of_base) {
            json.insert("architectures".into(), json!([class]));
        }
    }

    /// transformers 5 calls it `dtype`, and 4 `torch_dtype`; it reads both.
    fn tell_dtype(&self, json: &mut Map<String, Value>) {
        let float = self.float.to_string();
        json.insert("dtype".into(), float.as_str().into());
        for at in [None].into_iter().chain(nested(json).into_iter().map(Some)) {
            let Some(object) = object_at(json, at.as_deref()) else { continue };
            for field in ["dtype", "torch_dtype"] {
                if let Some(value) = object.get_mut(field) {
                    *value = float.as_str().into();
                }
            }
        }
    }

    fn tell_rows(&self, json: &mut Map<String, Value>) {
        let named = self.spec.prompts.as_ref().and_then(|it| self.spec.get(&format!("{}.weight", it.table)));
        let table = named.or_else(|| self.spec.token_table());
        let Some(rows) = table.map(|it| it.shape_on_disk()[0]) else { return };
        let mut told = false;
        for at in [None].into_iter().chain(nested(json).into_iter().map(Some)) {
            let Some(object) = object_at(json, at.as_deref()) else { continue };
            for field in ["vocab_size", "padded_vocab_size"] {
                // Files of ChatGLM have a null where another generation has a number.
                if let Some(value) = object.get_mut(field).filter(|it| it.is_number()) {
                    *value = rows.into();
                    told = true;
                }
            }
        }
        if !told {
            json.insert("vocab_size".into(), rows.into());
        }
    }

    /// The layers of a base of which an adapter has repeated some. PEFT changes `num_hidden_layers` of the live configuration
    /// and leaves lists as they are.
    fn tell_depth(&self, json: &mut Map<String, Value>) {
        let Some(order) = &self.spec.layer_order else { return };
        let mut told = false;
        for at in [None].into_iter().chain(nested(json).into_iter().map(Some)) {
            let Some(object) = object_at(json, at.as_deref()) else { continue };
            for field in DEPTHS {
                if let Some(value) = object.get_mut(field).filter(|it| it.is_number()) {
                    *value = order.len().into();
                    told = true;
                }
            }
            if let (Some(value), Some(types)) = (object.get_mut("layer_types"), &self.spec.layer_types) {
                *value = json!(types);
            }
        }
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !told {
            let field = match model_type.as_str() {
                "gpt2" | "gptj" | "bloom" => "n_layer",
                "gpt_neo" | "chatglm" => "num_layers",
                _ => "num_hidden_layers",
            };
            json.insert(field.into(), order.len().into());
        }
        match &self.spec.layer_types {
            // It spells the two in its own way, and derives the second field from the first.
            Some(types) if model_type == "gpt_neo" => {
                let name = |it: &String| if it == "full_attention" { "global" } else { "local" };
                json.insert("attention_types".into(), json!([[types.iter().map(name).collect::<Vec<_>>(), 1]]));
                json.insert("attention_layers".into(), json!(types.iter().map(name).collect::<Vec<_>>()));
            }
            Some(types) => drop(json.insert("layer_types".into(), json!(types))),
            None => {}
        }
    }

    fn tell_head(&self, json: &mut Map<String, Value>) {
        if !matches!(self.task.name(), "causal-lm" | "seq2seq-lm" | "masked-lm" | "speech-to-text" | "image-to-text") {
            return;
        }
        // A language model behind a picture goes by its own configuration, which may be left out where all is usual.
        if json.get("model_type").is_some_and(|it| it == "blip-2") {
            if let Value::Object(text) = json.entry(TEXT_CONFIG).or_insert_with(|| json!({"model_type": "opt"})) {
                self.tell_tie(text);
            }
            return;
        }
        self.tell_tie(json);
    }

    /// Whether the head is the embedding matrix, in the configuration of the model that has both.
    fn tell_tie(&self, json: &mut Map<String, Value>) {
        let tie = json.get("tie_word_embeddings").and_then(Value::as_bool);
        match json.get("model_type").and_then(Value::as_str) {
            // transformers 4 reads from one field whether the two are tied and whether the output is scaled, and 5 has two.
            // A head of its own has taken the scale in, so that both say no.
            Some("t5") if !self.is_tied => {
                json.insert("tie_word_embeddings".into(), false.into());
                json.insert("scale_decoder_outputs".into(), false.into());
            }
            Some("t5") => {
                json.entry("scale_decoder_outputs").or_insert((tie != Some(false)).into());
            }
            Some("mt5") => {}
            _ if !self.is_tied => {
                json.insert("tie_word_embeddings".into(), false.into());
            }
            _ => {}
        }
    }

    /// Names for all outputs: the adapter's, else the base's if they are as many, else those that transformers fills in.
    fn tell_labels(&self, json: &mut Map<String, Value>, raw: &RawConfig) {
        let scores = SCORES.iter().find_map(|it| self.spec.get(it));
        let Some(outputs) = scores.map(|it| it.shape_on_disk()[0]) else { return };
        // The number follows from the names, and may have been of another head.
        json.shift_remove("num_labels");
        let of_adapter = self.labels.as_ref().filter(|it| it.names.len() == outputs || it.names.is_empty());
        let of_base: Option<LabelConfig> = serde_json::from_value(Value::Object(raw.json.clone())).ok();
        let of_base = of_base.filter(|it| it.num_labels() == outputs).and_then(|it| it.label_names());
        match of_adapter {
            Some(labels) => {
                json.shift_remove("problem_type");
                json.extend(labels.problem_type.clone().map(|it| ("problem_type".to_owned(), it.into())));
            }
            None if of_base.is_some() => {}
            None => drop(json.shift_remove("problem_type")),
        }
        let names = of_adapter.map(|it| it.names.clone()).filter(|it| !it.is_empty()).or(of_base);
        let names = names.unwrap_or_else(|| (0..outputs).map(|it| format!("LABEL_{it}")).collect());
        let ids = names.iter().enumerate();
        let id2label: Map<String, Value> =
            ids.clone().map(|(id, name)| (id.to_string(), name.as_str().into())).collect();
        let label2id: Map<String, Value> = ids.map(|(id, name)| (name.clone(), id.into())).collect();
        json.insert("id2label".into(), id2label.into());
        json.insert("label2id".into(), label2id.into());
    }
}

/// Whether the task of a model is told by its outputs, so that they need names.
fn has_labels(task: KnownTask<'_>) -> bool {
    matches!(task.name(), "seq-cls" | "token-cls" | "image-cls" | "semantic-seg")
}

/// Names of the configurations inside a configuration, such as `text_config`, that describe the model of the text.
fn nested(json: &Map<String, Value>) -> Vec<String> {
    let is_meant =
        |name: &str| matches!(name, "text_config" | "llm_config" | "language_config" | "decoder" | "encoder");
    json.iter().filter(|(name, value)| is_meant(name) && value.is_object()).map(|(name, _)| name.clone()).collect()
}

fn object_at<'a>(json: &'a mut Map<String, Value>, at: Option<&str>) -> Option<&'a mut Map<String, Value>> {
    match at {
        None => Some(json),
        Some(name) => json.get_mut(name)?.as_object_mut(),
    }
}

/// Writes `config.json`.
pub(super) fn write(json: &Map<String, Value>, folder: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(json).map_err(|error| PeftError::Invalid(error.to_string()))?;
    write_atomically(folder.join("config.json"), format!("{text}\n").as_bytes())
}
