//! Sound: from a recording in a file to the spectrum that a model reads.

pub mod decode;
pub mod features;
mod mel;
pub mod recordings;
pub mod resample;

pub use decode::{Probe, Waveform};
pub use features::{FeatureExtractor, Features};
pub use recordings::{Recording, Recordings};
