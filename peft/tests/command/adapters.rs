//! The `peft` command as a user calls it: what it does with adapters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::TensorData;
use peft::core::files::checkpoint::{Dtype, FloatType, Stored, TensorFile, write_tensors};
use peft::core::read_config;
use peft::lora::combine::weighted::{Combination, Majority};

use crate::support::{assert_close, device, expected, fixtures, registry};

/// What it prints, if it succeeds; what it complains about, if it fails.
pub(super) fn peft(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_peft")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn path(parts: &str) -> String {
    fixtures().join(parts).display().to_string()
}

fn tensors(folder: &Path) -> PathBuf {
    folder.join("adapter_model.safetensors")
}

#[test]
fn combine_writes_what_the_library_makes() {
    let (output, wanted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = output.path().display().to_string();
    let (base, first, second) = (path("models/llama-tiny"), path("combined/first"), path("combined/second"));
    let (a, b) = (format!("{first}=0.7"), format!("{second}=-1.3"));
    let call = |more: &[&str]| {
        let fixed = ["combine", "--model", &base, "--adapter", &a, "--adapter", &b, "--output", &to, "--overwrite"];
        peft(&[&fixed[..], more].concat())
    };
    let printed = call(&["--kind", "ties", "--density", "0.6"]).unwrap();
    assert!(printed.contains("2 adapters combined (ties)"), "{printed}");
    let how = Combination::parse("ties", Some(0.6), Majority::Total, None).unwrap();
    let adapters = [(PathBuf::from(&first), 0.7), (PathBuf::from(&second), -1.3)];
    peft::folder::combine::combine(&adapters, Path::new(&base), how, 42, wanted.path(), registry(), &device()).unwrap();
    let wanted = expected(&tensors(wanted.path()));
    let ours = expected(&tensors(output.path()));
    assert_eq!(ours.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, data) in &ours {
        assert_close(key, data, &wanted[key]);
    }
    // The numbers of the reference, which the library is held against.
    let recorded = expected(&fixtures().join("combined/expected.safetensors"));
    for (key, data) in &ours {
        assert_close(key, data, &recorded[&format!("ties/{key}")]);
    }

    assert!(call(&["--kind", "mean"]).unwrap_err().contains("magnitude_prune"));
    assert!(call(&["--kind", "ties"]).unwrap_err().contains("density"));
    assert!(call(&["--kind", "linear", "--rank", "3"]).unwrap_err().contains("svd"));
    assert!(call(&["--kind", "ties", "--density", "0.5", "--majority", "loud"]).unwrap_err().contains("frequency"));
    let third = path("combined/third");
    assert!(call(&["--adapter", &third]).unwrap_err().contains("differs"));
    call(&["--adapter", &third, "--kind", "svd", "--rank", "2", "--clamp", "0.9"]).unwrap();
    assert_eq!(read_config(output.path()).unwrap()["r"], 2);
}

#[test]
fn convert_says_what_every_layer_loses() {
    let output = tempfile::tempdir().unwrap();
    let to = output.path().display().to_string();
    let (base, adapter) = (path("models/llama-tiny"), path("cases/llama_lokr_default/default"));
    let call = |rank: &str| {
        peft(&["convert", "--model", &base, "--adapter", &adapter, "--rank", rank, "--output", &to, "--overwrite"])
            .unwrap()
    };
    let printed = call("2");
    assert!(printed.contains("model.layers.1.self_attn.v_proj") && printed.contains("all together"), "{printed}");
    assert!(!printed.contains("error   0.000 %"), "{printed}");
    let exact = call("32");
    let last = exact.lines().find(|it| it.starts_with("all together")).unwrap();
    assert!(last.contains("error   0.000 %"), "{exact}");
    let config = read_config(output.path()).unwrap();
    assert_eq!((config["peft_type"].as_str(), config["r"].as_u64()), (Some("LORA"), Some(32)));
    let kept =
        peft(&["convert", "--model", &base, "--adapter", &adapter, "--keep", "0.8", "--output", &to, "--overwrite"])
            .unwrap();
    assert!(kept.contains("rank ") && read_config(output.path()).unwrap()["r"].as_u64() < Some(32), "{kept}");
    assert!(
        peft(&["convert", "--model", &base, "--adapter", &adapter, "--output", &to, "--overwrite"])
            .unwrap_err()
            .contains("--rank")
    );
    assert_eq!(config["base_model_name_or_path"], "models/llama-tiny");
}

#[test]
fn export_writes_files_and_names_the_next_step() {
    let output = tempfile::tempdir().unwrap();
    let to = output.path().display().to_string();
    let adapter = path("cases/llama_lora_patterns/default");
    let printed = peft(&["export", "--adapter", &adapter, "--format", "mlx", "--output", &to, "--overwrite"]).unwrap();
    assert!(printed.contains("rank 6") && printed.contains("adapters.safetensors"), "{printed}");
    let oft = path("cases/llama_oft/default");
    let refused =
        peft(&["export", "--adapter", &oft, "--format", "portable", "--output", &to, "--overwrite"]).unwrap_err();
    assert!(refused.contains("OFT") && refused.contains("--rank"), "{refused}");
    assert!(
        peft(&["export", "--adapter", &oft, "--format", "gguf", "--output", &to, "--overwrite"])
            .unwrap_err()
            .contains("kohya")
    );
}

#[test]
fn an_adapter_acts_at_the_strength_behind_its_name() {
    let output = tempfile::tempdir().unwrap();
    let (base, adapter) = (path("models/llama-tiny"), path("cases/llama_lora_all_linear/default"));
    let inputs = path("cases/llama_lora_all_linear/inputs.safetensors");
    let logits = |name: &str, strength: &str| {
        let file = output.path().join(name);
        let (named, to) = (format!("{adapter}{strength}"), file.display().to_string());
        let fixed = ["forward", "--model", &base, "--task", "causal-lm", "--inputs", &inputs, "--output", &to];
        peft(&[&fixed[..], &["--adapter", &named]].concat())?;
        Ok::<_, String>(TensorFile::open(&file).unwrap().floats("logits").unwrap())
    };
    let base_case = expected(&fixtures().join("cases/llama_lora_all_linear/expected.safetensors"));
    assert_close("full", &logits("one", "=1").unwrap(), &base_case["logits"]);
    let (none, half) = (logits("none", "=0").unwrap(), logits("half", "=0.5").unwrap());
    assert!(crate::support::distance(&none, &half) > 1e-3);
    assert!(crate::support::distance(&half, &base_case["logits"]) > 1e-3);
    assert!(logits("bad", "=loud").unwrap_err().contains("no number"));
    let prompt = format!("{}=0.5", path("cases/llama_prompt_tuning/default"));
    let to = output.path().join("prompt").display().to_string();
    let fixed = ["forward", "--model", &base, "--task", "causal-lm", "--inputs", &inputs, "--output", &to];
    let refused = peft(&[&fixed[..], &["--adapter", &prompt]].concat()).unwrap_err();
    assert!(refused.contains("prompt"), "{refused}");
}

#[test]
fn a_head_that_was_moved_apart_is_merged_into_a_model_whose_head_is_its_own() {
    let output = tempfile::tempdir().unwrap();
    let (to, file) = (output.path().join("merged"), output.path().join("logits"));
    let case = fixtures().join("cases/gpt2_save_tied_head");
    let (base, adapter) = (path("models/gpt2-tiny"), case.join("default").display().to_string());
    peft(&["merge", "--model", &base, "--adapter", &adapter, "--output", &to.display().to_string()]).unwrap();
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(to.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    let (model, inputs, out) = (to.display().to_string(), case.join("inputs.safetensors"), file.display().to_string());
    let inputs = inputs.display().to_string();
    peft(&["forward", "--model", &model, "--task", "causal-lm", "--inputs", &inputs, "--output", &out]).unwrap();
    let wanted = expected(&case.join("expected.safetensors"));
    assert_close("logits", &TensorFile::open(&file).unwrap().floats("logits").unwrap(), &wanted["merged.logits"]);
}

#[test]
fn vectors_are_added_up_by_combine() {
    let output = tempfile::tempdir().unwrap();
    let to = output.path().display().to_string();
    let (base, first, second) =
        (path("models/llama-tiny"), path("combined/ia3_first=0.7"), path("combined/ia3_second=0.4"));
    let call = |kind: &str| {
        let both = ["--adapter", &first, "--adapter", &second];
        peft(&[&["combine", "--model", &base, "--kind", kind, "--output", &to, "--overwrite"], &both[..]].concat())
    };
    call("linear").unwrap();
    let recorded = expected(&fixtures().join("combined/expected.safetensors"));
    for (key, data) in expected(&tensors(output.path())) {
        assert_close(&key, &data, &recorded[&format!("ia3/{key}")]);
    }
    assert!(call("cat").unwrap_err().contains("linear"));
}

#[test]
fn nothing_is_written_over_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(Path::new(&path("combined/first")).join(file), folder.path().join(file)).unwrap();
    }
    let before = fs::read(tensors(folder.path())).unwrap();
    let (base, own) = (path("models/llama-tiny"), folder.path().display().to_string());
    for command in [&["convert", "--rank", "2"][..], &["combine"], &["export", "--format", "portable"]] {
        let call = [command, &["--model", &base, "--adapter", &own, "--output", &own, "--overwrite"]].concat();
        let error = peft(&call).unwrap_err();
        assert!(error.contains("which is read"), "{error}");
    }
    assert_eq!(fs::read(tensors(folder.path())).unwrap(), before);
}

