//! One LoRA in the layouts of several programs.

use std::path::{Path, PathBuf};

use peft::core::files::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
use peft::load::AdapterSource;
use peft::load::pipeline::{load_pipeline, with_scheduler};
use peft::models::diffusion::schedulers::SchedulerKind;
use peft::tasks::generate::pictures::PictureConfig;

use super::{pipeline, recorded};
use crate::support::{assert_close, device, distance, expected, registry};

/// The latents that the recorded LoRA leads to.
fn check(adapters: &[PathBuf]) {
    let wanted = expected(&recorded("pipeline/expected.safetensors"));
    let latents = latents(adapters);
    assert_close("latents", &latents, &wanted["lora.latents"]);
    assert!(distance(&latents, &wanted["dpm.latents"]) > 0.01, "a LoRA that changes nothing proves nothing");
}

fn latents(adapters: &[PathBuf]) -> burn::tensor::TensorData {
    let mut pipeline = pipeline(adapters);
    pipeline.scheduler = with_scheduler(&recorded("pipeline"), SchedulerKind::DpmSolverMultistep).unwrap();
    let config = PictureConfig { steps: 4, seed: 7, height: Some(24), width: Some(16), ..PictureConfig::default() };
    let prompts = ["a photo of sks dog", "  A  Photo, of 2 cats!  "];
    pipeline.latents(&prompts, Some("2 cats"), &config, &device(), |_, _| Ok(())).unwrap().into_data()
}

#[test]
fn diffusers_writes_a_header() {
    check(&[recorded("lora")]);
}

#[test]
fn kohya_writes_underscores_and_alphas() {
    check(&[recorded("lora/kohya.safetensors")]);
}

#[test]
fn older_releases_of_diffusers_write_processors() {
    check(&[recorded("lora/old.safetensors")]);
}

/// Written here in both layouts, and read again.
#[test]
fn folders_of_peft_go_to_diffusers_and_back() {
    use peft::folder::export::{ExportOptions, Format, export};

    let unpacked = tempfile::tempdir().unwrap();
    let base = pipeline(&[]);
    let encoder = &base.text_encoder.as_ref().unwrap().model;
    let specs = [peft::core::Adaptable::spec(&base.denoiser), peft::core::Adaptable::spec(encoder)];
    let parts = ["unet", "text_encoder"];
    let parts: Vec<_> =
        parts.iter().zip(&specs).map(|(name, spec)| peft::load::image_lora::Part { name, spec }).collect();
    let file = recorded("lora/kohya.safetensors");
    let names = peft::load::image_lora::unpack(&file, &parts, unpacked.path()).unwrap();
    assert_eq!(names, ["unet", "text_encoder"]);
    // A folder with a folder of PEFT for each part.
    check(&[unpacked.path().to_owned()]);
    // A folder of PEFT is told by its layers.
    check(&[unpacked.path().join("text_encoder"), unpacked.path().join("unet")]);

    for format in [Format::Diffusers, Format::Kohya] {
        let output = tempfile::tempdir().unwrap();
        let written =
            export(unpacked.path(), output.path(), &ExportOptions::new(format), registry(), &device()).unwrap();
        assert_eq!(written.files.len(), 1);
        check(&written.files);
    }
}

/// For SDXL kohya counts blocks through, as the program does that the first models were trained with.
#[test]
fn kohya_has_other_names_for_sdxl() {
    let model = crate::support::fixtures().join("models/unet-sdxl");
    let raw = peft::models::common::config::RawConfig::read(&model).unwrap();
    let unet = registry().architectures.denoiser(&raw, &device()).unwrap();
    let spec = peft::core::Adaptable::spec(&unet);
    let names = [
        ("input_blocks_3_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        (
            "output_blocks_1_1_transformer_blocks_0_attn2_to_v",
            "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
        ),
        ("label_emb_0_0", "add_embedding.linear_1"),
    ];
    let mut tensors = Vec::new();
    for (name, path) in names {
        let layer = spec.layers().find(|it| it.module == path).unwrap();
        let (d_in, d_out) = layer.features();
        let mut push = |end: &str, shape: [usize; 2]| {
            let data = burn::tensor::TensorData::new(vec![0.5_f32; shape[0] * shape[1]], shape);
            tensors.push(Stored { key: format!("lora_unet_{name}.{end}.weight"), data });
        };
        push("lora_down", [2, d_in]);
        push("lora_up", [d_out, 2]);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sdxl.safetensors");
    write_tensors(&file, tensors, FloatType::F32).unwrap();
    let parts = [peft::load::image_lora::Part { name: "unet", spec: &spec }];
    peft::load::image_lora::unpack(&file, &parts, &folder.path().join("peft")).unwrap();
    let written = TensorFile::open(folder.path().join("peft/unet/adapter_model.safetensors")).unwrap();
    let keys = written.keys();
    for (_, path) in names {
        assert!(keys.iter().any(|it| *it == format!("base_model.model.{path}.lora_A.weight")), "{path} of {keys:?}");
    }
}

#[test]
fn a_file_that_is_no_lora_of_the_pipeline_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(String) -> String| {
        let file = TensorFile::open(recorded("lora/kohya.safetensors")).unwrap();
        let tensors = file.keys().into_iter().map(|key| {
            let data = file.floats(&key).unwrap();
            Stored { key: change(key), data }
        });
        let path = folder.path().join("changed.safetensors");
        write_tensors(&path, tensors.collect(), FloatType::F32).unwrap();
        load(&path).unwrap_err().to_string()
    };
    let error = refused(&|key| key.replace("attn1_to_q", "attn1_to_p"));
    assert!(error.contains("to_p") && error.contains("no layer"), "{error}");
    let error = refused(&|key| key.replace("lora_down", "hada_w1_a"));
    assert!(error.contains("hada_w1_a") && error.contains("LyCORIS"), "{error}");
    let error = load(&recorded("vae-tiny")).unwrap_err().to_string();
    assert!(error.contains("no adapter of a pipeline"), "{error}");
}

fn load(adapter: &Path) -> peft::core::Result<()> {
    let registry = registry();
    let adapters = [AdapterSource::new(adapter)];
    let place = peft::core::files::checkpoint::Placement::from(&device());
    load_pipeline(&recorded("pipeline"), &adapters, &registry.architectures, &registry.methods, &place).map(|_| ())
}

/// The adapter folded in, as a folder that diffusers reads.
#[test]
fn a_merged_noise_predictor_is_a_folder_of_diffusers() {
    use peft::folder::merge::{MergeRequest, merge};

    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("unet");
    let case = crate::support::fixtures().join("cases/unet_sd15_lora");
    let base = crate::support::fixtures().join("models/unet-sd15");
    let request = MergeRequest {
        base: base.clone(),
        adapters: vec![AdapterSource::new(case.join("default"))],
        output: output.clone(),
        ..MergeRequest::default()
    };
    merge(&request, registry(), &device()).unwrap();
    let read = |folder: &Path| std::fs::read_to_string(folder.join("config.json")).unwrap();
    let json = |folder: &Path| serde_json::from_str::<serde_json::Value>(&read(folder)).unwrap();
    assert_eq!(json(&output), json(&base));
    let merged = TensorFile::open(output.join("diffusion_pytorch_model.safetensors")).unwrap();
    let wanted = expected(&case.join("expected.safetensors"));
    let mut changed = 0;
    for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("merged.") && key.ends_with("weight")) {
        assert_close(key, &merged.floats(key.trim_start_matches("merged.")).unwrap(), wanted);
        changed += 1;
    }
    assert!(changed > 0);
}
