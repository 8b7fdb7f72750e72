//! Real models are counted, never allocated.

use std::fs;

use peft_core::Adaptable;
use peft_models::auto::{
    ArchitectureRegistry, AutoCausalLm, AutoFeatureExtractor, AutoImageClassifier, AutoSemanticSegmenter,
    AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq, AutoTokenClassifier,
};
use peft_models::common::config::RawConfig;
use peft_models::llama::LlamaForCausalLm;

use crate::support::{device, fixtures};

fn causal(json: &str) -> AutoCausalLm {
    AutoCausalLm::from_config(&RawConfig::parse_text(json).unwrap(), &device()).unwrap()
}

#[test]
fn gpt2() {
    let model = causal(r#"{"model_type": "gpt2"}"#);
    assert_eq!(model.spec().parameters(), 124_439_808);
}

#[test]
fn llama_2_7b() {
    let model = causal(
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
            "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "vocab_size": 32000}"#,
    );
    assert_eq!(model.spec().parameters(), 6_738_415_616);
    let it: &LlamaForCausalLm = model.downcast_ref().unwrap();
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
    assert_eq!(model.spec().parameters(), 7_241_732_096);
    // The defaults are this model's, except for the norms' epsilon.
    assert_eq!(causal(r#"{"model_type": "mistral"}"#).spec().parameters(), 7_241_732_096);
}

#[test]
fn qwen2_half_b() {
    let model = causal(
        r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 131072,
            "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": true,
            "use_sliding_window": false, "vocab_size": 151936}"#,
    );
    assert_eq!(model.spec().parameters(), 494_032_768);
}

/// As `num_parameters` of the reference counts them.
#[test]
fn followers_of_llama() {
    let qwen3 = causal(
        r#"{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
            "num_hidden_layers": 28, "num_key_value_heads": 8, "tie_word_embeddings": true}"#,
    );
    assert_eq!(qwen3.spec().parameters(), 596_049_920);
    assert_eq!(causal(r#"{"model_type": "gemma2"}"#).spec().parameters(), 2_614_341_888);
    let gemma3 = causal(
        r#"{"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
            "num_hidden_layers": 26, "num_key_value_heads": 1, "rope_local_base_freq": 10000, "rope_theta": 1000000,
            "vocab_size": 262144}"#,
    );
    assert_eq!(gemma3.spec().parameters(), 999_885_952);
    assert_eq!(causal(r#"{"model_type": "phi3"}"#).spec().parameters(), 3_821_079_552);
}

#[test]
fn bloomz_560m_and_7b1() {
    let bloom = |more: &str| causal(&format!(r#"{{"model_type": "bloom", "vocab_size": 250880, {more}}}"#));
    let small = bloom(r#""n_embed": 1024, "n_layer": 24, "num_attention_heads": 16"#);
    assert_eq!(small.spec().parameters(), 559_214_592);
    let large = bloom(r#""hidden_size": 4096, "n_layer": 30, "n_head": 32, "pretraining_tp": 4"#);
    assert_eq!(large.spec().parameters(), 7_069_016_064);
}

#[test]
fn opt_350m_and_6_7b() {
    let opt = |more: &str| causal(&format!(r#"{{"model_type": "opt", "vocab_size": 50272, {more}}}"#));
    let narrow = opt(r#""hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096,
           "word_embed_proj_dim": 512, "do_layer_norm_before": false"#);
    assert_eq!(narrow.spec().parameters(), 331_196_416);
    let wide = opt(r#""hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 16384,
           "word_embed_proj_dim": 4096"#);
    assert_eq!(wide.spec().parameters(), 6_658_473_984);
}

#[test]
fn gpt_neo_1_3b() {
    assert_eq!(causal(r#"{"model_type": "gpt_neo"}"#).spec().parameters(), 1_315_575_808);
}

#[test]
fn gpt_j_6b() {
    assert_eq!(causal(r#"{"model_type": "gptj"}"#).spec().parameters(), 6_050_882_784);
}

#[test]
fn gpt_neox_20b_and_pythia_410m() {
    assert_eq!(causal(r#"{"model_type": "gpt_neox"}"#).spec().parameters(), 20_554_567_680);
    let pythia = causal(
        r#"{"model_type": "gpt_neox", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "rotary_pct": 0.25, "rotary_emb_base": 10000, "vocab_size": 50304}"#,
    );
    assert_eq!(pythia.spec().parameters(), 405_334_016);
}

#[test]
fn chatglm_6b_and_chatglm2_6b() {
    assert_eq!(causal(r#"{"model_type": "chatglm"}"#).spec().parameters(), 6_173_286_400);
    let second = causal(
        r#"{"model_type": "chatglm", "padded_vocab_size": 65024, "ffn_hidden_size": 13696, "kv_channels": 128,
            "multi_query_attention": true, "multi_query_group_num": 2, "add_qkv_bias": true, "rmsnorm": true}"#,
    );
    assert_eq!(second.spec().parameters(), 6_243_584_000);
}

#[test]
fn bert_base_uncased() {
    let raw = RawConfig::parse_text(r#"{"model_type": "bert", "position_embedding_type": "absolute"}"#).unwrap();
    let model = AutoFeatureExtractor::from_config(&raw, &device()).unwrap();
    assert_eq!(model.spec().parameters(), 109_482_240);
}

fn counted(task: &str, json: &str) -> usize {
    let raw = RawConfig::parse_text(json).unwrap();
    let spec = match task {
        "features" => AutoFeatureExtractor::from_config(&raw, &device()).unwrap().spec(),
        "classes" => AutoSequenceClassifier::from_config(&raw, &device()).unwrap().spec(),
        "tokens" => AutoTokenClassifier::from_config(&raw, &device()).unwrap().spec(),
        "targets" => AutoSeq2SeqLm::from_config(&raw, &device()).unwrap().spec(),
        "pictures" => AutoImageClassifier::from_config(&raw, &device()).unwrap().spec(),
        "pixels" => AutoSemanticSegmenter::from_config(&raw, &device()).unwrap().spec(),
        other => panic!("{other}"),
    };
    spec.parameters()
}

const ROBERTA_LARGE: &str = r#"{"model_type": "roberta", "hidden_size": 1024, "intermediate_size": 4096,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "num_attention_heads": 16, "num_hidden_layers": 24,
    "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265, "num_labels": 11}"#;

#[test]
fn roberta_large() {
    assert_eq!(counted("features", ROBERTA_LARGE), 355_359_744);
    assert_eq!(counted("tokens", ROBERTA_LARGE), 354_321_419);
    assert_eq!(counted("classes", &ROBERTA_LARGE.replace("11", "2")), 355_361_794);
}

#[test]
fn deberta_base_and_its_followers() {
    let base = r#"{"model_type": "deberta", "relative_attention": true, "pos_att_type": "c2p|p2c",
        "position_biased_input": false, "max_relative_positions": -1}"#;
    assert_eq!(counted("features", base), 138_601_728);
    let v3 = r#"{"model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
        "pos_att_type": "p2c|c2p", "relative_attention": true, "position_biased_input": false}"#;
    assert_eq!(counted("features", v3), 183_831_552);
    let xlarge = r#"{"model_type": "deberta-v2", "conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 256,
        "norm_rel_ebd": "layer_norm", "share_att_key": true, "pos_att_type": "p2c|c2p", "relative_attention": true,
        "position_biased_input": false, "attention_head_size": 64}"#;
    assert_eq!(counted("features", xlarge), 884_593_152);
}

#[test]
fn modernbert_base() {
    assert_eq!(counted("features", r#"{"model_type": "modernbert"}"#), 149_014_272);
}

#[test]
fn t5_large_and_mt0_large() {
    let large = r#"{"model_type": "t5", "d_ff": 4096, "d_kv": 64, "d_model": 1024, "num_layers": 24, "num_heads": 16,
        "vocab_size": 32128}"#;
    assert_eq!(counted("targets", large), 737_668_096);
    let large = r#"{"model_type": "mt5", "d_ff": 2816, "d_kv": 64, "d_model": 1024, "num_layers": 24, "num_heads": 16,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "vocab_size": 250112}"#;
    assert_eq!(counted("targets", large), 1_229_581_312);
}

#[test]
fn bart_base_and_mbart_large() {
    let base = r#"{"model_type": "bart", "d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "is_encoder_decoder": true}"#;
    assert_eq!(counted("targets", base), 139_420_416);
    assert_eq!(counted("targets", r#"{"model_type": "mbart", "vocab_size": 250027}"#), 610_851_840);
}

/// As `num_parameters` of the reference counts them.
#[test]
fn models_that_read_pictures() {
    assert_eq!(counted("pictures", r#"{"model_type": "vit", "num_labels": 101}"#), 85_876_325);
    let large = r#"{"model_type": "vit", "num_labels": 1000, "hidden_size": 1024, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 4096, "image_size": 384, "patch_size": 32}"#;
    assert_eq!(counted("pictures", large), 306_632_680);
    assert_eq!(counted("pictures", r#"{"model_type": "swin", "num_labels": 1000}"#), 28_288_354);
    let large = r#"{"model_type": "swin", "num_labels": 1000, "image_size": 384, "embed_dim": 192,
        "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}"#;
    assert_eq!(counted("pictures", large), 196_735_516);
    assert_eq!(counted("pixels", r#"{"model_type": "segformer", "num_labels": 150}"#), 3_752_694);
    assert_eq!(counted("pictures", r#"{"model_type": "segformer", "num_labels": 1000}"#), 3_576_392);
    let b5 = r#"{"model_type": "segformer", "num_labels": 150, "depths": [3, 6, 40, 3],
        "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}"#;
    assert_eq!(counted("pixels", b5), 84_708_694);
}

/// Published numbers: 72.6 M and 1,543 M parameters, the tied head once.
#[test]
fn whisper_base_and_large_v2() {
    let counted = |json: &str| {
        let raw = RawConfig::parse_text(json).unwrap();
        AutoSpeechSeq2Seq::from_config(&raw, &device()).unwrap().spec().parameters()
    };
    let base = r#"{"model_type": "whisper", "d_model": 512, "encoder_layers": 6, "decoder_layers": 6,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}"#;
    assert_eq!(counted(base), 72_593_920);
    let large = r#"{"model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32,
        "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120}"#;
    assert_eq!(counted(large), 1_543_304_960);
}

/// A `config.json` comes from anywhere, and is understood before a weight is looked at.
#[test]
fn no_number_of_a_configuration_allocates_overflows_or_panics() {
    let registry = ArchitectureRegistry::builtin();
    let folders = fs::read_dir(fixtures().join("models")).unwrap().map(|it| it.unwrap().path());
    // One of each architecture.
    let tiny = folders.filter(|it| it.to_str().is_some_and(|it| it.ends_with("-tiny")));
    let configs: Vec<RawConfig> = tiny.map(|folder| RawConfig::read(folder).unwrap()).collect();
    let mut built = 0;
    for (config, number) in configs.iter().flat_map(|it| [0, 1, 7, 1 << 28, u64::MAX].map(|number| (it, number))) {
        let counts = config.json.iter().filter(|(_, value)| value.is_u64()).map(|(field, _)| field);
        for field in counts {
            let mut raw = config.clone();
            raw.json.insert(field.clone(), number.into());
            built += usize::from(registry.causal_lm(&raw, &device()).is_ok_and(|it| it.spec().parameters() > 0));
            built += usize::from(registry.seq2seq_lm(&raw, &device()).is_ok_and(|it| it.spec().parameters() > 0));
            built += usize::from(registry.speech_seq2seq(&raw, &device()).is_ok_and(|it| it.spec().parameters() > 0));
            built += usize::from(registry.masked_lm(&raw, &device()).is_ok_and(|it| it.spec().parameters() > 0));
            let classifier = registry.sequence_classifier(&raw, &device());
            built += usize::from(classifier.is_ok_and(|it| it.spec().parameters() > 0));
            built += usize::from(registry.image_classifier(&raw, &device()).is_ok_and(|it| it.spec().parameters() > 0));
            built +=
                usize::from(registry.semantic_segmenter(&raw, &device()).is_ok_and(|it| it.spec().parameters() > 0));
        }
    }
    assert!(built > configs.len(), "{built} of {} configurations came to a model", configs.len());
}

#[test]
fn more_layers_than_any_model_has_are_named() {
    let registry = ArchitectureRegistry::builtin();
    for (model_type, field) in [("gpt2", "n_layer"), ("llama", "num_hidden_layers"), ("bart", "decoder_layers")] {
        let text = format!(r#"{{"model_type": "{model_type}", "{field}": 1000000000000}}"#);
        let raw = RawConfig::parse_text(&text).unwrap();
        let error = match model_type {
            "bart" => registry.seq2seq_lm(&raw, &device()).map(drop),
            _ => registry.causal_lm(&raw, &device()).map(drop),
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("10000"), "{error}");
    }
}
