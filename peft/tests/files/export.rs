//! Adapters in the forms of other programs: the layouts that those read, and the same updates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use peft::core::files::checkpoint::TensorFile;
use peft::core::{DEFAULT_ADAPTER, Result, read_config};
use peft::folder::adapted::adapted;
use peft::folder::export::{ExportOptions, Exported, Format, export};
use peft::folder::inspect::{Outcome, inspect};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{assert_close, case, device, fixtures, numbers, registry};

fn folder(name: &str) -> PathBuf {
    fixtures().join("cases").join(name).join("default")
}

fn base(name: &str) -> PathBuf {
    fixtures().join("models").join(case(name).model)
}

fn exported(name: &str, options: &ExportOptions) -> Result<(TempDir, Exported)> {
    let output = tempfile::tempdir().unwrap();
    let done = export(&folder(name), output.path(), options, registry(), &device())?;
    Ok((output, done))
}

fn refusal(name: &str, options: &ExportOptions) -> String {
    exported(name, options).map(|_| ()).unwrap_err().to_string()
}

fn with_base(format: Format, name: &str) -> ExportOptions {
    ExportOptions { base: Some(base(name)), ..ExportOptions::new(format) }
}

/// What a folder adds to every layer of its base, by path.
fn updates(adapter: &Path, base: &Path) -> BTreeMap<String, TensorData> {
    let named = [(DEFAULT_ADAPTER.to_owned(), adapter.to_path_buf())];
    let rows = adapted(base, &named, registry(), &device()).unwrap().updates(DEFAULT_ADAPTER).unwrap();
    rows.into_iter().map(|it| (it.param.module.clone(), it.delta.into_data())).collect()
}

/// The same layers are changed by the same amounts; others by nothing.
#[track_caller]
fn assert_same(ours: &BTreeMap<String, TensorData>, wanted: &BTreeMap<String, TensorData>) {
    for (module, wanted) in wanted {
        assert_close(module, &ours[module], wanted);
    }
    for (module, delta) in ours.iter().filter(|(module, _)| !wanted.contains_key(*module)) {
        assert!(numbers(delta).iter().all(|it| *it == 0.0), "{module} changes");
    }
}

/// Adapters that all programs can be given, unlike ranks and scales among them.
const PLAIN: [&str; 12] = [
    "llama_lora_default",
    "llama_lora_all_linear",
    "llama_lora_patterns",
    "llama_rslora",
    "llama_rslora_patterns",
    "llama_lora_layers",
    "llama_lora_exclude",
    "llama_lora_regex",
    "llama_lora_suffix",
    "llama_pissa_converted",
    "mistral_lora_default",
    "gpt2_lora_all_linear",
];

#[test]
fn a_portable_folder_is_read_by_everybody_and_does_the_same() {
    for name in PLAIN {
        let (output, done) = exported(name, &with_base(Format::Portable, name)).unwrap();
        let found = inspect(output.path(), Some(&base(name)), registry()).unwrap();
        assert_eq!(found.fit.as_ref().unwrap().fits, Some(true), "{name}");
        assert!(found.warnings.iter().all(|it| it.starts_with("only zeros")), "{name}: {:?}", found.warnings);
        for verdict in &found.consumers {
            let own_form = ["mlx-lm", "diffusers"].contains(&verdict.consumer);
            // Ollama knows two model types, whatever the folder.
            let foreign = verdict.consumer == "Ollama" && !name.starts_with("llama");
            assert!(own_form || foreign || verdict.outcome == Outcome::Loads, "{name}: {verdict:?}");
        }
        assert_eq!(found.ranks, [(done.rank, done.layers)].into(), "{name}");
        assert!(!(found.flags.use_rslora || found.flags.rank_pattern || found.flags.alpha_pattern), "{name}");
        assert_same(&updates(output.path(), &base(name)), &updates(&folder(name), &base(name)));
    }
}

#[test]
fn targets_of_a_portable_folder_mean_the_layers_that_it_has() {
    let targets = |name: &str, options: &ExportOptions| {
        let (output, _) = exported(name, options).unwrap();
        read_config(output.path()).unwrap()["target_modules"].clone()
    };
    let named = |name| targets(name, &with_base(Format::Portable, name));
    assert_eq!(named("llama_lora_regex").as_array().unwrap().len(), targets_of("llama_lora_regex").len());
    // `c_proj` of GPT-2 is two layers.
    let gpt2 = named("gpt2_lora_default");
    assert_eq!(gpt2, serde_json::json!(["c_attn"]));
    let bert = ExportOptions { base: Some(base("bert_lora_features")), ..ExportOptions::new(Format::Portable) };
    assert_eq!(targets("bert_lora_features", &bert), serde_json::json!(["query", "value"]));
}

/// Last names of the layers that a folder has factors of.
fn targets_of(name: &str) -> Vec<String> {
    inspect(&folder(name), None, registry()).unwrap().layers.into_keys().collect()
}

