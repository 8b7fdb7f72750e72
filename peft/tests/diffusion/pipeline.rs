//! Prompts to pictures, against diffusers.

use burn::tensor::TensorData;
use peft::load::pipeline::with_scheduler;
use peft::models::diffusion::schedulers::SchedulerKind;
use peft::tasks::data::clip_tokenizer::ClipTokenizer;
use peft::tasks::generate::pictures::PictureConfig;
use serde_json::Value;

use super::{pipeline, pipeline_of, recorded};
use crate::support::{assert_close, device, expected};

const PROMPTS: [&str; 2] = ["a photo of sks dog", "  A  Photo, of 2 cats!  "];

fn config() -> PictureConfig {
    PictureConfig { steps: 4, seed: 7, ..PictureConfig::default() }
}

fn check(name: &str, kind: SchedulerKind, negative: Option<&str>, config: &PictureConfig) {
    check_in("pipeline", name, kind, negative, config);
}

fn check_in(folder: &str, name: &str, kind: SchedulerKind, negative: Option<&str>, config: &PictureConfig) {
    let wanted = expected(&recorded(folder).join("expected.safetensors"));
    let mut pipeline = pipeline_of(folder, &[]);
    pipeline.scheduler = with_scheduler(&recorded(folder), kind).unwrap();
    let latents = pipeline.latents(&PROMPTS, negative, config, &device(), |_, _| Ok(())).unwrap();
    assert_close("latents", &latents.into_data(), &wanted[&format!("{name}.latents")]);

    let mut calls = Vec::new();
    let seen = |at, count| {
        calls.push((at, count));
        Ok(())
    };
    let pictures = pipeline.pictures(&PROMPTS, negative, config, &device(), seen).unwrap();
    let images = &wanted[&format!("{name}.images")];
    let [count, height, width, _] = images.shape().dims();
    assert_eq!(pictures.len(), count);
    assert!(calls.iter().enumerate().all(|(at, it)| it.0 == at && it.1 == calls.len()));
    let bytes: Vec<f32> = pictures.iter().flat_map(|it| it.rgb.iter().map(|it| f32::from(*it))).collect();
    assert_eq!((pictures[0].width as usize, pictures[0].height as usize), (width, height));
    let wanted: Vec<f32> = images.iter::<f32>().map(|it| it * 255.0).collect();
    assert_eq!(bytes.len(), wanted.len());
    // A byte is a rounded number.
    assert!(bytes.iter().zip(&wanted).all(|(ours, theirs)| (ours - theirs).abs() <= 0.51), "pictures differ");
    assert!(wanted.iter().any(|it| *it > 5.0 && *it < 250.0), "the picture is black and white");
}

#[test]
fn pndm() {
    check("pndm", SchedulerKind::Pndm, None, &config());
}

#[test]
fn ddim_without_guidance() {
    check("ddim", SchedulerKind::Ddim, None, &PictureConfig { guidance_scale: Some(1.0), ..config() });
}

#[test]
fn dpm_with_a_negative_prompt_and_another_size() {
    let config = PictureConfig { height: Some(24), width: Some(16), ..config() };
    check("dpm", SchedulerKind::DpmSolverMultistep, Some("2 cats"), &config);
}

#[test]
fn euler_ancestral_with_a_layer_less() {
    let config = PictureConfig { guidance_scale: Some(3.0), clip_skip: 1, ..config() };
    check("euler_a", SchedulerKind::EulerAncestral, None, &config);
}

/// Two text encoders, of which the second is padded with another token, its pooled text, and the sizes of the picture.
#[test]
fn sdxl() {
    let check = |name, negative, config| check_in("pipeline-xl", name, SchedulerKind::Euler, negative, &config);
    check("plain", None, config());
    check("unguided", None, PictureConfig { guidance_scale: Some(1.0), ..config() });
    let size = PictureConfig { height: Some(24), width: Some(16), ..config() };
    check("negative", Some("2 cats"), PictureConfig { guidance_scale: Some(3.0), ..size });
}

#[test]
fn texts_become_the_tokens_of_the_reference() {
    let tokenizer = ClipTokenizer::load(recorded("pipeline/tokenizer")).unwrap();
    let text = std::fs::read_to_string(recorded("pipeline/texts.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    for (text, ids) in recorded["texts"].as_array().unwrap().iter().zip(recorded["ids"].as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let wanted: Vec<u32> = ids.as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as u32).collect();
        let (ours, cut) = tokenizer.ids(text).unwrap();
        assert_eq!(ours, wanted, "{text:?}");
        assert!(cut > 0 || text.len() <= 60, "{text:?}");
    }
}

#[test]
fn sizes_that_latents_cannot_have_are_refused() {
    let pipeline = pipeline(&[]);
    let run = |config: PictureConfig| {
        let result = pipeline.pictures(&PROMPTS, None, &config, &device(), |_, _| Ok(()));
        result.unwrap_err().to_string()
    };
    assert!(run(PictureConfig { height: Some(15), ..config() }).contains("height"));
    assert!(run(PictureConfig { width: Some(0), ..config() }).contains("width"));
    assert!(run(PictureConfig { steps: 0, ..config() }).contains("steps"));
}

#[test]
fn a_picture_of_no_numbers_is_an_error() {
    let shape = [1, 3, 1, 1];
    let data = TensorData::new(vec![0.0f32, f32::NAN, 1.0], shape);
    let decoded = burn::tensor::Tensor::<4>::from_data(data, &device());
    let error = peft::tasks::generate::pictures::to_pictures(decoded).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
}
