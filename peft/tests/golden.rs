//! The reference's published numbers of trainable parameters, from real configurations that are never allocated.

use peft::core::{Describe, Sites, Tuner};
use peft::lora::{Bias, LoraConfig};
use peft::models::auto::{AutoSeq2SeqLm, AutoTokenClassifier};
use peft::models::config::RawConfig;

use crate::support::device;

fn raw(json: &str) -> RawConfig {
    RawConfig::parse_text(json).unwrap()
}

fn trainable(config: &LoraConfig, sites: &Sites) -> usize {
    config.plan(sites).unwrap().trainable()
}

/// `examples/conditional_generation` of PEFT 0.6.2.
#[test]
fn mt0_large_conditional_generation() {
    let json = r#"{"model_type": "mt5", "d_ff": 2816, "d_kv": 64, "d_model": 1024, "num_layers": 24, "num_heads": 16,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "vocab_size": 250112}"#;
    let sites = AutoSeq2SeqLm::from_config(&raw(json), &device()).unwrap().describe();
    assert_eq!(trainable(&LoraConfig::new(8, 32.0), &sites), 2_359_296);
    assert_eq!(sites.parameters() + 2_359_296, 1_231_940_608);
}

/// `examples/int8_training` of PEFT 0.6.2.
#[test]
fn flan_t5_large() {
    let json = r#"{"model_type": "t5", "d_ff": 2816, "d_kv": 64, "d_model": 1024, "num_layers": 24, "num_heads": 16,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "vocab_size": 32128}"#;
    let sites = AutoSeq2SeqLm::from_config(&raw(json), &device()).unwrap().describe();
    assert_eq!(trainable(&LoraConfig::new(16, 32.0), &sites), 4_718_592);
}

/// The token-classification guide of PEFT 0.6.2: biases of norms among those that are trained.
#[test]
fn roberta_large_token_classification() {
    let json = r#"{"model_type": "roberta", "hidden_size": 1024, "intermediate_size": 4096, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1,
        "type_vocab_size": 1, "vocab_size": 50265, "num_labels": 11}"#;
    let sites = AutoTokenClassifier::from_config(&raw(json), &device()).unwrap().describe();
    let config = LoraConfig { bias: Bias::All, task_type: Some("TOKEN_CLS".into()), ..LoraConfig::new(16, 16.0) };
    assert_eq!(trainable(&config, &sites), 1_855_499);
}
