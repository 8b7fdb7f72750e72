//! DreamBooth's losses and gradients, against diffusers' training script; and a run of the command.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use peft::core::files::checkpoint::TensorFile;
use peft::core::{DEFAULT_ADAPTER, PeftModel, nn};
use peft::models::auto::load_denoiser;
use peft::models::diffusion::folder::load_clip_text;
use peft::models::diffusion::schedulers::{PredictionType, SchedulerConfig, SchedulerKind};
use peft::models::diffusion::text_to_image::TextToImageModel;
use peft::run::{RunConfig, RunReport};
use peft::tasks::data::image::Picture;
use peft::tasks::tasks::text_to_image::{DreamBooth, DreamBoothConfig, LatentPicture, PromptedPictures};
use serde_json::json;

use super::recorded;
use crate::support::{assert_close, device, expected, find, registry};

const DIMS: [usize; 4] = [4, 4, 8, 8];

fn scheduler(prediction: &str) -> SchedulerConfig {
    let settings = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": prediction});
    SchedulerConfig::of_kind(SchedulerKind::Ddpm, settings.as_object().unwrap().clone()).unwrap()
}

fn model() -> PeftModel<TextToImageModel> {
    let folder = recorded("pipeline");
    let unet = load_denoiser(&folder, &device()).unwrap().0;
    let text_encoder = load_clip_text(folder.join("text_encoder"), &device()).unwrap();
    let mut peft = PeftModel::new(TextToImageModel::new(unet, text_encoder));
    peft.load_adapter(recorded("dreambooth/adapter"), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    peft
}

/// Two pictures of the subject and two of the class.
fn task(file: &TensorFile, config: DreamBoothConfig) -> DreamBooth {
    let numbers = |key: &str| file.floats(key).unwrap().iter::<f32>().collect::<Vec<f32>>();
    let (mean, std) = (numbers("mean"), numbers("std"));
    let ids: Vec<u32> = numbers("ids").into_iter().map(|it| it as u32).collect();
    let each = mean.len() / 4;
    let picture = |at: usize| {
        let part = at * each..(at + 1) * each;
        LatentPicture { mean: mean[part.clone()].to_vec(), std: std[part].to_vec() }
    };
    let seq = ids.len() / 4;
    let subject = PromptedPictures { ids: ids[..seq].to_vec(), pictures: vec![picture(0), picture(1)] };
    let class = PromptedPictures { ids: ids[3 * seq..].to_vec(), pictures: vec![picture(2), picture(3)] };
    DreamBooth::new(subject, Some(class), [4, 8, 8], config).unwrap()
}

fn loss(model: &TextToImageModel, prediction: &str, gamma: Option<f64>, prior_weight: f64) -> Tensor<1> {
    let file = TensorFile::open(recorded("dreambooth/expected.safetensors")).unwrap();
    let config =
        DreamBoothConfig { prior_weight, min_snr_gamma: gamma, ..DreamBoothConfig::new(&scheduler(prediction)) };
    let tensor = |key: &str| Tensor::<4>::from_data(file.floats(key).unwrap(), &device());
    let timesteps: Vec<usize> = file.floats("timesteps").unwrap().iter::<f32>().map(|it| it as usize).collect();
    assert_eq!(tensor("noise").dims(), DIMS);
    let task = task(&file, config);
    task.loss_of(model, &[0, 1], tensor("posterior"), tensor("noise"), &timesteps, &device()).div_scalar(2.0)
}

#[test]
fn losses_are_those_of_the_script() {
    let wanted = expected(&recorded("dreambooth/expected.safetensors"));
    let model = nn::eval(model().model());
    for (name, prediction) in [("epsilon", "epsilon"), ("v", "v_prediction")] {
        for (key, gamma, prior) in [("subject", None, 0.0), ("loss", None, 0.7), ("weighted", Some(5.0), 0.7)] {
            let ours = loss(&model, prediction, gamma, prior).into_data();
            assert_close(&format!("{name}.{key}"), &ours, &wanted[&format!("{name}.{key}")]);
        }
    }
}

#[test]
fn gradients_reach_both_parts() {
    let wanted = expected(&recorded("dreambooth/expected.safetensors"));
    let peft = model();
    let gradients = loss(&nn::set_training(peft.model().clone(), false), "v_prediction", None, 0.7).backward();
    let ours = peft.adapter_gradients(DEFAULT_ADAPTER, &gradients).unwrap();
    let mut count = 0;
    for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("grad.")) {
        // transformers 5 leaves a level out of the text encoder.
        let key = key.trim_start_matches("grad.").replace("text_encoder.encoder.", "text_encoder.text_model.encoder.");
        assert_close(&key, find(&ours, &key), wanted);
        count += 1;
    }
    assert_eq!(ours.len(), count);
    assert!(ours.iter().any(|it| it.key.contains("text_encoder")) && ours.iter().any(|it| it.key.contains("unet")));
}

