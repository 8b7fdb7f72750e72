//! What `inspect` says about folders that the reference wrote, and about damaged and edited copies.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft::core::files::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
use peft::core::{CONFIG_FILE, PeftModel, WEIGHTS_FILE};
use peft::folder::inspect::{Inspection, Outcome, Verdict, inspect};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::{case, device, fixtures, registry};

const CONSUMERS: [&str; 6] = ["PEFT", "vLLM", "llama.cpp", "TGI/LoRAX", "mistral.rs", "Ollama"];

fn folder(case: &str) -> PathBuf {
    fixtures().join("cases").join(case).join("default")
}

fn look(case: &str) -> Inspection {
    inspect(&folder(case), None, registry()).unwrap()
}

/// A copy of a case's adapter with another configuration and other tensors.
fn edited(case: &str, config: impl FnOnce(&mut Map<String, Value>), tensors: impl FnOnce(&mut Vec<Stored>)) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(folder(case).join(CONFIG_FILE)).unwrap();
    let mut json: Map<String, Value> = serde_json::from_str(&text).unwrap();
    config(&mut json);
    std::fs::write(target.path().join(CONFIG_FILE), serde_json::to_string(&json).unwrap()).unwrap();
    let file = TensorFile::open(folder(case).join(WEIGHTS_FILE)).unwrap();
    let mut stored: Vec<Stored> =
        file.keys().into_iter().map(|key| Stored { data: file.floats(&key).unwrap(), key }).collect();
    tensors(&mut stored);
    write_tensors(target.path().join(WEIGHTS_FILE), stored, FloatType::F32).unwrap();
    target
}

/// The default adapter with one field of its configuration changed.
fn with(field: &str, value: Value) -> Inspection {
    let folder = edited("llama_lora_default", |json| drop(json.insert(field.into(), value)), |_| {});
    inspect(folder.path(), None, registry()).unwrap()
}

fn fill(stored: &mut Stored, value: f32) {
    stored.data = TensorData::new(vec![value; stored.data.num_elements()], stored.data.shape().clone());
}

#[track_caller]
fn verdict<'a>(inspection: &'a Inspection, consumer: &str) -> &'a Verdict {
    inspection.consumers.iter().find(|it| it.consumer == consumer).unwrap()
}

/// Outcomes in the order of [`CONSUMERS`]: `+` loads, `~` ignores something, `0` finds nothing, `-` refuses.
fn outcomes(inspection: &Inspection) -> String {
    let sign = |name: &str| match verdict(inspection, name).outcome {
        Outcome::Loads => '+',
        Outcome::LoadsButIgnores => '~',
        Outcome::LoadsNothing => '0',
        Outcome::Refuses => '-',
    };
    CONSUMERS.into_iter().map(sign).collect()
}

#[track_caller]
fn assert_reason(inspection: &Inspection, consumer: &str, effect: Outcome, part: &str) {
    let reasons = &verdict(inspection, consumer).reasons;
    let found = reasons.iter().any(|it| it.effect == effect && it.what.contains(part));
    assert!(found, "{consumer} says nothing about {part}: {reasons:?}");
}

