//! What Whisper reads of a recording: the logarithms of its energies, band by band.
//!
//! Source: `transformers/models/whisper/feature_extraction_whisper.py` (5.23), its form with torch.

use std::path::Path;
use std::sync::Arc;

use peft_core::{PeftError, Result};
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use serde::Deserialize;
use serde_json::Value;

use crate::data::audio::mel::MelFilters;
use crate::data::special_tokens::json_object;

/// The highest frequency of a band, in hertz, whatever the sampling rate.
const HIGHEST: f64 = 8000.0;

/// Energies below this count as silence.
const SILENCE: f64 = 1e-10;

/// How far below the loudest energy the quietest may be, in powers of ten.
const DYNAMIC_RANGE: f32 = 8.0;

/// `preprocessor_config.json` of a Whisper. Defaults are transformers' own; what it computes from the others is not read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FeatureConfig {
    /// Mel bands.
    pub feature_size: usize,
    /// Samples in a second.
    pub sampling_rate: u32,
    /// Samples from one frame to the next.
    pub hop_length: usize,
    /// Seconds of a window.
    pub chunk_length: usize,
    /// Samples of a frame.
    pub n_fft: usize,
    /// What fills up a window.
    pub padding_value: f32,
    /// Whether samples are shifted and scaled to mean 0 and variance 1 first.
    pub do_normalize: bool,
    /// Whether the model is told which frames are filling.
    pub return_attention_mask: bool,
}

impl Default for FeatureConfig {
    fn default() -> Self {
        Self {
            feature_size: 80,
            sampling_rate: 16_000,
            hop_length: 160,
            chunk_length: 30,
            n_fft: 400,
            padding_value: 0.0,
            do_normalize: false,
            return_attention_mask: false,
        }
    }
}

impl FeatureConfig {
    /// Reads `preprocessor_config.json` of a folder, or `processor_config.json`, in which newer releases of transformers put
    /// the settings of tokenizer and feature extractor together.
    ///
    /// # Errors
    /// If neither is there, or one says what cannot be computed.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let [old, new] = ["preprocessor_config.json", "processor_config.json"].map(|it| folder.join(it));
        // The reference prefers the newer one.
        let (path, json) = match json_object(&new)?
            .and_then(|mut it| it.remove("feature_extractor").or_else(|| it.remove("audio_processor")))
        {
            Some(json) => (new, json),
            None => match json_object(&old)? {
                Some(json) => (old, Value::Object(json)),
                None => {
                    let reason = "it has no `preprocessor_config.json`, which says how a recording becomes features: put the \
                                  one of the published model there";
                    return Err(PeftError::bad_file(folder, reason));
                }
            },
        };
        Self::parse(json).map_err(|error| error.in_file(&path))
    }

    /// Understands the settings of a feature extractor.
    ///
    /// # Errors
    /// If a setting cannot be computed.
    pub fn parse(json: Value) -> Result<Self> {
        let kind = json.get("feature_extractor_type").and_then(Value::as_str).unwrap_or("WhisperFeatureExtractor");
        if kind != "WhisperFeatureExtractor" {
            return Err(PeftError::unsupported(format!("`{kind}`"), "only Whisper's features are computed"));
        }
        if json.get("dither").and_then(Value::as_f64).is_some_and(|it| it != 0.0) {
            return Err(PeftError::config(
                "dither",
                "adds noise to every recording, which is not computed: set it to 0",
            ));
        }
        if json.get("padding_side").and_then(Value::as_str).is_some_and(|it| it != "right") {
            return Err(PeftError::config("padding_side", "is not `right`, where the reference puts silence"));
        }
        let config: Self = serde_json::from_value(json).map_err(|error| PeftError::Invalid(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let within = |field: &str, value: usize, range: std::ops::RangeInclusive<usize>| match range.contains(&value) {
            true => Ok(()),
            false => {
                Err(PeftError::config(field, format!("is {value}, expected {} to {}", range.start(), range.end())))
            }
        };
        within("feature_size", self.feature_size, 1..=1024)?;
        within("sampling_rate", self.sampling_rate as usize, 1_000..=192_000)?;
        within("chunk_length", self.chunk_length, 1..=3600)?;
        within("n_fft", self.n_fft, 2..=1 << 16)?;
        within("hop_length", self.hop_length, 1..=self.n_fft.min(self.window()))?;
        // Frames at the ends see the recording mirrored.
        within("n_fft", self.n_fft / 2, 1..=self.window() - 1)
    }

    /// Samples of a window.
    pub fn window(&self) -> usize {
        self.chunk_length * self.sampling_rate as usize
    }

    /// Frames of a window.
    pub fn frames(&self) -> usize {
        self.window() / self.hop_length
    }
}

/// The features of a recording, or of a part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Band by band, `[mels, frames]`.
    pub values: Vec<f32>,
    /// Mel bands.
    pub mels: usize,
    /// Steps in time.
    pub frames: usize,
}

impl Features {
    /// `count` frames from `first` on, with zeros behind the last: how the reference cuts windows out of a long recording.
    pub fn slice(&self, first: usize, count: usize, width: usize) -> Self {
        let mut values = Vec::with_capacity(self.mels * width);
        for band in self.values.chunks(self.frames.max(1)) {
            let end = (first + count).min(self.frames);
            let part = &band[first.min(end)..end];
            values.extend_from_slice(part);
            values.extend(std::iter::repeat_n(0.0, width - part.len()));
        }
        Self { values, mels: self.mels, frames: width }
    }
}