#[test]
fn options_that_make_no_sense_are_named() {
    let (base, first, second) = (path("models/llama-tiny"), path("combined/first"), path("combined/second"));
    let output = tempfile::tempdir().unwrap();
    let to = output.path().join("new").display().to_string();
    let refuse = |command: &str, more: &[&str]| {
        let error =
            peft(&[&[command, "--model", &base, "--adapter", &first, "--output", &to], more].concat()).unwrap_err();
        assert!(!Path::new(&to).exists(), "{error}");
        error
    };
    let two = ["--adapter", second.as_str()];
    for density in ["2", "nan", "0", "-0.5"] {
        assert!(
            refuse("combine", &[&two[..], &["--kind", "ties", &format!("--density={density}")]].concat())
                .contains("density")
        );
    }
    assert!(
        refuse("combine", &[&two[..], &["--kind", "svd", "--rank", "100000000"]].concat())
            .contains("no layer of this model is larger")
    );
    assert!(refuse("combine", &[&two[..], &["--kind", "svd", "--rank", "0"]].concat()).contains("rank"));
    assert!(refuse("convert", &["--rank", "100000000"]).contains("no layer of this model is larger"));
    assert!(refuse("convert", &["--rank", "0"]).contains("rank"));
    assert!(refuse("convert", &["--keep", "nan"]).contains("keep"));
    // Two weights that each are a number, and a sum that is none.
    let (huge, more) = (format!("{first}=1e38"), format!("{second}=1e38"));
    let to = output.path().join("new").display().to_string();
    let call = ["combine", "--model", &base, "--adapter", &huge, "--adapter", &more, "--kind", "svd", "--output", &to];
    let error = peft(&call).unwrap_err();
    assert!(error.contains("NaN or infinity") && error.contains(&first) && !Path::new(&to).exists(), "{error}");
}

