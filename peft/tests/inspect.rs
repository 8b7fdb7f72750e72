//! What is said about adapter folders: recorded ones, and copies with one thing changed.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft::core::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
use peft::core::{CONFIG_FILE, WEIGHTS_FILE};
use peft::inspect::{Fit, Inspection, Outcome, Reason, Verdict, inspect};
use serde_json::{Map, Value, json};

use crate::support::fixtures;

use Outcome::{Loads, LoadsButIgnores, Refuses};

fn adapter(case: &str) -> PathBuf {
    fixtures().join("cases").join(case).join("default")
}

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn of(case: &str) -> Inspection {
    inspect(&adapter(case), None).unwrap()
}

/// A copy of a recorded adapter with other settings and tensors.
fn edited(case: &str, settings: Value, edit: impl Fn(&mut Vec<Stored>)) -> tempfile::TempDir {
    let (from, to) = (adapter(case), tempfile::tempdir().unwrap());
    let text = std::fs::read_to_string(from.join(CONFIG_FILE)).unwrap();
    let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
    config.extend(settings.as_object().unwrap().clone());
    std::fs::write(to.path().join(CONFIG_FILE), serde_json::to_string(&config).unwrap()).unwrap();
    let file = TensorFile::open(from.join(WEIGHTS_FILE)).unwrap();
    let mut tensors: Vec<Stored> =
        file.keys().into_iter().map(|key| Stored { data: file.floats(&key).unwrap(), key }).collect();
    edit(&mut tensors);
    write_tensors(to.path().join(WEIGHTS_FILE), tensors, FloatType::F32).unwrap();
    to
}

/// The recorded default adapter with other settings.
fn with(settings: Value) -> Inspection {
    inspect(edited("llama_lora_default", settings, |_| {}).path(), None).unwrap()
}

fn verdict<'a>(it: &'a Inspection, consumer: &str) -> &'a Verdict {
    it.verdicts.iter().find(|it| it.consumer == consumer).unwrap()
}

/// What the programs do, in the order of the columns below.
fn outcomes(it: &Inspection) -> [Outcome; 7] {
    ["this program", "PEFT", "vLLM", "TGI / LoRAX", "llama.cpp", "Ollama", "mistral.rs"]
        .map(|name| verdict(it, name).outcome)
}

#[track_caller]
fn assert_says(it: &Inspection, consumer: &str, outcome: Outcome, words: &str) {
    let verdict = verdict(it, consumer);
    let said = verdict.reasons.iter().any(|it| it.outcome == outcome && it.what.contains(words));
    assert!(said, "{consumer} should say `{words}`:\n{verdict}");
    assert!(verdict.reasons.iter().all(|Reason { next, .. }| !next.is_empty()));
}

#[track_caller]
fn assert_warns(it: &Inspection, words: &str) {
    assert!(it.warnings.iter().any(|it| it.contains(words)), "{:?}", it.warnings);
}

#[test]
fn a_plain_adapter_is_described_and_read_by_everybody() {
    let it = of("llama_lora_default");
    assert_eq!(it.peft_type.as_deref(), Some("LORA"));
    assert_eq!(it.task_type.as_deref(), Some("CAUSAL_LM"));
    assert_eq!(it.base_model_name_or_path.as_deref(), Some("models/llama-tiny"));
    assert!(it.known && it.warnings.is_empty() && it.other_tensors.is_empty(), "{it}");
    let groups: Vec<_> =
        it.layers.iter().map(|it| (it.name.as_str(), it.paths.len(), it.rank, it.alpha, it.scale)).collect();
    assert_eq!(groups, [("q_proj", 2, 4, 6.0, 1.5), ("v_proj", 2, 4, 6.0, 1.5)]);
    assert_eq!((it.tensors.list.len(), it.tensors.parameters, it.tensors.bytes), (8, 896, 3584));
    assert_eq!(it.tensors.dtypes["F32"], 8);
    assert_eq!(outcomes(&it), [Loads; 7], "{it}");
    assert_eq!(verdict(&it, "diffusers").outcome, Refuses);
    let text = it.to_string();
    assert!(text.contains("q_proj ×2  r=4 α=6 scale 1.5"), "{text}");
}

