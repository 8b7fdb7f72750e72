use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::TensorFile;
use serde_json::json;

use super::*;

/// The signal of `fixtures/audio/record.py`.
fn signal(count: usize, rate: u32) -> Vec<f32> {
    let mut state = 1u64;
    let sample = |n: usize| {
        let t = n as f64 / f64::from(rate);
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        let noise = state as f64 / f64::from(1u32 << 30) - 1.0;
        (0.3 * (std::f64::consts::TAU * (200.0 * t + 900.0 * t * t)).sin() + 0.02 * noise) as f32
    };
    (0..count).map(sample).collect()
}

fn fixture() -> TensorFile {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/audio/features.safetensors");
    TensorFile::open(path).unwrap()
}

/// Compares every `step`-th frame with the reference's.
fn check(name: &str, features: &Features, step: usize) {
    let file = fixture();
    let frames = file.integers(&format!("{name}.frames")).unwrap().iter::<i64>().next().unwrap();
    assert_eq!(features.frames, frames as usize, "{name}");
    let wanted = file.floats(name).unwrap();
    let wanted = wanted.as_slice::<f32>().unwrap();
    let ours: Vec<f32> =
        features.values.chunks(features.frames).flat_map(|band| band.iter().step_by(step).copied()).collect();
    assert_eq!(ours.len(), wanted.len(), "{name}");
    let worst = ours.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-4, "{name}: off by {worst}");
}

fn mask(name: &str) -> usize {
    fixture().integers(&format!("{name}.mask")).unwrap().iter::<i64>().next().unwrap() as usize
}

#[test]
fn features_are_those_of_the_reference() {
    let extractor = |json: Value| FeatureExtractor::new(FeatureConfig::parse(json).unwrap());
    let samples = signal(27_200, 16_000);
    let filled = extractor(json!({"chunk_length": 3}));
    check("filled", &filled.window(&samples), 7);
    let ones = filled.attention_mask(samples.len()).iter().map(|it| usize::from(*it)).sum::<usize>();
    assert_eq!(ones, mask("filled"));
    let cut = extractor(json!({"chunk_length": 1}));
    check("cut", &cut.window(&samples), 5);
    check("mels128", &extractor(json!({"feature_size": 128, "chunk_length": 2})).window(&samples), 9);
    check("normalized", &extractor(json!({"do_normalize": true, "chunk_length": 2})).window(&samples), 9);
    check("whole", &cut.whole(&signal(27_234, 16_000)), 7);
    check("silent", &cut.window(&[0.0; 8000]), 9);
    let other = json!({"feature_size": 20, "sampling_rate": 11025, "hop_length": 100, "n_fft": 255, "chunk_length": 2});
    check("other", &extractor(other).window(&signal(17_000, 11_025)), 5);
}

#[test]
fn a_window_of_a_long_recording_is_filled_up_with_zeros() {
    let features = Features { values: (0..10).map(|it| it as f32).collect(), mels: 2, frames: 5 };
    let part = features.slice(3, 4, 4);
    assert_eq!((part.mels, part.frames), (2, 4));
    assert_eq!(part.values, [3.0, 4.0, 0.0, 0.0, 8.0, 9.0, 0.0, 0.0]);
}

#[test]
fn both_files_of_settings_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || FeatureConfig::load(folder.path()).map_err(|it| it.to_string());
    assert!(load().unwrap_err().contains("no `preprocessor_config.json`"));
    // The first files hold the filters, and numbers that follow from others.
    write(
        "preprocessor_config.json",
        r#"{"feature_size": 128, "n_samples": 1, "nb_max_frames": 2, "mel_filters": [[0.5]]}"#,
    );
    assert_eq!(load().unwrap(), FeatureConfig { feature_size: 128, ..FeatureConfig::default() });
    write(
        "processor_config.json",
        r#"{"processor_class": "WhisperProcessor", "feature_extractor": {"hop_length": 100}}"#,
    );
    assert_eq!(load().unwrap(), FeatureConfig { hop_length: 100, ..FeatureConfig::default() });
}

#[test]
fn settings_that_cannot_be_computed_are_refused() {
    let refusal = |json: Value| FeatureConfig::parse(json).unwrap_err().to_string();
    assert!(refusal(json!({"dither": 0.1})).starts_with("`dither`"));
    assert!(refusal(json!({"hop_length": 0})).starts_with("`hop_length` is 0"));
    assert!(refusal(json!({"n_fft": 1 << 20})).starts_with("`n_fft`"));
    assert!(refusal(json!({"chunk_length": 0})).starts_with("`chunk_length`"));
    assert!(
        refusal(json!({"feature_extractor_type": "Wav2Vec2FeatureExtractor"})).contains("Wav2Vec2FeatureExtractor")
    );
}