#[test]
fn inspect_fails_where_the_adapter_does_not_fit() {
    let (adapter, llama, gpt2) = (path("combined/first"), path("models/llama-tiny"), path("models/gpt2-tiny"));
    peft(&["inspect", &adapter]).unwrap();
    assert!(peft(&["inspect", &adapter, "--model", &llama]).unwrap().contains("fits"));
    assert!(peft(&["inspect", &adapter, "--model", &gpt2]).unwrap_err().contains("does not fit"));
    let folder = tempfile::tempdir().unwrap();
    fs::copy(Path::new(&adapter).join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let file = TensorFile::open(tensors(Path::new(&adapter))).unwrap();
    let mut stored: Vec<Stored> =
        file.keys().into_iter().map(|key| Stored { data: file.floats(&key).unwrap(), key }).collect();
    let shape = stored[0].data.shape().clone();
    stored[0].data = TensorData::new(vec![f32::NAN; shape.num_elements()], shape);
    write_tensors(tensors(folder.path()), stored, FloatType::F32).unwrap();
    let error = peft(&["inspect", folder.path().to_str().unwrap()]).unwrap_err();
    assert!(error.contains("adapter_model.safetensors") && error.contains("NaN"), "{error}");
}

#[test]
fn half_precision_stays_half_precision() {
    let (base, adapter) = (path("models/llama-tiny"), path("cases/llama_lora_bf16_file/default"));
    let file = |folder: &Path| {
        TensorFile::open(
            fs::read_dir(folder)
                .unwrap()
                .map(|it| it.unwrap().path())
                .find(|it| it.extension().is_some_and(|it| it == "safetensors"))
                .unwrap(),
        )
        .unwrap()
    };
    let stored = file(Path::new(&adapter));
    assert_eq!(stored.dtype(&stored.keys()[0]), Some(Dtype::BF16));
    for format in ["portable", "diffusers", "kohya", "mlx"] {
        let output = tempfile::tempdir().unwrap();
        let to = output.path().display().to_string();
        let mut words = vec!["export", "--format", format, "--model", &base, "--adapter", &adapter, "--output", &to];
        if ["diffusers", "kohya"].contains(&format) {
            words.extend(["--component", "unet"]);
        }
        peft(&words).unwrap();
        let written = file(output.path());
        for key in written.keys() {
            assert_eq!(written.dtype(&key), Some(Dtype::BF16), "{format} {key}");
        }
    }
    // A base in half precision is read as it is, which changes no number.
    let (half, output) = (path("models/llama-bf16"), tempfile::tempdir().unwrap());
    let convert = |dtype: &str| {
        let to = output.path().join(dtype).display().to_string();
        peft(&["convert", "--model", &half, "--adapter", &adapter, "--rank", "4", "--dtype", dtype, "--output", &to])
            .unwrap();
        expected(&tensors(Path::new(&to)))
    };
    assert_eq!(convert("auto"), convert("float32"));
}

#[test]
fn an_adapter_that_is_there_is_replaced_only_if_asked() {
    let (base, first, second) = (path("models/llama-tiny"), path("combined/first"), path("combined/second"));
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().display().to_string();
    peft(&["convert", "--model", &base, "--adapter", &second, "--rank", "2", "--output", &to]).unwrap();
    let before = fs::read(tensors(folder.path())).unwrap();
    let commands = [
        &["convert", "--rank", "3"][..],
        &["combine"],
        &["export", "--format", "portable"],
        &["export", "--format", "kohya"],
    ];
    for command in commands {
        let call = [command, &["--model", &base, "--adapter", &first, "--output", &to]].concat();
        let error = peft(&call).unwrap_err();
        assert!(error.contains("holds `adapter_config.json` already") && error.contains("--overwrite"), "{error}");
        assert_eq!(fs::read(tensors(folder.path())).unwrap(), before);
    }
    peft(&["convert", "--model", &base, "--adapter", &first, "--rank", "3", "--output", &to, "--overwrite"]).unwrap();
    assert_ne!(fs::read(tensors(folder.path())).unwrap(), before);
}

#[test]
fn a_forward_is_not_written_over_what_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let case = fixtures().join("cases/llama_lora_default");
    let copy = |from: PathBuf, name: &str| {
        let to = folder.path().join(name);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap).filter(|it| it.path().is_file()) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to.display().to_string()
    };
    let (base, adapter) = (copy(fixtures().join("models/llama-tiny"), "base"), copy(case.join("default"), "adapter"));
    let inputs = folder.path().join("inputs.safetensors").display().to_string();
    fs::copy(case.join("inputs.safetensors"), &inputs).unwrap();
    let forward = |adapter: &str, output: &str| {
        peft(&[
            "forward",
            "--model",
            &base,
            "--task",
            "causal-lm",
            "--adapter",
            adapter,
            "--inputs",
            &inputs,
            "--output",
            output,
        ])
    };
    for output in [format!("{base}/model.safetensors"), format!("{adapter}/adapter_model.safetensors"), inputs.clone()]
    {
        let before = fs::read(&output).unwrap();
        assert!(forward(&adapter, &output).unwrap_err().contains("which is read"));
        assert_eq!(fs::read(&output).unwrap(), before);
    }
    let output = folder.path().join("outputs.safetensors").display().to_string();
    assert!(forward(&format!("{adapter}=1e38"), &output).unwrap_err().contains("NaN or infinity"));
    assert!(!Path::new(&output).exists());
    forward(&adapter, &output).unwrap();
}