#[test]
fn a_whole_alpha_is_kept_and_another_goes_into_the_factor() {
    let config = |name: &str| {
        let (output, _) = exported(name, &with_base(Format::Portable, name)).unwrap();
        let json = read_config(output.path()).unwrap();
        (json["r"].as_u64().unwrap(), json["lora_alpha"].clone())
    };
    assert_eq!(config("llama_lora_default"), (4, Value::from(6)));
    // 6 / √4 is the scale: alpha is 12 without the root.
    assert_eq!(config("llama_rslora"), (4, Value::from(12)));
    // Unlike ranks and scales: the highest rank, and a scale of 1.
    assert_eq!(config("llama_lora_patterns"), (6, Value::from(6)));
}

#[test]
fn what_a_portable_folder_cannot_say_is_refused_with_the_next_step() {
    let portable = ExportOptions::new(Format::Portable);
    for (name, what, next) in [
        ("llama_dora_all_linear", "DoRA", "--rank"),
        ("llama_lora_embed_tokens", "table", "merge"),
        ("llama_save_norms", "trained whole", "merge"),
        ("llama_bias_all", "trained whole", "merge"),
        ("llama_lora_tokens", "trained whole", "merge"),
        ("llama_lora_bias_unmergeable", "lora_bias", "merge"),
        ("llama_pissa", "pissa", "--rank 8"),
        ("llama_oft", "OFT", "--rank"),
        ("llama_ia3_default", "IA3", "--rank"),
        ("llama_prompt_tuning", "PROMPT_TUNING", "--rank"),
    ] {
        let message = refusal(name, &portable);
        assert!(message.contains(what) && message.contains(next), "{name}: {message}");
    }
    let rank = ExportOptions { rank: Some(4), ..portable };
    assert!(refusal("llama_oft", &rank).contains("base model"));
}

#[test]
fn other_methods_are_converted_when_asked() {
    for (name, rank, exact) in [("llama_oft", 32, true), ("llama_pissa", 8, true), ("llama_dora_all_linear", 12, false)]
    {
        let options = ExportOptions { rank: Some(rank), ..with_base(Format::Portable, name) };
        let (output, done) = exported(name, &options).unwrap();
        assert!(!done.converted.is_empty());
        assert_eq!(done.converted.iter().all(|it| it.error < 1e-4), exact, "{name}: {:?}", done.converted);
        if exact {
            assert_same(&updates(output.path(), &base(name)), &updates(&folder(name), &base(name)));
        }
    }
}

/// `up · down · factor` of every layer of a file, `[out, in]`.
fn products(
    file: &TensorFile,
    names: [&str; 2],
    turned: bool,
    factor: impl Fn(&str) -> f64,
) -> BTreeMap<String, TensorData> {
    let matrix = |key: String| Tensor::<2>::from_data(file.floats(&key).unwrap(), &device());
    let modules = file.keys().into_iter().filter_map(|key| key.strip_suffix(names[0]).map(str::to_owned));
    let product = |module: &str| {
        let (down, up) = (matrix(format!("{module}{}", names[0])), matrix(format!("{module}{}", names[1])));
        let delta = if turned { down.matmul(up).transpose() } else { up.matmul(down) };
        delta.mul_scalar(factor(module)).into_data()
    };
    modules.map(|module| (module.clone(), product(&module))).collect()
}

/// For a folder whose layers do not tell what it is for.
fn for_unet(format: Format) -> ExportOptions {
    ExportOptions { component: Some("unet".to_owned()), ..ExportOptions::new(format) }
}

#[test]
fn diffusers_reads_keys_behind_the_component_and_a_scale_of_one() {
    for name in ["llama_lora_patterns", "llama_rslora"] {
        let (output, done) = exported(name, &for_unet(Format::Diffusers)).unwrap();
        assert_eq!(done.files, [output.path().join("pytorch_lora_weights.safetensors")]);
        let file = TensorFile::open(&done.files[0]).unwrap();
        assert_eq!(file.header().as_ref().unwrap()["format"], "pt");
        let ranks: Vec<usize> =
            file.keys().iter().filter(|it| it.contains("lora_A")).map(|it| file.shape(it).unwrap()[0]).collect();
        assert!(ranks.iter().all(|it| *it == done.rank), "{ranks:?}");
        let found = products(&file, [".lora_A.weight", ".lora_B.weight"], false, |_| 1.0);
        let found = found.into_iter().map(|(key, it)| (key.strip_prefix("unet.").unwrap().to_owned(), it)).collect();
        assert_same(&found, &updates(&folder(name), &base(name)));
    }
    let part = ExportOptions { component: Some("text_encoder".into()), ..ExportOptions::new(Format::Diffusers) };
    let (_output, done) = exported("llama_dora_all_linear", &part).unwrap();
    let file = TensorFile::open(&done.files[0]).unwrap();
    let magnitudes = file.keys().into_iter().filter(|it| it.ends_with(".lora_magnitude_vector")).count();
    assert_eq!(magnitudes, done.layers);
    assert!(file.keys().iter().all(|it| it.starts_with("text_encoder.model.layers.")));
}