#[test]
fn timesteps_with_little_noise_count_less() {
    let config = DreamBoothConfig::new(&scheduler("epsilon"));
    let weight = |timestep| peft::tasks::tasks::text_to_image::snr_weight(&config, 5.0, timestep);
    assert!(weight(0) < 0.01 && (weight(999) - 1.0).abs() < 1e-6);
    let velocity = DreamBoothConfig { prediction: PredictionType::VPrediction, ..config };
    assert!((peft::tasks::tasks::text_to_image::snr_weight(&velocity, 5.0, 999) - 2.0).abs() < 1e-6);
}

fn train(run: &RunConfig) -> peft::core::Result<RunReport> {
    peft::run::train(run, registry(), false, &mut ())
}

/// A red and a blue picture, of unlike sizes.
fn pictures(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, size, colour) in [("a.png", [20, 16], [200, 30, 30]), ("b.png", [16, 32], [30, 30, 200])] {
        let rgb = std::iter::repeat_n(colour, (size[0] * size[1]) as usize).flatten().collect();
        Picture { width: size[0], height: size[1], rgb }.write(folder.join(name)).unwrap();
    }
}

#[test]
fn a_run_writes_folders_that_make_pictures() {
    let work = tempfile::tempdir().unwrap();
    pictures(&work.path().join("subject"));
    pictures(&work.path().join("class"));
    let output = work.path().join("adapter");
    let run = json!({
        "model": recorded("pipeline"), "task": "text-to-image",
        "data": {"train": work.path().join("subject"), "dreambooth": {
            "instance_prompt": "a photo of sks dog", "class_data": work.path().join("class"),
            "class_prompt": "a photo of a dog", "min_snr_gamma": 5.0}},
        "method": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_v", "q_proj"]},
        "training": {"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2},
        "output": output,
    });
    let run = RunConfig::parse(&run.to_string()).unwrap();
    train(&run).unwrap();
    for part in ["unet", "text_encoder"] {
        let config = peft::core::read_config(&output.join(part)).unwrap();
        assert_eq!(config["r"], 2);
        let base = config["base_model_name_or_path"].as_str().unwrap();
        assert!(base.ends_with(part), "{base}");
    }
    let trained = super::pipeline(&[output]);
    let plain = super::pipeline(&[]);
    let about = |it: &peft::tasks::generate::pictures::StableDiffusion<_>| {
        let config = peft::tasks::generate::pictures::PictureConfig { steps: 2, ..Default::default() };
        it.latents(&["a photo of sks dog"], None, &config, &device(), |_, _| Ok(())).unwrap().into_data()
    };
    let (trained, plain): (TensorData, TensorData) = (about(&trained), about(&plain));
    assert!(crate::support::distance(&trained, &plain) > 1e-4, "three steps change the picture");
}

#[test]
fn data_that_makes_no_sense_is_refused() {
    let work = tempfile::tempdir().unwrap();
    pictures(&work.path().join("subject"));
    let refused = |dreambooth: serde_json::Value| {
        let run = json!({"model": recorded("pipeline"), "task": "text-to-image",
            "data": {"train": work.path().join("subject"), "dreambooth": dreambooth},
            "method": {"target_modules": ["to_q"]}, "output": work.path().join("none")});
        let run = RunConfig::parse(&run.to_string()).unwrap();
        train(&run).unwrap_err().to_string()
    };
    assert!(refused(json!({})).contains("instance_prompt"));
    assert!(refused(json!({"instance_prompt": "a", "class_prompt": "b"})).contains("class_data"));
    assert!(refused(json!({"instance_prompt": "a", "resolution": 9})).contains("resolution"));
    assert!(refused(json!({"instance_prompt": "a", "prior_weight": -1.0})).contains("prior_weight"));
}
