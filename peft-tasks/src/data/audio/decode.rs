//! Recordings from files: WAV, FLAC, MP3 and OGG Vorbis, mixed down to one channel.
//!
//! Files are of strangers. So whatever they say of themselves is compared with what they hold, and a decoder that panics is
//! a damaged file: see `data/guard.rs`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use peft_core::{PeftError, Result};
use symphonia::core::codecs::audio::well_known::{CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;

use crate::data::guard::guarded;

/// What recordings may be, for messages.
const KINDS: &str =
    "known are WAV, FLAC, MP3 and OGG with Vorbis; convert it, for example with `ffmpeg -i FILE out.wav`";

/// Samples in a second: fewer are no speech, and more than any converter has are a damaged header.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;

/// The most samples that are read, 2 GiB of them: three hours at 48 kHz.
const MOST_SAMPLES: usize = 1 << 29;

/// A share of packets that may be damaged where a format is one of streams, which begin and break off anywhere.
const LOST_SHARE: f64 = 0.1;

/// A recording of one channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Waveform {
    /// Pressures, usually from −1 to 1.
    pub samples: Vec<f32>,
    /// Samples in a second.
    pub rate: u32,
}

/// What a file says of itself, before anything is decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Samples in a second.
    pub rate: u32,
    /// How long the recording is, where the header says so.
    pub seconds: Option<f64>,
}

/// Reads the header of a recording.
///
/// # Errors
/// If there is no such file, it is empty, or its format is not known.
pub fn probe(path: impl AsRef<Path>) -> Result<Probe> {
    let path = path.as_ref();
    guarded(|| Ok(Stream::open(path)?.header())).unwrap_or_else(|| Err(broken(path)))
}

/// Decodes a recording, and takes the mean of its channels, as `librosa.load` and torchcodec's users do.
///
/// With `seconds` it ends after so many of them, and what follows is not looked at.
///
/// # Errors
/// Names the file: there is none, it is empty, of an unknown format or damaged, holds fewer samples than its header says,
/// a sample that is no number, or more than can be read.
pub fn decode(path: impl AsRef<Path>, seconds: Option<f64>) -> Result<Waveform> {
    let path = path.as_ref();
    guarded(|| Stream::open(path)?.read(seconds)).unwrap_or_else(|| Err(broken(path)))
}

/// The same for a recording that lies in memory; `name` stands in for the path.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(bytes: Vec<u8>, name: &str) -> Result<Waveform> {
    let path = Path::new(name);
    let source = Box::new(std::io::Cursor::new(bytes));
    guarded(|| Stream::new(path, source)?.read(None)).unwrap_or_else(|| Err(broken(path)))
}

fn broken(path: &Path) -> PeftError {
    PeftError::bad_file(path, "it is damaged in a way that its decoder does not expect")
}

/// A file whose format is known.
struct Stream<'a> {
    path: &'a Path,
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    rate: u32,
    frames: Option<u64>,
    /// Whether what cannot be decoded is left out, as players do.
    is_lenient: bool,
}

