//! Any bytes as a recording, under the name of any format, and what was decoded as features.

#![no_main]

use libfuzzer_sys::fuzz_target;
use peft_tasks::data::audio::decode::decode_bytes;
use peft_tasks::data::audio::features::FeatureConfig;
use peft_tasks::data::audio::{FeatureExtractor, resample};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let name = ["a.wav", "a.flac", "a.mp3", "a.ogg", "a"][*first as usize % 5];
    let Ok(mut wave) = decode_bytes(rest.to_vec(), name) else { return };
    assert!(!wave.samples.is_empty() && wave.samples.iter().all(|it| it.is_finite()));
    wave.samples.truncate(20_000);
    let Ok(wave) = resample::resample(wave, 16_000) else { return };
    let extractor = FeatureExtractor::new(FeatureConfig { chunk_length: 1, ..FeatureConfig::default() });
    assert_eq!(extractor.window(&wave.samples).frames, 100);
});