#[test]
fn every_recorded_adapter_can_be_inspected_against_its_base_and_fits() {
    for case in std::fs::read_dir(fixtures().join("cases")).unwrap() {
        let case = case.unwrap().file_name().into_string().unwrap();
        if !adapter(&case).is_dir() {
            continue;
        }
        let base = model(&crate::support::case(&case).model);
        let it = inspect(&adapter(&case), Some(&base)).unwrap_or_else(|error| panic!("{case}: {error}"));
        let fit = it.fit.as_ref().unwrap();
        assert_eq!(fit.fits, Some(true), "{case}: {fit}");
        assert!(fit.adapter_parameters > 0 && fit.base_parameters > 0);
        assert_eq!(verdict(&it, "PEFT").outcome, Loads, "{case}: {it}");
        assert_eq!(verdict(&it, "this program").outcome, Loads, "{case}: {it}");
    }
}

#[test]
fn dora() {
    let it = of("llama_dora_rslora");
    assert_eq!(outcomes(&it), [Loads, Loads, Refuses, LoadsButIgnores, Refuses, LoadsButIgnores, Refuses], "{it}");
    assert_says(&it, "vLLM", Refuses, "use_dora");
    assert_says(&it, "llama.cpp", Refuses, "DoRA");
    assert_says(&it, "mistral.rs", Refuses, "use_dora");
    assert_eq!(it.settings["use_dora"], true);

    let it = inspect(edited("bert_dora", json!({"use_dora": false}), |_| {}).path(), None).unwrap();
    assert_says(&it, "PEFT", LoadsButIgnores, "`use_dora` is off");
    let without = edited("llama_dora_rslora", json!({}), |it| it.retain(|it| !it.key.ends_with("magnitude_vector")));
    assert_says(&inspect(without.path(), None).unwrap(), "PEFT", LoadsButIgnores, "magnitudes start afresh");
}

#[test]
fn rslora_is_lost_on_those_who_divide_by_the_rank() {
    let it = of("llama_rslora");
    assert_eq!(it.layers[0].scale, 3.0);
    assert_eq!(outcomes(&it), [Loads, Loads, Loads, Loads, LoadsButIgnores, LoadsButIgnores, Loads], "{it}");
    assert_says(&it, "llama.cpp", LoadsButIgnores, "use_rslora");
    // α · √r: 6 · √4.
    assert!(verdict(&it, "Ollama").reasons.iter().any(|it| it.next.contains("`lora_alpha` to 12 ")), "{it}");
}

#[test]
fn patterns() {
    let it = of("llama_lora_patterns");
    assert_says(&it, "vLLM", LoadsButIgnores, "rank_pattern");
    assert_says(&it, "vLLM", LoadsButIgnores, "alpha_pattern");
    assert_says(&it, "llama.cpp", LoadsButIgnores, "alpha_pattern");
    assert!(!verdict(&it, "llama.cpp").reasons.iter().any(|it| it.what.contains("rank_pattern")));
    assert_eq!(verdict(&it, "mistral.rs").outcome, Loads, "{it}");
    let ranks: Vec<_> = it.layers.iter().filter(|it| it.name == "q_proj").map(|it| (it.rank, it.alpha)).collect();
    assert_eq!(ranks, [(5, 6.0), (6, 9.0)]);

    // A pattern that changes no layer is no reason.
    assert_eq!(outcomes(&with(json!({"alpha_pattern": {"k_proj": 3}}))), [Loads; 7]);
}

#[test]
fn biases_and_saved_modules() {
    let it = of("llama_bias_all");
    assert_eq!(outcomes(&it), [Loads, Loads, Refuses, LoadsButIgnores, Refuses, Loads, Refuses], "{it}");
    assert_says(&it, "vLLM", Refuses, "`bias` all");
    assert_says(&it, "mistral.rs", Refuses, "`bias` all");

    let it = of("llama_save_lm_head");
    assert_says(&it, "vLLM", Refuses, "modules_to_save");
    assert_says(&it, "llama.cpp", Refuses, "saved whole");
    assert_says(&it, "mistral.rs", Refuses, "modules_to_save");
    assert_says(&it, "TGI / LoRAX", LoadsButIgnores, "lm_head.weight");

    // Norms are the one thing beside factors that llama.cpp takes.
    assert_eq!(verdict(&of("llama_save_norms"), "llama.cpp").outcome, Loads);

    let it = of("llama_lora_bias_unmergeable");
    assert_says(&it, "vLLM", Refuses, "bias of lora_B");
    assert_says(&it, "mistral.rs", Refuses, "lora_bias");
}