#[test]
fn plain_lora_is_read_by_everybody() {
    let found = look("llama_lora_default");
    assert_eq!((found.peft_type.as_str(), found.task_type.as_deref()), ("LORA", Some("CAUSAL_LM")));
    assert_eq!((found.rank, found.alpha, found.scale), (Some(4), Some(6.0), Some(1.5)));
    assert_eq!(found.base_model_name_or_path.as_deref(), Some("models/llama-tiny"));
    assert_eq!((found.tensors, found.bytes), (8, 4 * found.parameters));
    assert_eq!(found.layers["q_proj"], 2);
    assert_eq!(found.layers["v_proj"], 2);
    assert_eq!(found.dtypes["F32"], 8);
    assert_eq!(found.ranks, [(4, 4)].into());
    assert!(found.warnings.is_empty(), "{:?}", found.warnings);
    assert_eq!(outcomes(&found), "++++++");

    let text = found.to_string();
    for part in ["LORA for models/llama-tiny", "r=4 α=6 scale=1.5", "8 tensors", "q_proj ×2, v_proj ×2", "vLLM"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
}

#[test]
fn what_each_program_makes_of_each_feature() {
    let mut wrong = Vec::new();
    for (case, wanted) in [
        ("llama_lora_all_linear", "++++++"),
        ("llama_lora_old_config", "++++++"),
        ("llama_lora_bf16_file", "++++++"),
        ("llama_pissa_converted", "++++++"),
        ("llama_dora_all_linear", "+--~--"),
        ("llama_rslora", "++~++~"),
        ("llama_lora_patterns", "+~~~+~"),
        ("llama_bias_all", "+--~--"),
        ("llama_bias_lora_only", "+--~--"),
        ("llama_lora_bias_unmergeable", "+--~--"),
        ("llama_save_lm_head", "+--~--"),
        ("llama_save_norms", "+-+~-+"),
        ("llama_pissa", "+~~~-~"),
        ("llama_olora", "+~~~-~"),
        ("llama_cls_lora", "+--~--"),
        ("llama_lora_embed_tokens", "+++~-+"),
        ("llama_lora_embed_and_head", "+~+~-+"),
        ("gpt2_lora_default", "+++++-"),
        ("bert_lora_features", "+++++-"),
    ] {
        let found = look(case);
        if outcomes(&found) != wanted {
            wrong.push(format!("{case}: {} instead of {wanted}\n{found}", outcomes(&found)));
        }
        for reason in found.consumers.iter().flat_map(|it| &it.reasons) {
            assert!(!reason.what.is_empty() && !reason.next.is_empty(), "{case}: {reason:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn reasons_name_the_feature() {
    assert_reason(&look("llama_dora_all_linear"), "vLLM", Outcome::Refuses, "use_dora");
    assert_reason(&look("llama_rslora"), "llama.cpp", Outcome::LoadsButIgnores, "use_rslora");
    assert_reason(&look("llama_lora_patterns"), "vLLM", Outcome::LoadsButIgnores, "rank_pattern");
    assert_reason(&look("llama_lora_patterns"), "llama.cpp", Outcome::LoadsButIgnores, "alpha_pattern");
    assert_reason(&look("llama_bias_all"), "mistral.rs", Outcome::Refuses, "bias all");
    assert_reason(&look("llama_save_lm_head"), "vLLM", Outcome::Refuses, "modules_to_save lm_head");
    assert_reason(&look("llama_save_lm_head"), "llama.cpp", Outcome::Refuses, "lm_head.weight");
    assert_reason(&look("llama_pissa"), "vLLM", Outcome::LoadsButIgnores, "pissa");
    assert_reason(&look("llama_lora_lm_head"), "llama.cpp", Outcome::Loads, "lm_head");
    assert_reason(&look("llama_lora_layers"), "TGI/LoRAX", Outcome::Refuses, "only some layers");
    assert_reason(&with("layer_replication", json!([[0, 2]])), "mistral.rs", Outcome::Refuses, "layer_replication");
    assert_reason(&with("target_modules", json!(["q_proj"])), "mistral.rs", Outcome::Refuses, "v_proj");
    assert_reason(&with("target_modules", json!(null)), "vLLM", Outcome::Refuses, "target_modules");
    assert_reason(&with("r", json!(8)), "PEFT", Outcome::Refuses, "r=8");
    assert_reason(&with("task_type", json!("TALKING")), "PEFT", Outcome::Refuses, "TALKING");
    assert_reason(
        &with("base_model_name_or_path", json!(null)),
        "llama.cpp",
        Outcome::Loads,
        "base_model_name_or_path",
    );
}

#[test]
fn flags_and_scale_are_told() {
    let found = look("llama_dora_rslora");
    assert!(found.flags.use_dora && found.flags.use_rslora);
    assert_eq!(found.scale, Some(3.0));
    assert!(found.to_string().contains("rslora dora"));
    let found = look("bert_save_pooler");
    assert_eq!(found.flags.modules_to_save, ["pooler", "classifier", "score"]);
    assert!(found.whole.iter().any(|it| it.ends_with("pooler.dense.weight")));
    assert_eq!(look("llama_olora").flags.init.as_deref(), Some("olora"));
    assert!(look("llama_lora_patterns").ranks.len() > 1);
}

#[test]
fn a_large_rank_needs_a_switch_of_vllm() {
    let folder = edited(
        "llama_lora_default",
        |json| drop(json.insert("r".into(), json!(32))),
        |tensors| {
            for stored in tensors {
                let shape = stored.data.shape().as_slice().to_vec();
                let shape = if stored.key.contains("lora_A") { [32, shape[1]] } else { [shape[0], 32] };
                stored.data = TensorData::new(vec![0.1f32; shape[0] * shape[1]], shape);
            }
        },
    );
    let found = inspect(folder.path(), None, registry()).unwrap();
    assert_eq!(outcomes(&found), "+-++++");
    assert!(verdict(&found, "vLLM").reasons[0].next.contains("--max-lora-rank 32"));
}

#[test]
fn a_fractional_alpha_breaks_ollama_only() {
    let found = with("lora_alpha", json!(6.5));
    assert_eq!(outcomes(&found), "+++++-");
    assert_eq!(found.scale, Some(1.625));
    // A whole number with a decimal point is no integer to Go.
    assert_reason(&with("lora_alpha", json!(6.0)), "Ollama", Outcome::Refuses, "lora_alpha 6.0");
}

#[test]
fn an_untrained_adapter_is_noticed() {
    let clear = |count: usize| {
        let folder = edited(
            "llama_lora_default",
            |_| {},
            |tensors| {
                tensors.iter_mut().filter(|it| it.key.contains("lora_B")).take(count).for_each(|it| fill(it, 0.0));
            },
        );
        inspect(folder.path(), None, registry()).unwrap()
    };
    let found = clear(4);
    assert_eq!(found.zero.len(), 4);
    assert!(found.warnings.iter().any(|it| it.contains("never trained")), "{:?}", found.warnings);
    let found = clear(1);
    assert_eq!(found.zero.len(), 1);
    assert!(found.warnings.iter().any(|it| it.contains("only zeros")), "{:?}", found.warnings);
}

#[test]
fn numbers_that_are_none_are_noticed() {
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let folder = edited("llama_lora_default", |_| {}, |tensors| fill(&mut tensors[3], bad));
        let found = inspect(folder.path(), None, registry()).unwrap();
        assert_eq!(found.not_finite.len(), 1);
        assert!(found.warnings.iter().any(|it| it.contains("NaN") && it.contains(&found.not_finite[0])));
    }
}

#[test]
fn half_a_pair_is_noticed() {
    let folder = edited("llama_lora_default", |_| {}, |tensors| drop(tensors.remove(0)));
    let found = inspect(folder.path(), Some(&fixtures().join("models/llama-tiny")), registry()).unwrap();
    assert_eq!(found.missing_partners.len(), 1);
    assert_eq!(outcomes(&found), "~+----");
    let fit = found.fit.unwrap();
    assert_eq!(fit.fits, Some(false));
    assert!(fit.report.contains(&found.missing_partners[0]), "{}", fit.report);
}

#[test]
fn an_unknown_type_is_described_all_the_same() {
    let folder = edited(
        "llama_lora_default",
        |json| {
            json.retain(|field, _| {
                ["base_model_name_or_path", "task_type", "target_modules"].contains(&field.as_str())
            });
            json.insert("peft_type".into(), json!("IA3"));
        },
        |tensors| {
            tensors.retain(|it| it.key.contains("lora_A"));
            for stored in tensors {
                stored.key = stored.key.replace("lora_A.weight", "ia3_l");
            }
        },
    );
    let found = inspect(folder.path(), Some(&fixtures().join("models/llama-tiny")), registry()).unwrap();
    assert_eq!((found.tensors, found.rank), (4, None));
    assert_eq!(found.layers["q_proj"], 2);
    if !found.known {
        assert!(found.warnings.iter().any(|it| it.contains("does not know peft_type IA3")), "{:?}", found.warnings);
        assert_eq!(found.fit.as_ref().unwrap().fits, None);
    }
    assert_eq!(outcomes(&found), "+-----");

    let prompts = edited(
        "llama_lora_default",
        |json| drop(json.insert("peft_type".into(), json!("PROMPT_TUNING"))),
        |tensors| {
            *tensors =
                vec![Stored { key: "prompt_embeddings".into(), data: TensorData::new(vec![0.5f32; 64], [2, 32]) }];
        },
    );
    let found = inspect(prompts.path(), None, registry()).unwrap();
    assert!(found.layers.is_empty() && found.ranks.is_empty());
    assert_eq!(found.whole, ["prompt_embeddings"]);

    let found = with("peft_type", json!("MADE_UP"));
    assert!(!found.known);
    assert_eq!(outcomes(&found), "------");
}

#[test]
fn a_header_that_transformers_refuses_is_noticed() {
    let folder = edited("llama_lora_default", |_| {}, |_| {});
    let file = folder.path().join(WEIGHTS_FILE);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(4).position(|it| it == b"\"pt\"").unwrap();
    bytes[at..at + 4].copy_from_slice(b"\"np\"");
    std::fs::write(&file, bytes).unwrap();
    assert_reason(&inspect(folder.path(), None, registry()).unwrap(), "PEFT", Outcome::Refuses, "format=np");
}

#[test]
fn every_recorded_adapter_fits_its_own_base() {
    let (mut checked, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(fixtures().join("cases")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !path.join("default").is_dir() {
            continue;
        }
        let base = fixtures().join("models").join(case(name).model);
        let found = inspect(&path.join("default"), Some(&base), registry()).unwrap();
        // The reference wrote it itself.
        let peft = verdict(&found, "PEFT").outcome;
        let fit = found.fit.unwrap();
        if fit.fits != Some(true) || peft != Outcome::Loads {
            wrong.push(format!("{name}: {peft:?} {}", fit.report));
        }
        checked += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 50, "{checked}");
}

#[test]
fn an_adapter_of_another_base_does_not_fit() {
    let models = fixtures().join("models");
    let fit = |folder: &Path, base: &str| inspect(folder, Some(&models.join(base)), registry()).unwrap().fit.unwrap();
    let other = fit(&folder("gpt2_lora_default"), "llama-tiny");
    assert_eq!(other.fits, Some(false));
    assert!(other.report.contains("unexpected") || other.report.contains("matches no"), "{}", other.report);

    let misshapen = edited(
        "llama_lora_default",
        |_| {},
        |tensors| {
            let b = tensors.iter_mut().find(|it| it.key.contains("lora_B")).unwrap();
            b.data = TensorData::new(vec![0.5f32; 12], [3, 4]);
        },
    );
    let report = fit(misshapen.path(), "llama-tiny").report;
    assert!(report.contains("wrong shape") && report.contains("file [3, 4]"), "{report}");
}

#[test]
fn a_tied_head_and_the_base_type_are_taken_into_account() {
    let models = fixtures().join("models");
    let found = inspect(&folder("llama_lora_lm_head"), Some(&models.join("llama-tied")), registry()).unwrap();
    assert_reason(&found, "llama.cpp", Outcome::Refuses, "embedding table");
    let found = inspect(&folder("qwen2_lora_default"), Some(&models.join("qwen2-tiny")), registry()).unwrap();
    assert_reason(&found, "Ollama", Outcome::Refuses, "model_type qwen2");
}

#[test]
fn json_has_all_of_it() {
    let base = fixtures().join("models/llama-tiny");
    let found = inspect(&folder("llama_rslora"), Some(&base), registry()).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["peft_type"], "LORA");
    assert_eq!(json["flags"]["use_rslora"], true);
    assert_eq!(json["layers"]["q_proj"], 2);
    assert_eq!(json["ranks"]["4"], 4);
    assert_eq!(json["fit"]["fits"], true);
    let llama_cpp = json["consumers"].as_array().unwrap().iter().find(|it| it["consumer"] == "llama.cpp").unwrap();
    assert_eq!(llama_cpp["outcome"], "loads-but-ignores");
    assert_eq!(llama_cpp["reasons"][0]["what"], "use_rslora");
}

#[test]
fn what_is_no_adapter_is_refused_with_a_reason() {
    let message = |path: &Path| inspect(path, None, registry()).unwrap_err().to_string();
    assert!(message(&fixtures().join("models/llama-tiny")).contains("is a model, no adapter"));
    let nameless = edited("llama_lora_default", |json| drop(json.remove("peft_type")), |_| {});
    assert!(message(nameless.path()).contains("peft_type"));
    let base = inspect(&folder("llama_lora_default"), Some(Path::new("nowhere")), registry()).unwrap_err().to_string();
    assert!(base.contains("config.json"), "{base}");
}

#[test]
fn a_pattern_does_not_excuse_ranks_that_it_does_not_give_and_magnitudes_must_fit_the_switch() {
    let edited = |case: &str, change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let from = crate::support::fixtures().join("cases").join(case).join("default");
        let folder = tempfile::tempdir().unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(from.join(weights), folder.path().join(weights)).unwrap();
        let mut config = peft::core::read_config(&from).unwrap();
        change(&mut config);
        let text = serde_json::to_string(&config).unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
        serde_json::to_string(&peft::folder::inspect::inspect(folder.path(), None, registry()).unwrap()).unwrap()
    };
    let pattern = |config: &mut serde_json::Map<String, serde_json::Value>| {
        config.insert("r".into(), 3.into());
        config.insert("rank_pattern".into(), serde_json::json!({"nothing": 5}));
    };
    assert!(edited("llama_lora_default", &pattern).contains("tensors have rank [4]"));
    let on = |config: &mut serde_json::Map<String, serde_json::Value>| {
        config.insert("use_dora".into(), true.into());
    };
    assert!(edited("llama_lora_default", &on).contains("use_dora without magnitudes"));
    let off = |config: &mut serde_json::Map<String, serde_json::Value>| {
        config.insert("use_dora".into(), false.into());
    };
    assert!(edited("gpt2_dora", &off).contains("use_dora=false leaves out"));
}

/// As PEFT 0.21.2 answers: with `.default` it loads the adapter, of the others it loads nothing and warns.
#[test]
fn keys_that_other_ways_of_saving_leave_behind() {
    let renamed = |name: fn(&str) -> String| {
        let rename = |tensors: &mut Vec<Stored>| tensors.iter_mut().for_each(|it| it.key = name(&it.key));
        inspect(edited("llama_lora_default", |_| {}, rename).path(), None, registry()).unwrap()
    };
    assert_eq!(outcomes(&renamed(|key| key.replace(".weight", ".default.weight"))), "+-----");
    for name in [
        |key: &str| format!("_orig_mod.{key}"),
        |key: &str| format!("module.{key}"),
        |key: &str| key.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
    ] {
        let found = renamed(name);
        assert_eq!(outcomes(&found), "0-----", "{found}");
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
    }
    // PEFT looks for the name that it loads an adapter by, and for none.
    let mine = renamed(|key| key.replace(".weight", ".mine.weight"));
    assert_eq!(outcomes(&mine), "0-----", "{mine}");
    let bare = renamed(|key| key.replace("base_model.model.", ""));
    assert_eq!(verdict(&bare, "PEFT").outcome, Outcome::LoadsNothing);
    let half = |key: &str| if key.contains("lora_A") { format!("module.{key}") } else { key.to_owned() };
    assert_eq!(verdict(&renamed(half), "PEFT").outcome, Outcome::LoadsButIgnores);
}

#[test]
fn what_peft_has_no_layer_for_is_said_of_peft() {
    let base = fixtures().join("models/gpt2-tiny");
    let mut peft = PeftModel::new(peft::models::auto::load_causal_lm(&base, &device()).unwrap().0);
    let config = json!({"peft_type": "HIRA", "r": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"});
    let config = peft::methods().parse(config.as_object().unwrap().clone()).unwrap();
    let plan = peft.add_adapter_as("default", config, 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    if plan.not_in_reference.is_empty() {
        return assert!(!plan.to_string().contains("cannot load"), "{plan}");
    }
    peft.save(folder.path()).unwrap();
    assert_eq!(verdict(&inspect(folder.path(), None, registry()).unwrap(), "PEFT").outcome, Outcome::Loads);
    let found = inspect(folder.path(), Some(&base), registry()).unwrap();
    assert_reason(&found, "PEFT", Outcome::Refuses, "Conv1D");
}
