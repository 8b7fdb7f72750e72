//! LN tuning: the norms themselves are trained. Source: arXiv 2312.11420 and `peft/tuners/ln_tuning`.
//!
//! The reference copies any module that is named, norm or not; so does this, for modules that hold parameters
//! themselves. A copy of a module with modules inside has the adapter's name in its keys there, and is refused here.

use peft_core::config::fields::{self, SavedModules};
use peft_core::{
    MethodInfo, ModelSpec, Names, PeftConfig, Plan, Result, Selection, Tuner, refuse_unknown, replacement_row,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `peft_type` of LN tuning.
pub const PEFT_TYPE: &str = "LN_TUNING";

/// LN tuning's configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LnTuningConfig {
    /// Layers to train.
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Modules that are trained and saved whole beside them.
    pub modules_to_save: Option<Vec<String>>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl LnTuningConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }

    fn saved(&self) -> SavedModules {
        SavedModules::new(self.modules_to_save.as_ref(), self.task_type.as_deref())
    }
}

impl Tuner for LnTuningConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "LN tuning",
        peft_type: PEFT_TYPE,
        what: "the norms themselves",
        paper: "arXiv 2312.11420",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for LnTuningConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        let saved = self.saved();
        let selection = Selection {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            modules_to_save: saved.names(),
            ..Selection::default()
        };
        let selected = selection.resolve_modules(spec, spec.model_type.as_deref().and_then(defaults))?;
        let mut plan = Plan::new("LN tuning", spec);
        let is_meant = |module: &str| selected.params.iter().any(|it| it.module == module);
        for param in spec.iter().filter(|it| is_meant(&it.module)) {
            plan.rows.push(replacement_row(param, format!("{}.ln_tuning_layers.{}", param.module, param.name)));
        }
        saved.add_to(&mut plan, spec)?;
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        fields::config_json(self, &self.saved())
    }
}

/// Source: `TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING` in `peft/utils/constants.py` (0.21).
fn defaults(model_type: &str) -> Option<&'static [&'static str]> {
    Some(match model_type {
        "llama" | "mistral" | "gemma" => &["input_layernorm", "post_attention_layernorm", "norm"],
        "bloom" | "falcon" => &["input_layernorm", "post_attention_layernorm", "ln_f"],
        "llava" => {
            &["multi_modal_projector", "input_layernorm", "post_attention_layernorm", "norm", "embed_tokens", "lm_head"]
        }
        "t5" | "mt5" => &["layer_norm", "final_layer_norm"],
        "bart" => &["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"],
        "gpt2" => &["ln_1", "ln_2", "ln_f"],
        "blip-2" => &["layernorm", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"],
        "gptj" => &["ln_1", "ln_f"],
        "phi" => &["input_layernorm", "final_layernorm"],
        "gemma2" | "gemma3_text" => &[
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "norm",
        ],
        "qwen2" | "qwen3" => &["post_attention_layernorm"],
        _ => return None,
    })
}
