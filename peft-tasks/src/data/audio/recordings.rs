//! The recordings of a data set, decoded and made features of beside training.
//!
//! Features of a window take a megabyte, and decoding a tenth of what a training step takes. So nothing is prepared up
//! front but the headers, by which a missing or foreign file ends a run before its first step; the features of a batch are
//! computed on threads of their own while the batch before it is learned.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use peft_core::Result;

use crate::data::ahead::Ahead;
use crate::data::audio::decode::{decode, probe};
use crate::data::audio::features::{FeatureExtractor, Features};
use crate::data::audio::resample::resample;

/// Decoders at work beside training, which wants the processor for itself.
const THREADS: usize = 2;

/// Windows that wait to be learned: a megabyte each.
const MOST_WINDOWS: usize = 64;

/// A recording, as its file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The file.
    pub path: PathBuf,
    /// Its length, where the header says so.
    pub seconds: Option<f64>,
}

impl Recording {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// If it is no recording.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let seconds = probe(&path)?.seconds;
        Ok(Self { path, seconds })
    }
}

/// Recordings whose features are computed when somebody asks, or as soon as they are announced.
#[derive(Debug)]
pub struct Recordings {
    items: Arc<[Recording]>,
    extractor: FeatureExtractor,
    ahead: Ahead<Features>,
}

impl Recordings {
    /// Recordings, and what makes features of them.
    pub fn new(items: Vec<Recording>, extractor: FeatureExtractor) -> Self {
        let items: Arc<[Recording]> = items.into();
        let (files, config) = (items.clone(), extractor.clone());
        let ahead = Ahead::new(THREADS, MOST_WINDOWS, move |item| {
            let seconds = config.config().chunk_length as f64;
            Ok(config.window(&samples(&files[item].path, Some(seconds), &config)?))
        });
        Self { items, extractor, ahead }
    }

    /// The recordings.
    pub fn items(&self) -> &[Recording] {
        &self.items
    }

    /// What makes features of them.
    pub fn extractor(&self) -> &FeatureExtractor {
        &self.extractor
    }

    /// Whether a recording is known to be longer than a window.
    pub fn is_long(&self, item: usize) -> bool {
        self.items[item].seconds.is_some_and(|it| it > self.extractor.config().chunk_length as f64)
    }

    /// Says which windows are needed soon.
    pub fn announce(&self, items: &[usize]) {
        self.ahead.announce(items);
    }

    /// The features of a recording's first window.
    ///
    /// # Errors
    /// Names the file, if it cannot be decoded.
    pub fn window(&self, item: usize) -> Result<Features> {
        self.ahead.take(item)
    }

    /// The features of a whole recording.
    ///
    /// # Errors
    /// As [`Recordings::window`].
    pub fn whole(&self, item: usize) -> Result<Features> {
        load(&self.items[item].path, &self.extractor)
    }
}

/// The features of a whole recording in a file: of at least a window.
///
/// # Errors
/// Names the file, if it cannot be decoded.
pub fn load(path: &Path, extractor: &FeatureExtractor) -> Result<Features> {
    Ok(extractor.whole(&samples(path, None, extractor)?))
}

/// The samples of a file at the rate of the features.
fn samples(path: &Path, seconds: Option<f64>, extractor: &FeatureExtractor) -> Result<Vec<f32>> {
    // What lies behind a window still shapes the last samples in it, as far as the filter of the resampler reaches.
    let wave = decode(path, seconds.map(|it| it + 1.0))?;
    let wave = resample(wave, extractor.config().sampling_rate).map_err(|error| error.in_file(path))?;
    Ok(wave.samples)
}
