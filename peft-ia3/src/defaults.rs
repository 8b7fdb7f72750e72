//! Targets and feed-forward modules of a model type when a configuration names none.
//!
//! Source: `TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING` and `…_FEEDFORWARD_MODULES_MAPPING` in
//! `peft/utils/constants.py` (0.21).

/// Layers of a model type, and those among them that are feed-forward modules.
pub(crate) struct Defaults {
    pub(crate) targets: &'static [&'static str],
    pub(crate) feedforward: &'static [&'static str],
}

pub(crate) fn of(model_type: &str) -> Option<Defaults> {
    let (targets, feedforward): (&[&str], &[&str]) = match model_type {
        "t5" => (&["k", "v", "wo"], &["wo"]),
        "mt5" => (&["k", "v", "wi_1"], &[]),
        "gpt2" | "gpt_bigcode" => (&["c_attn", "mlp.c_proj"], &["mlp.c_proj"]),
        "bloom" => (&["query_key_value", "mlp.dense_4h_to_h"], &["mlp.dense_4h_to_h"]),
        "gpt_neox" | "RefinedWebModel" | "RefinedWeb" | "falcon" => {
            (&["query_key_value", "dense_4h_to_h"], &["dense_4h_to_h"])
        }
        "bert" | "roberta" => (&["key", "value", "output.dense"], &["output.dense"]),
        "deberta-v2" => (&["key_proj", "value_proj", "output.dense"], &["output.dense"]),
        "deberta" => (&["in_proj", "output.dense"], &["output.dense"]),
        "opt" => (&["q_proj", "k_proj", "fc2"], &["fc2"]),
        "bart" | "phi" => (&["q_proj", "v_proj", "fc2"], &["fc2"]),
        "gptj" => (&["q_proj", "v_proj", "fc_out"], &["fc_out"]),
        "gpt_neo" => (&["q_proj", "v_proj", "c_proj"], &["c_proj"]),
        "llama" | "mistral" => (&["k_proj", "v_proj", "down_proj"], &["down_proj"]),
        "mixtral" => (&["k_proj", "v_proj", "w2"], &["w2"]),
        "llama4" | "gemma" | "gemma2" | "gemma3_text" | "qwen2" | "qwen3" => {
            (&["q_proj", "v_proj", "down_proj"], &["down_proj"])
        }
        _ => return None,
    };
    Some(Defaults { targets, feedforward })
}