#[test]
fn large_ranks_and_odd_alphas() {
    let widen = |tensors: &mut Vec<Stored>| {
        for it in tensors {
            let shape: Vec<usize> = it.data.shape().iter().map(|&it| if it == 4 { 24 } else { it }).collect();
            it.data = TensorData::new(vec![0.5f32; shape.iter().product()], shape);
        }
    };
    let it = inspect(edited("llama_lora_default", json!({"r": 24}), widen).path(), None).unwrap();
    assert_says(&it, "vLLM", Refuses, "rank 24");
    assert!(verdict(&it, "vLLM").reasons[0].next.ends_with("--max-lora-rank 32"));
    // Wider than the output of v_proj, so that Ollama takes it for turned.
    assert_says(&it, "Ollama", LoadsButIgnores, "v_proj");

    let it = with(json!({"lora_alpha": 6.5}));
    assert_eq!(outcomes(&it), [Loads, Loads, Loads, Loads, Loads, Refuses, Loads], "{it}");
    assert_says(&it, "Ollama", Refuses, "6.5");
}

#[test]
fn starts_that_move_the_base_and_variants() {
    let it = of("llama_pissa");
    assert_says(&it, "vLLM", LoadsButIgnores, "init_lora_weights");
    assert_says(&it, "mistral.rs", Refuses, "init_lora_weights");
    let it = with(json!({"trainable_token_indices": [1, 2]}));
    assert_says(&it, "mistral.rs", Refuses, "trainable_token_indices");
    assert_says(&it, "vLLM", LoadsButIgnores, "trainable_token_indices");
    assert_says(&it, "this program", Refuses, "trainable_token_indices");
    let it = with(json!({"target_modules": null}));
    assert_says(&it, "vLLM", Refuses, "target_modules");
    assert_says(&with(json!({"target_modules": ["q_proj"]})), "mistral.rs", Refuses, "v_proj");
}

#[test]
fn layers_adapted_here_and_there() {
    let it = of("llama_lora_layers");
    assert_says(&it, "TGI / LoRAX", Refuses, "in 1 of 2 blocks");
}

#[test]
fn a_base_decides_what_depends_on_it() {
    let it = inspect(&adapter("qwen2_lora_default"), Some(&model("qwen2-tiny"))).unwrap();
    assert_says(&it, "Ollama", Refuses, "qwen2");
    let it = of("llama_lora_lm_head");
    assert_says(&it, "llama.cpp", Loads, "ties the head");
    let it = inspect(&adapter("llama_lora_lm_head"), Some(&model("llama-tied"))).unwrap();
    assert_says(&it, "llama.cpp", Refuses, "ties it to the embedding");
}

fn fill(value: f32, which: &'static str) -> impl Fn(&mut Vec<Stored>) {
    move |tensors| {
        for it in tensors.iter_mut().filter(|it| it.key.contains(which)) {
            it.data = TensorData::new(vec![value; it.data.num_elements()], it.data.shape());
        }
    }
}

#[test]
fn numbers_that_cannot_be_meant() {
    let untrained = edited("llama_lora_default", json!({}), fill(0.0, "lora_B"));
    assert_warns(&inspect(untrained.path(), None).unwrap(), "never trained");
    let partly = edited("llama_lora_default", json!({}), fill(0.0, "layers.1.self_attn.q_proj.lora_B"));
    assert_warns(&inspect(partly.path(), None).unwrap(), "1 of 4 updates are zero");
    let table = edited("llama_lora_embed_and_head", json!({}), fill(0.0, "lora_embedding_A"));
    assert_warns(&inspect(table.path(), None).unwrap(), "1 of 2 updates are zero");
    let broken = edited("llama_lora_default", json!({}), fill(f32::NAN, "layers.0.self_attn.v_proj.lora_A"));
    let it = inspect(broken.path(), None).unwrap();
    assert_warns(&it, "NaN or infinity in base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight");
}

