//! Real models are counted, never allocated.

use peft_core::Describe;
use peft_models::auto::{AutoCausalLm, AutoFeatureExtractor};
use peft_models::config::RawConfig;

use crate::support::device;

fn causal(json: &str) -> AutoCausalLm {
    AutoCausalLm::from_config(&RawConfig::parse_text(json).unwrap(), &device()).unwrap()
}

#[test]
fn gpt2() {
    let model = causal(r#"{"model_type": "gpt2"}"#);
    assert_eq!(model.describe().parameters(), 124_439_808);
}

#[test]
fn llama_2_7b() {
    let model = causal(
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
            "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "vocab_size": 32000}"#,
    );
    assert_eq!(model.describe().parameters(), 6_738_415_616);
    let AutoCausalLm::Llama(it) = model else { unreachable!() };
    assert!(!it.model.embed_tokens.weight.is_initialized() && !it.model.norm.weight.is_initialized());
}

#[test]
fn mistral_7b() {
    let model = causal(
        r#"{"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000}"#,
    );
    assert_eq!(model.describe().parameters(), 7_241_732_096);
    // The defaults are this model's, except for the norms' epsilon.
    assert_eq!(causal(r#"{"model_type": "mistral"}"#).describe().parameters(), 7_241_732_096);
}

#[test]
fn qwen2_half_b() {
    let model = causal(
        r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 131072,
            "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": true,
            "use_sliding_window": false, "vocab_size": 151936}"#,
    );
    assert_eq!(model.describe().parameters(), 494_032_768);
}

#[test]
fn bert_base_uncased() {
    let raw = RawConfig::parse_text(r#"{"model_type": "bert", "position_embedding_type": "absolute"}"#).unwrap();
    let model = AutoFeatureExtractor::from_config(&raw, &device()).unwrap();
    assert_eq!(model.describe().parameters(), 109_482_240);
}
