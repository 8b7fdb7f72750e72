//! Another sampling rate for a recording.

use peft_core::{PeftError, Result};
use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

use crate::data::audio::decode::Waveform;

/// Samples of a block at the lower of the two rates, at least: the longer, the steeper the filter.
const BLOCK: usize = 2048;

/// A recording at `rate` samples in a second; `⌈samples · rate / old rate⌉` of them, as librosa counts.
///
/// A band-limited interpolation by Fourier transforms of overlapping blocks, with a filter as long as a block under a squared
/// Blackman–Harris window. Where either rate carries a tone of full height up to 0.98 of the end of its band, it comes out as it
/// was to 1e-4; from 1.02 of the end of the new band on, less than 1e-4 of it is left, 80 dB. Rates that share a large divisor,
/// such as 44,100 and 16,000, stay below 1e-6. `soxr_hq` of librosa and torchaudio's default cut elsewhere, and their numbers
/// differ from each other too.
///
/// # Errors
/// If the resampler cannot be set up.
pub fn resample(wave: Waveform, rate: u32) -> Result<Waveform> {
    if wave.rate == rate || wave.samples.is_empty() {
        return Ok(Waveform { rate, ..wave });
    }
    let failed = |error: &dyn std::fmt::Display| {
        PeftError::Invalid(format!("{} samples in a second cannot become {rate}: {error}", wave.rate))
    };
    let length = wave.samples.len();
    let (old, new) = (wave.rate as usize, rate as usize);
    let common = greatest_common_divisor(old, new);
    // The filter lies in the middle of a block. Where a block has an odd number of samples, before or after, `rubato` (5.1) counts
    // from half a sample beside the middle, and everything comes out as much too late: at 96,000 Hz, too, where 4098 samples
    // become 683.
    let blocks = BLOCK.div_ceil(old.min(new) / common).next_multiple_of(2);
    let (block, window) = (blocks * (old / common), WindowFunction::BlackmanHarris2);
    let mut resampler =
        Fft::<f32>::new_custom(old, new, block, 1, 1, window, FixedSync::Input).map_err(|it| failed(&it))?;
    let input = InterleavedOwned::new_from(wave.samples, 1, length).map_err(|it| failed(&it))?;
    let samples = resampler.process_all(&input, length, None).map_err(|it| failed(&it))?.take_data();
    Ok(Waveform { samples, rate })
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(hertz: f64, rate: u32, seconds: f64) -> Waveform {
        let count = (seconds * f64::from(rate)) as usize;
        let at = |it: usize| (std::f64::consts::TAU * hertz * it as f64 / f64::from(rate)).sin() as f32;
        Waveform { samples: (0..count).map(at).collect(), rate }
    }

    /// The largest difference in the middle, where no end disturbs.
    fn distance(a: &Waveform, b: &Waveform) -> f32 {
        assert_eq!((a.samples.len(), a.rate), (b.samples.len(), b.rate));
        let middle = a.samples.len() / 4..a.samples.len() * 3 / 4;
        a.samples[middle.clone()].iter().zip(&b.samples[middle]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_tone_stays_where_it_is() {
        for rate in [8_000, 8_001, 11_025, 15_999, 16_001, 22_050, 44_100, 44_101, 48_000, 96_000, 192_000] {
            // To 0.98 of what both rates can carry.
            for hertz in [100.0, 1000.0, 0.98 * f64::from(rate.min(16_000)) / 2.0] {
                let heard = resample(sine(hertz, rate, 2.0), 16_000).unwrap();
                let error = distance(&heard, &sine(hertz, 16_000, 2.0));
                assert!(error < 1e-4, "{hertz} Hz from {rate}: {error}");
            }
        }
    }

    #[test]
    fn what_the_new_rate_cannot_carry_is_gone() {
        for rate in [22_050, 44_100, 44_101, 48_000, 96_000, 192_000] {
            let heard = resample(sine(1.02 * 8_000.0, rate, 2.0), 16_000).unwrap();
            let silence = Waveform { samples: vec![0.0; heard.samples.len()], rate: 16_000 };
            let left = distance(&heard, &silence);
            assert!(left < 1e-4, "from {rate}: {left}");
        }
    }

    #[test]
    fn lengths_are_those_of_librosa() {
        for (count, rate, wanted) in [(1, 8_000, 2), (7, 44_100, 3), (44_100, 44_100, 16_000), (100, 48_000, 34)] {
            let wave = Waveform { samples: vec![0.5; count], rate };
            assert_eq!(resample(wave, 16_000).unwrap().samples.len(), wanted, "{count} at {rate}");
        }
        assert!(resample(Waveform { samples: vec![], rate: 8_000 }, 16_000).unwrap().samples.is_empty());
    }
}