impl<'a> Stream<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let about = fs::metadata(path).map_err(PeftError::io("read", path))?;
        if !about.is_file() {
            return Err(PeftError::bad_file(path, "it is no file, but a recording is wanted"));
        }
        if about.len() == 0 {
            return Err(PeftError::bad_file(path, "it is empty"));
        }
        Self::new(path, Box::new(File::open(path).map_err(PeftError::io("read", path))?))
    }

    fn new(path: &'a Path, source: Box<dyn MediaSource>) -> Result<Self> {
        let bad = |reason: String| PeftError::bad_file(path, reason);
        let mut hint = Hint::new();
        if let Some(ending) = path.extension().and_then(|it| it.to_str()) {
            hint.with_extension(ending);
        }
        let stream = MediaSourceStream::new(source, Default::default());
        let format = symphonia::default::get_probe()
            .probe(&hint, stream, FormatOptions::default(), MetadataOptions::default())
            .map_err(|error| bad(format!("it is no recording that can be read ({error}): {KINDS}")))?;
        let track = format.default_track(TrackType::Audio).ok_or_else(|| bad("it holds no sound".to_owned()))?;
        let codec = track.codec_params.as_ref().and_then(|it| it.audio());
        let codec = codec.ok_or_else(|| bad(format!("its codec is not known: {KINDS}")))?;
        let rate = rate_of(codec).map_err(bad)?;
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(codec, &AudioDecoderOptions::default())
            .map_err(|error| bad(format!("its codec is not known ({error}): {KINDS}")))?;
        let is_lenient = [CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3].contains(&codec.codec);
        let (track, frames) = (track.id, track.num_frames);
        Ok(Self { path, format, decoder, track, rate, frames, is_lenient })
    }

    fn header(&self) -> Probe {
        Probe { rate: self.rate, seconds: self.frames.map(|it| it as f64 / f64::from(self.rate)) }
    }

    fn bad(&self, reason: impl std::fmt::Display) -> PeftError {
        PeftError::bad_file(self.path, reason)
    }

    fn read(mut self, seconds: Option<f64>) -> Result<Waveform> {
        let wanted = seconds.map(|it| (it * f64::from(self.rate)).ceil() as usize);
        let (mut samples, mut interleaved) = (Vec::new(), Vec::new());
        let (mut packets, mut lost) = (0usize, 0usize);
        while wanted.is_none_or(|it| samples.len() < it) {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                // That is how the last packet of a file ends that breaks off.
                Err(Error::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(Error::ResetRequired) => {
                    return Err(self.bad("it becomes another recording in the middle: split it in two"));
                }
                Err(error) => return Err(self.bad(format!("it is damaged after {} samples: {error}", samples.len()))),
            };
            if packet.track_id != self.track {
                continue;
            }
            packets += 1;
            match self.decoder.decode(&packet) {
                Ok(decoded) => {
                    if decoded.spec().rate() != self.rate {
                        return Err(self.bad("its sampling rate changes in the middle"));
                    }
                    decoded.copy_to_vec_interleaved::<f32>(&mut interleaved);
                    mix_down(&interleaved, decoded.spec().channels().count(), &mut samples);
                }
                Err(Error::DecodeError(_)) if self.is_lenient => lost += 1,
                Err(error) => return Err(self.bad(format!("it is damaged after {} samples: {error}", samples.len()))),
            }
            if samples.len() > MOST_SAMPLES {
                return Err(self.bad(format!("it has more than {MOST_SAMPLES} samples: split it")));
            }
        }
        if let Some(wanted) = wanted {
            samples.truncate(wanted);
        }
        self.check(&samples, wanted, (packets, lost))?;
        Ok(Waveform { samples, rate: self.rate })
    }

    /// Compares what was read with what the header says.
    fn check(&self, samples: &[f32], wanted: Option<usize>, (packets, lost): (usize, usize)) -> Result<()> {
        if samples.is_empty() {
            return Err(self.bad("it holds no sample"));
        }
        if let Some(at) = samples.iter().position(|it| !it.is_finite()) {
            return Err(self.bad(format!("sample {at} is {}", samples[at])));
        }
        if lost as f64 > LOST_SHARE * packets as f64 {
            return Err(self.bad(format!("it is damaged: {lost} of {packets} packets cannot be decoded")));
        }
        if lost > 0 {
            tracing::warn!("{}: {lost} of {packets} packets cannot be decoded and are left out", self.path.display());
        }
        // Streams only estimate their length.
        let promised = self.frames.filter(|_| !self.is_lenient).map(|it| it as usize);
        let promised = promised.map(|it| wanted.map_or(it, |wanted| it.min(wanted)));
        match promised.filter(|it| samples.len() < *it) {
            Some(promised) => Err(self.bad(format!(
                "it breaks off: its header promises {promised} samples, and there are {}; fetch it again, or convert it to \
                 keep what is there",
                samples.len()
            ))),
            None => Ok(()),
        }
    }
}

fn rate_of(codec: &AudioCodecParameters) -> std::result::Result<u32, String> {
    match codec.sample_rate {
        Some(rate) if RATES.contains(&rate) => Ok(rate),
        Some(rate) => Err(format!("its header says {rate} samples in a second, expected {RATES:?}")),
        None => Err("its header does not say how many samples there are in a second".to_owned()),
    }
}

/// The mean of all channels.
fn mix_down(interleaved: &[f32], channels: usize, into: &mut Vec<f32>) {
    match channels {
        0 => {}
        1 => into.extend_from_slice(interleaved),
        _ => into.extend(interleaved.chunks_exact(channels).map(|it| it.iter().sum::<f32>() / channels as f32)),
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
