//! The reference's published numbers of trainable parameters, from real configurations that are never allocated.
//!
//! Sources: the task guides and examples of PEFT 0.6.2, and for Llama 3.2 the results of its MetaMathQA benchmark.

use peft::core::{Adaptable, ModelSpec, Plan};
use peft::models::auto::{
    AutoCausalLm, AutoImageClassifier, AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq,
    AutoTokenClassifier,
};
use peft::models::common::config::RawConfig;
use serde_json::{Map, Value};

use crate::support::device;

const BLOOMZ_560M: &str = r#"{"model_type": "bloom", "vocab_size": 250880, "n_embed": 1024, "n_layer": 24,
    "num_attention_heads": 16}"#;
const BLOOMZ_7B1: &str = r#"{"model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30,
    "n_head": 32}"#;
const OPT_6_7B: &str = r#"{"model_type": "opt", "vocab_size": 50272, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "ffn_dim": 16384, "word_embed_proj_dim": 4096}"#;
const LLAMA_7B: &str = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_hidden_layers": 32, "tie_word_embeddings": false, "vocab_size": 32000}"#;
const LLAMA_3_2_3B: &str = r#"{"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "head_dim": 128,
    "num_attention_heads": 24, "num_key_value_heads": 8, "num_hidden_layers": 28, "tie_word_embeddings": true,
    "vocab_size": 128256}"#;
const T5_LARGE: &str = r#"{"model_type": "t5", "d_ff": 4096, "d_kv": 64, "d_model": 1024, "num_layers": 24,
    "num_heads": 16, "feed_forward_proj": "relu", "vocab_size": 32128}"#;
const FLAN_T5_LARGE: &str = r#"{"model_type": "t5", "d_ff": 2816, "d_kv": 64, "d_model": 1024, "num_layers": 24,
    "num_heads": 16, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "vocab_size": 32128}"#;
const MT0_LARGE: &str = r#"{"model_type": "mt5", "d_ff": 2816, "d_kv": 64, "d_model": 1024, "num_layers": 24,
    "num_heads": 16, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "vocab_size": 250112}"#;
const ROBERTA_LARGE: &str = r#"{"model_type": "roberta", "hidden_size": 1024, "intermediate_size": 4096,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "num_attention_heads": 16, "num_hidden_layers": 24,
    "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265}"#;

fn spec(model: &str, task: &str) -> ModelSpec {
    let mut raw = RawConfig::parse_text(model).unwrap();
    match task {
        "CAUSAL_LM" => AutoCausalLm::from_config(&raw, &device()).unwrap().spec(),
        "SEQ_2_SEQ_LM" => AutoSeq2SeqLm::from_config(&raw, &device()).unwrap().spec(),
        "SEQ_CLS" => AutoSequenceClassifier::from_config(&raw, &device()).unwrap().spec(),
        "IMAGE_CLS" => AutoImageClassifier::from_config(&raw, &device()).unwrap().spec(),
        "SEMANTIC_SEG" => AutoSemanticSegmenter::from_config(&raw, &device()).unwrap().spec(),
        _ => {
            raw.json.insert("num_labels".into(), 11.into());
            AutoTokenClassifier::from_config(&raw, &device()).unwrap().spec()
        }
    }
}

/// The plan of a configuration, given as the fields in which it differs from the defaults.
fn plan(spec: &ModelSpec, task: &str, peft_type: &str, fields: &str) -> Plan {
    let mut json: Map<String, Value> = serde_json::from_str(&format!("{{{fields}}}")).unwrap();
    json.insert("peft_type".into(), peft_type.into());
    // The reference has no task for pictures.
    if !["IMAGE_CLS", "SEMANTIC_SEG"].contains(&task) {
        json.insert("task_type".into(), task.into());
    }
    let plan = peft::methods().parse(json).unwrap().plan(spec).unwrap();
    assert!(plan.unmatched.is_empty(), "{peft_type} {fields}: {:?}", plan.unmatched);
    plan
}

fn trainable(model: &str, task: &str, peft_type: &str, fields: &str) -> usize {
    plan(&spec(model, task), task, peft_type, fields).trainable()
}

/// PEFT's guide to Whisper with int8 weights: 1.01 % of all.
#[test]
fn whisper_large_v2() {
    let raw = RawConfig::parse_text(
        r#"{"model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32,
            "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120}"#,
    );
    let spec = AutoSpeechSeq2Seq::from_config(&raw.unwrap(), &device()).unwrap().spec();
    let json = r#"{"peft_type": "LORA", "r": 32, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"]}"#;
    let plan = peft::methods().parse(serde_json::from_str(json).unwrap()).unwrap().plan(&spec).unwrap();
    assert_eq!((plan.trainable(), spec.parameters() + plan.trainable()), (15_728_640, 1_559_033_600));
}