#[test]
fn half_a_pair_and_ranks_that_contradict() {
    let half =
        edited("llama_lora_default", json!({}), |it| it.retain(|it| !it.key.contains("0.self_attn.q_proj.lora_B")));
    let it = inspect(half.path(), Some(&model("llama-tiny"))).unwrap();
    assert_warns(&it, "model.layers.0.self_attn.q_proj has no lora_B");
    assert_says(&it, "PEFT", LoadsButIgnores, "starts afresh");
    assert_says(&it, "mistral.rs", Refuses, "has no lora_B");
    let fit = it.fit.as_ref().unwrap();
    assert_eq!(fit.missing, ["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]);

    let it = with(json!({"r": 8}));
    assert_says(&it, "PEFT", Refuses, "tensors 4, configuration 8");
    assert_says(&it, "this program", Refuses, "tensors 4, configuration 8");
}

#[test]
fn a_base_of_another_shape_or_kind_does_not_fit() {
    let fit = |base: &str| inspect(&adapter("llama_lora_default"), Some(&model(base))).unwrap().fit.unwrap();
    let Fit { fits, misshapen, error, .. } = fit("llama-tied");
    assert_eq!(
        (fits, misshapen[0].file.as_slice(), misshapen[0].model.as_slice()),
        (Some(false), &[32, 4][..], &[48, 4][..])
    );
    assert!(error.unwrap().contains("wrong shape"));
    let Fit { fits, error, .. } = fit("gpt2-tiny");
    assert_eq!(fits, Some(false));
    assert!(error.unwrap().contains("target_modules"));
    // A causal adapter on a model that this build has only as an encoder.
    assert_eq!(fit("bert-tiny").fits, None);
    assert!(inspect(&adapter("llama_lora_default"), Some(Path::new("nowhere"))).is_err());
}

#[test]
fn unknown_methods_are_described_as_far_as_their_files_go() {
    let prompts = |tensors: &mut Vec<Stored>| {
        let data = TensorData::new(vec![0.5f32; 64], [2, 32]);
        *tensors = vec![Stored { key: "prompt_embeddings".into(), data }];
    };
    let settings = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2});
    let folder = edited("llama_lora_default", settings, prompts);
    let it = inspect(folder.path(), Some(&model("llama-tiny"))).unwrap();
    assert!(!it.known && it.layers.is_empty());
    assert_eq!(it.other_tensors, ["prompt_embeddings"]);
    assert_eq!(it.settings["num_virtual_tokens"], 2);
    assert_eq!(outcomes(&it), [Refuses, Loads, Refuses, Refuses, Refuses, Refuses, Refuses], "{it}");
    assert_eq!(it.fit.as_ref().unwrap().fits, None);
    let text = it.to_string();
    assert!(text.contains("not computed by this build") && text.contains("prompt_embeddings [2, 32]"), "{text}");

    let it = with(json!({"peft_type": "NO_SUCH"}));
    assert_says(&it, "PEFT", Refuses, "NO_SUCH");
    assert_says(&with(json!({"peft_type": null})), "PEFT", Refuses, "`peft_type` is missing");
}

#[test]
fn json_carries_everything() {
    let it = inspect(&adapter("llama_bias_all"), Some(&model("llama-tied"))).unwrap();
    let json = serde_json::to_value(&it).unwrap();
    assert_eq!(json["peft_type"], "LORA");
    assert_eq!(json["settings"]["bias"], "all");
    assert_eq!(json["layers"][0]["name"], "q_proj");
    assert_eq!(json["layers"][0]["rank"], 4);
    assert_eq!(json["tensors"]["list"][0]["values"], "ordinary");
    assert_eq!(json["fit"]["fits"], true);
    let vllm = json["verdicts"].as_array().unwrap().iter().find(|it| it["consumer"] == "vLLM").unwrap();
    assert_eq!(vllm["outcome"], "refuses");
    assert!(vllm["reasons"][0]["next"].as_str().unwrap().contains("merge"));
    assert_eq!(json["verdicts"][3]["outcome"], "loads_but_ignores");
}

#[test]
fn a_folder_that_holds_no_adapter_is_an_error() {
    let error = inspect(&model("llama-tiny"), None).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}