#[test]
fn kohya_reads_underscores_and_an_alpha_each() {
    let name = "llama_lora_patterns";
    let (_output, done) = exported(name, &for_unet(Format::Kohya)).unwrap();
    let file = TensorFile::open(&done.files[0]).unwrap();
    assert_eq!(file.keys().len(), 3 * done.layers);
    let alpha = |module: &str| {
        let key = format!("{module}.alpha");
        assert_eq!(file.shape(&key), Some(&[] as &[usize]), "a number, not a list of one");
        numbers(&file.floats(&key).unwrap())[0] / file.shape(&format!("{module}.lora_down.weight")).unwrap()[0] as f64
    };
    let alphas = file.keys().into_iter().filter(|it| it.ends_with(".alpha"));
    let mut alphas: Vec<u64> = alphas.map(|it| numbers(&file.floats(&it).unwrap())[0].to_bits()).collect();
    alphas.dedup();
    assert_eq!(alphas.len(), 1, "diffusers loses alphas that differ");
    let found = products(&file, [".lora_down.weight", ".lora_up.weight"], false, alpha);
    let wanted: BTreeMap<_, _> = updates(&folder(name), &base(name))
        .into_iter()
        .map(|(module, it)| (format!("lora_unet_{}", module.replace('.', "_")), it))
        .collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    assert_same(&found, &wanted);
    let part = |name: &str| ExportOptions { component: Some(name.into()), ..ExportOptions::new(Format::Kohya) };
    let (_output, done) = exported("llama_lora_default", &part("text_encoder_2")).unwrap();
    assert!(TensorFile::open(&done.files[0]).unwrap().keys().iter().all(|it| it.starts_with("lora_te2_model_layers_")));
    assert!(refusal("llama_lora_default", &part("tower")).contains("text_encoder_1"));
    assert!(refusal("llama_dora_all_linear", &part("unet")).contains("DoRA"));
}

#[test]
fn mlx_reads_turned_factors_and_names_within_a_block() {
    for (name, rank, keys) in [
        ("llama_lora_default", 4, vec!["self_attn.q_proj", "self_attn.v_proj"]),
        ("llama_lora_patterns", 6, Vec::new()),
        ("llama_lora_lm_head", 4, Vec::new()),
    ] {
        let (output, done) = exported(name, &ExportOptions::new(Format::Mlx)).unwrap();
        assert_eq!(done.files[0], output.path().join("adapters.safetensors"));
        let text = std::fs::read_to_string(output.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let parameters = &config["lora_parameters"];
        assert_eq!((&config["fine_tune_type"], &config["num_layers"]), (&"lora".into(), &(-1).into()));
        assert_eq!(parameters["rank"], rank, "{name}");
        if !keys.is_empty() {
            assert_eq!(parameters["keys"], serde_json::json!(keys));
        }
        let scale = parameters["scale"].as_f64().unwrap();
        let file = TensorFile::open(&done.files[0]).unwrap();
        let first = file.keys().into_iter().find(|it| it.ends_with("q_proj.lora_a"));
        if let Some(first) = first {
            assert_eq!(file.shape(&first), Some(&[32, rank][..]), "the input comes first");
        }
        let found = products(&file, [".lora_a", ".lora_b"], true, |_| scale);
        assert_same(&found, &updates(&folder(name), &base(name)));
    }
    let (output, done) = exported("llama_dora_all_linear", &ExportOptions::new(Format::Mlx)).unwrap();
    let text = std::fs::read_to_string(output.path().join("adapter_config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["fine_tune_type"], "dora");
    let (mlx, peft) = (TensorFile::open(&done.files[0]).unwrap(), folder("llama_dora_all_linear"));
    let peft = TensorFile::open(peft.join("adapter_model.safetensors")).unwrap();
    let module = "model.layers.1.mlp.down_proj";
    let theirs = peft.floats(&format!("base_model.model.{module}.lora_magnitude_vector")).unwrap();
    assert_eq!(numbers(&mlx.floats(&format!("{module}.m")).unwrap()), numbers(&theirs));
    let message = refusal("gpt2_lora_default", &ExportOptions::new(Format::Mlx));
    assert!(message.contains("model.layers.N"), "{message}");
}

#[test]
fn a_folder_is_not_exported_over_itself() {
    let name = "llama_lora_default";
    let message =
        export(&folder(name), &folder(name), &ExportOptions::new(Format::Portable), registry(), &device()).unwrap_err();
    assert!(message.to_string().contains("which is read"));
}

/// Adapters for pictures name no task: neither are they for language models, nor is each of them for a UNet.
#[test]
fn what_is_for_pictures_is_not_taken_for_text_or_for_a_unet() {
    let message = refusal("vit_lora", &with_base(Format::Portable, "vit_lora"));
    assert!(message.contains("image-cls") && message.contains("language models"), "{message}");
    for format in [Format::Diffusers, Format::Kohya] {
        let message = refusal("vit_lora", &ExportOptions::new(format));
        assert!(message.contains("vit_lora") && message.contains("--component"), "{format:?}: {message}");
    }
    // Who says what it is, is believed; what no form has is refused all the same.
    let message = refusal("vit_lora", &for_unet(Format::Diffusers));
    assert!(message.contains("trained whole") && message.contains("adapter_model.safetensors"), "{message}");
}