/// Computes features.
#[derive(Clone)]
pub struct FeatureExtractor {
    config: FeatureConfig,
    filters: Arc<MelFilters>,
    /// A Hann window, `[n_fft]`.
    window: Arc<[f64]>,
    fft: Arc<dyn RealToComplex<f64>>,
}

impl std::fmt::Debug for FeatureExtractor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FeatureExtractor").field(&self.config).finish()
    }
}

impl FeatureExtractor {
    /// With the settings of a model's folder.
    ///
    /// # Errors
    /// As [`FeatureConfig::load`].
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(FeatureConfig::load(folder)?))
    }

    /// With these settings.
    pub fn new(config: FeatureConfig) -> Self {
        let bins = config.n_fft / 2 + 1;
        let filters = MelFilters::new(bins, config.feature_size, HIGHEST, config.sampling_rate);
        let turn = std::f64::consts::TAU / config.n_fft as f64;
        // `torch.hann_window` computes in single precision.
        let window = (0..config.n_fft).map(|it| f64::from((0.5 - 0.5 * (turn * it as f64).cos()) as f32)).collect();
        let fft = RealFftPlanner::new().plan_fft_forward(config.n_fft);
        Self { config, filters: Arc::new(filters), window, fft }
    }

    /// The settings.
    pub fn config(&self) -> &FeatureConfig {
        &self.config
    }

    /// The features of one window, `[feature_size, frames]`: what is longer is cut, what is shorter is filled up.
    ///
    /// # Shapes
    /// - samples: any number, at [`FeatureConfig::sampling_rate`]
    pub fn window(&self, samples: &[f32]) -> Features {
        let length = self.config.window();
        let samples = self.normalized(&samples[..samples.len().min(length)]);
        let filling = std::iter::repeat_n(self.config.padding_value, length - samples.len());
        self.spectrum(&samples.into_iter().chain(filling).collect::<Vec<f32>>())
    }

    /// The features of a whole recording that is longer than a window, as the reference's `truncation=False`.
    pub fn whole(&self, samples: &[f32]) -> Features {
        if samples.len() <= self.config.window() {
            self.window(samples)
        } else {
            self.spectrum(&self.normalized(samples))
        }
    }

    /// 1 for frames of a recording of so many samples, 0 for filling: `return_attention_mask`.
    pub fn attention_mask(&self, samples: usize) -> Vec<u8> {
        (0..self.config.frames()).map(|it| u8::from(it * self.config.hop_length < samples)).collect()
    }

    fn normalized(&self, samples: &[f32]) -> Vec<f32> {
        if !self.config.do_normalize || samples.is_empty() {
            return samples.to_vec();
        }
        let count = samples.len() as f64;
        let mean = samples.iter().map(|it| f64::from(*it)).sum::<f64>() / count;
        let variance = samples.iter().map(|it| (f64::from(*it) - mean).powi(2)).sum::<f64>() / count;
        let scale = (variance + 1e-7).sqrt();
        samples.iter().map(|it| ((f64::from(*it) - mean) / scale) as f32).collect()
    }

    /// Frames around every `hop_length`-th sample, the recording mirrored at its ends; the last frame is left out.
    fn spectrum(&self, samples: &[f32]) -> Features {
        let FeatureConfig { n_fft, hop_length, feature_size: mels, .. } = self.config;
        let (frames, reach) = (samples.len() / hop_length, n_fft as isize / 2);
        let mut values = vec![0.0f32; mels * frames];
        let (mut frame, mut spectrum) = (self.fft.make_input_vec(), self.fft.make_output_vec());
        let (mut scratch, mut energies) = (self.fft.make_scratch_vec(), vec![0.0; spectrum.len()]);
        let quiet = SILENCE.log10() as f32;
        for at in 0..frames {
            let first = (at * hop_length) as isize - reach;
            let mut is_silent = true;
            for (offset, (slot, weight)) in frame.iter_mut().zip(self.window.iter()).enumerate() {
                let sample = samples[mirrored(first + offset as isize, samples.len())];
                is_silent &= sample == 0.0;
                *slot = f64::from(sample) * weight;
            }
            // Most of a window is filling.
            if is_silent {
                (0..mels).for_each(|band| values[band * frames + at] = quiet);
                continue;
            }
            // Lengths are those that the plan was made for.
            if self.fft.process_with_scratch(&mut frame, &mut spectrum, &mut scratch).is_err() {
                spectrum.fill(Complex::new(f64::NAN, 0.0));
            }
            energies.iter_mut().zip(&spectrum).for_each(|(energy, it)| *energy = it.norm_sqr());
            for (band, energy) in self.filters.apply(&energies).enumerate() {
                values[band * frames + at] = energy.max(SILENCE).log10() as f32;
            }
        }
        let floor = values.iter().copied().fold(f32::NEG_INFINITY, f32::max) - DYNAMIC_RANGE;
        values.iter_mut().for_each(|it| *it = (it.max(floor) + 4.0) / 4.0);
        Features { values, mels, frames }
    }
}

/// Where a sample beyond the ends lies: torch's `reflect`, which does not repeat the last one.
fn mirrored(at: isize, length: usize) -> usize {
    let last = length as isize - 1;
    let at = if at < 0 { -at } else { at };
    (if at > last { 2 * last - at } else { at }).clamp(0, last) as usize
}

#[cfg(test)]
#[path = "features_tests.rs"]
mod tests;