#[test]
fn bloomz() {
    let small = |peft_type, fields| trainable(BLOOMZ_560M, "CAUSAL_LM", peft_type, fields);
    assert_eq!(small("PROMPT_TUNING", r#""num_virtual_tokens": 8"#), 8_192);
    assert_eq!(small("PREFIX_TUNING", r#""num_virtual_tokens": 30"#), 1_474_560);
    // 0.263 % of all.
    assert_eq!(spec(BLOOMZ_560M, "CAUSAL_LM").parameters() + 1_474_560, 560_689_152);
    assert_eq!(trainable(BLOOMZ_7B1, "CAUSAL_LM", "LORA", r#""r": 8, "lora_alpha": 32"#), 3_932_160);
}

#[test]
fn opt_6_7b() {
    assert_eq!(
        trainable(OPT_6_7B, "CAUSAL_LM", "LORA", r#""r": 16, "target_modules": ["q_proj", "v_proj"]"#),
        8_388_608
    );
}

/// LoRA as alpaca-lora prints it, and the 1.2 M of LLaMA-Adapter (Zhang et al. 2023): 10 tokens in the upper 30 layers.
#[test]
fn llama_7b() {
    let spec = spec(LLAMA_7B, "CAUSAL_LM");
    let lora = plan(&spec, "CAUSAL_LM", "LORA", r#""r": 8, "lora_alpha": 16"#);
    assert_eq!((lora.trainable(), spec.parameters() + lora.trainable()), (4_194_304, 6_742_609_920));
    let gated = plan(&spec, "CAUSAL_LM", "ADAPTION_PROMPT", r#""adapter_len": 10, "adapter_layers": 30"#);
    assert_eq!(gated.trainable(), 1_228_830);
}

#[test]
fn t5_large() {
    let count = |peft_type, fields| trainable(T5_LARGE, "SEQ_2_SEQ_LM", peft_type, fields);
    assert_eq!(count("PREFIX_TUNING", r#""num_virtual_tokens": 20"#), 983_040);
    // Twice: the reference has tokens for the encoder and for the decoder, and uses half of them.
    assert_eq!(count("PROMPT_TUNING", r#""num_virtual_tokens": 20"#), 40_960);
    assert_eq!(trainable(FLAN_T5_LARGE, "SEQ_2_SEQ_LM", "LORA", r#""r": 16, "lora_alpha": 32"#), 4_718_592);
}

#[test]
fn mt0_large() {
    let spec = spec(MT0_LARGE, "SEQ_2_SEQ_LM");
    let count = |peft_type, fields| plan(&spec, "SEQ_2_SEQ_LM", peft_type, fields).trainable();
    assert_eq!(count("LORA", r#""r": 8, "lora_alpha": 32"#), 2_359_296);
    assert_eq!(spec.parameters() + 2_359_296, 1_231_940_608);
    assert_eq!(count("IA3", r#""feedforward_modules": []"#), 282_624);
}

#[test]
fn roberta_large() {
    let count = |peft_type, fields| trainable(ROBERTA_LARGE, "SEQ_CLS", peft_type, fields);
    // The encoder's 300,288 and a head of 1,051,650.
    assert_eq!(count("P_TUNING", r#""num_virtual_tokens": 20, "encoder_hidden_size": 128"#), 1_351_938);
    // The reference prints 2,275,332: it counts the head a second time, whose original it forgets to freeze.
    assert_eq!(count("IA3", ""), 2_275_332 - 1_051_650);
    // Biases of norms are among those that are trained.
    let tokens = trainable(ROBERTA_LARGE, "TOKEN_CLS", "LORA", r#""r": 16, "lora_alpha": 16, "bias": "all""#);
    assert_eq!(tokens, 1_855_499);
}

/// The guides on pictures.
#[test]
fn vit_base_and_segformer_b0() {
    let vit = r#"{"model_type": "vit", "num_labels": 101}"#;
    let on_queries_and_values = r#""target_modules": ["query", "value"], "lora_alpha": 16"#;
    let lora = |fields: &str| trainable(vit, "IMAGE_CLS", "LORA", &format!("{on_queries_and_values}, {fields}"));
    assert_eq!(lora(r#""r": 16"#), 589_824);
    assert_eq!(lora(r#""r": 16, "modules_to_save": ["classifier"]"#), 667_493);
    let segformer = r#"{"model_type": "segformer", "num_labels": 150}"#;
    let lora = |bias: &str| {
        let fields =
            format!(r#"{on_queries_and_values}, "r": 32, "bias": "{bias}", "modules_to_save": ["decode_head"]"#);
        trainable(segformer, "SEMANTIC_SEG", "LORA", &fields)
    };
    // The guide's number was printed by a release that left out the biases which it names. Running statistics are not trained.
    assert_eq!(lora("none"), 564_374);
    assert_eq!(lora("lora_only"), 566_422);
}

/// Every method of this version that the benchmark has.
#[test]
fn llama_3_2_3b() {
    let spec = spec(LLAMA_3_2_3B, "CAUSAL_LM");
    assert_eq!(spec.parameters(), 3_212_749_824);
    let on_queries_and_values = [
        ("LORA", r#""r": 32, "lora_alpha": 64"#, 9_175_040),
        ("LORA", r#""r": 64, "lora_alpha": 64, "use_rslora": true"#, 18_350_080),
        ("LORA", r#""r": 32, "lora_alpha": 64, "use_dora": true"#, 9_289_728),
        ("HIRA", r#""r": 32"#, 9_175_040),
        ("SHIRA", r#""r": 32"#, 9_175_040),
        ("RANDLORA", r#""r": 32, "randlora_alpha": 640"#, 9_289_728),
        ("VERA", r#""r": 256, "d_initial": 0.1"#, 129_024),
        ("LOHA", r#""r": 32, "alpha": 64"#, 18_350_080),
        ("LOKR", r#""r": 32, "alpha": 64, "decompose_factor": 4"#, 2_294_656),
        ("OFT", r#""r": 32, "oft_block_size": 0, "use_cayley_neumann": true"#, 8_171_520),
        ("BOFT", r#""boft_block_size": 4, "boft_n_butterfly_factor": 1"#, 802_816),
        ("MISS", r#""r": 64, "mini_r": 1"#, 7_340_032),
        ("MISS", r#""r": 64, "mini_r": 1, "init_weights": "bat""#, 7_340_032),
        ("MISS", r#""r": 64, "mini_r": 64, "init_weights": "mini""#, 229_376),
        ("ADALORA", r#""init_r": 64, "target_r": 32, "total_step": 5000"#, 18_353_664),
        ("FOURIERFT", r#""n_frequency": 1000"#, 56_000),
        ("FOURIERFT", r#""n_frequency": 5000"#, 280_000),
    ];
    for (peft_type, fields, published) in on_queries_and_values {
        let fields = format!(r#"{fields}, "target_modules": ["q_proj", "v_proj"]"#);
        assert_eq!(plan(&spec, "CAUSAL_LM", peft_type, &fields).trainable(), published, "{peft_type} {fields}");
    }
    let others = [
        ("LORA", r#""r": 10, "target_modules": ["up_proj", "gate_proj", "down_proj"]"#, 9_461_760),
        ("IA3", "", 286_720),
        ("LN_TUNING", r#""target_modules": ["input_layernorm", "norm", "post_attention_layernorm"]"#, 175_104),
        ("TRAINABLE_TOKENS", r#""token_indices": [128000, 128001], "target_modules": ["embed_tokens"]"#, 6_144),
        ("ADAPTION_PROMPT", r#""adapter_len": 100, "adapter_layers": 28"#, 8_601_628),
        ("PROMPT_TUNING", r#""num_virtual_tokens": 200"#, 614_400),
        ("PREFIX_TUNING", r#""num_virtual_tokens": 50"#, 2_867_200),
        ("PREFIX_TUNING", r#""num_virtual_tokens": 200"#, 11_468_800),
        ("P_TUNING", r#""num_virtual_tokens": 20, "encoder_hidden_size": 3072"#, 28_382_208),
    ];
    for (peft_type, fields, published) in others {
        assert_eq!(plan(&spec, "CAUSAL_LM", peft_type, fields).trainable(), published, "{peft_type} {fields}");
    }
    let all = r#""target_modules": ["gate_proj", "o_proj", "q_proj", "k_proj", "v_proj", "down_proj", "up_proj"],
        "feedforward_modules": ["up_proj", "gate_proj", "down_proj"]"#;
    assert_eq!(plan(&spec, "CAUSAL_LM", "IA3", all).trainable(), 630_784);
}
