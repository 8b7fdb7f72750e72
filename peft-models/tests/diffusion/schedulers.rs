//! Whole runs of the schedulers, with a function that stands for a noise predictor.

use std::fs;

use burn::tensor::{Tensor, TensorData};
use peft_core::files::checkpoint::TensorFile;
use peft_models::diffusion::schedulers::{SchedulerConfig, SchedulerKind};
use serde_json::{Map, Value, json};

use crate::support::{assert_close, device, fixtures};

fn recorded() -> (Map<String, Value>, TensorFile) {
    let folder = fixtures().join("diffusion/schedulers");
    let text = fs::read_to_string(folder.join("schedulers.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), TensorFile::open(folder.join("trajectories.safetensors")).unwrap())
}

fn config(about: &Value) -> SchedulerConfig {
    let mut settings = about["settings"].as_object().unwrap().clone();
    settings.insert("_class_name".to_owned(), about["_class_name"].clone());
    SchedulerConfig::from_json(settings).unwrap()
}

fn rows(file: &TensorFile, key: &str) -> Vec<Tensor<4>> {
    let all = Tensor::<4>::from_data(file.floats(key).unwrap(), &device());
    let count = all.dims()[0];
    (0..count).map(|at| all.clone().narrow(0, at, 1)).collect()
}

fn check(name: &str) {
    let (about, file) = recorded();
    let about = &about[name];
    let mut scheduler = config(about).schedule(about["steps"].as_u64().unwrap() as usize).unwrap();
    let timesteps = file.floats(&format!("{name}.timesteps")).unwrap();
    let ours = scheduler.timesteps().to_vec();
    let count = ours.len();
    assert_close("timesteps", TensorData::new(ours.clone(), [count]), timesteps);

    let mut noise = file.shape(&format!("{name}.noise")).map_or(Vec::new(), |_| rows(&file, &format!("{name}.noise")));
    noise.reverse();
    let samples = rows(&file, &format!("{name}.samples"));
    assert_eq!(samples.len(), count + 1);
    let mut sample = samples[0].clone();
    for at in 0..count {
        let seen = scheduler.scale_model_input(sample.clone(), at);
        let output = (seen.mul_scalar(1.3) + f64::from(ours[at]) * 0.01).sin();
        sample =
            scheduler.step(at, output, sample, &mut || noise.pop().expect("no more noise than the reference draws"));
        assert_close(&format!("sample behind call {at}"), sample.to_data(), samples[at + 1].to_data());
    }
    assert!(noise.is_empty(), "the reference draws {} times more", noise.len());
}

macro_rules! runs {
    ($($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)) })+

        const RUNS: &[&str] = &[$(stringify!($name)),+];
    };
}

runs! {
    ddpm, ddpm_sd, ddpm_large, ddpm_small_log, ddpm_v_cosine, ddpm_sample,
    ddim, ddim_sd, ddim_v, ddim_zero_snr, ddim_sample_linspace, ddim_trained,
    pndm, pndm_sd, pndm_v, pndm_trailing, pndm_one_step,
    dpm, dpm_sd, dpm_v_trailing, dpm_karras, dpm_sigma_min, dpm_first_order, dpm_clipped, dpm_zero_snr,
    euler, euler_sd, euler_v, euler_karras, euler_sample, euler_zero_snr,
    euler_ancestral, euler_ancestral_sd, euler_ancestral_v,
}

#[test]
fn no_recorded_run_is_left_out() {
    let missing: Vec<String> = recorded().0.keys().filter(|it| !RUNS.contains(&it.as_str())).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn noise_begins_as_strong_as_the_scheduler_says() {
    let (about, _) = recorded();
    let of = |name: &str| config(&about[name]).schedule(5).unwrap().init_noise_sigma();
    // From `init_noise_sigma` of diffusers: σ of timestep 999, and the root of its square and 1 at timestep 801.
    assert!((of("euler_v") - 14.6146).abs() < 1e-3, "{}", of("euler_v"));
    assert!((of("euler_sd") - 5.2309).abs() < 1e-3, "{}", of("euler_sd"));
    assert_eq!(of("ddim"), 1.0);
}

#[test]
fn noise_is_added_and_velocities_are_as_recorded() {
    let (about, file) = recorded();
    for name in ["ddpm_sd", "ddpm_v_cosine"] {
        let schedule = config(&about[name]).noise_schedule();
        let [original, added] = ["original", "added"]
            .map(|key| Tensor::<4>::from_data(file.floats(&format!("{name}.{key}")).unwrap(), &device()));
        let timesteps = [0, 421, 999];
        let noisy = schedule.add_noise(original.clone(), added.clone(), &timesteps);
        assert_close("noisy", noisy.into_data(), file.floats(&format!("{name}.noisy")).unwrap());
        let velocity = schedule.velocity(original, added, &timesteps);
        assert_close("velocity", velocity.into_data(), file.floats(&format!("{name}.velocity")).unwrap());
    }
}

#[test]
fn a_run_without_steps_or_with_more_than_there_are_is_refused() {
    for kind in SchedulerKind::ALL {
        let settings = json!({"num_train_timesteps": 20, "steps_offset": 1, "timestep_spacing": "leading"});
        let config = SchedulerConfig::of_kind(kind, settings.as_object().unwrap().clone()).unwrap();
        for steps in [0, 21] {
            let error = config.schedule(steps).err().unwrap_or_else(|| panic!("{kind:?} {steps}")).to_string();
            assert!(error.contains("steps"), "{error}");
        }
    }
    let settings = json!({"num_train_timesteps": 20, "steps_offset": 1});
    let config = SchedulerConfig::of_kind(SchedulerKind::Ddim, settings.as_object().unwrap().clone()).unwrap();
    let error = config.schedule(20).err().unwrap().to_string();
    assert!(error.contains("steps_offset") && error.contains("timestep 20"), "{error}");
    let config = SchedulerConfig::of_kind(SchedulerKind::Pndm, Map::new()).unwrap();
    assert!(config.schedule(3).err().unwrap().to_string().contains("skip_prk_steps"));
}
