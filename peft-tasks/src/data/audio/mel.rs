//! Filters that sum up a spectrum as ears do.

/// The energies of `bands` mel bands from those of a spectrum: triangles that overlap, as narrow as they are high.
///
/// Source: `mel_filter_bank` of `transformers/audio_utils.py` (5.23) with `norm="slaney"` and `mel_scale="slaney"`.
#[derive(Debug, Clone)]
pub(crate) struct MelFilters {
    /// Of each band the first bin that it reads, and the weights from there on.
    bands: Vec<(usize, Vec<f64>)>,
}

impl MelFilters {
    /// Filters for `bins` frequencies from 0 to half of the sampling rate; the bands reach from 0 to `highest`, in hertz.
    pub(crate) fn new(bins: usize, bands: usize, highest: f64, sampling_rate: u32) -> Self {
        // `sampling_rate // 2`, which is not the half of an odd rate.
        let nyquist = f64::from(sampling_rate / 2);
        let top = hertz_to_mel(highest);
        let edges: Vec<f64> = (0..bands + 2).map(|it| mel_to_hertz(top * it as f64 / (bands + 1) as f64)).collect();
        let frequency = |bin: usize| nyquist * bin as f64 / (bins - 1).max(1) as f64;
        let band = |edges: &[f64]| {
            let (low, middle, high) = (edges[0], edges[1], edges[2]);
            let height = 2.0 / (high - low);
            let weight = |bin: usize| {
                let at = frequency(bin);
                let (up, down) = ((at - low) / (middle - low), (high - at) / (high - middle));
                // The reference multiplies in single precision.
                f64::from((up.min(down).max(0.0) * height) as f32)
            };
            let first = (0..bins).find(|it| weight(*it) > 0.0).unwrap_or(0);
            let weights: Vec<f64> = (first..bins).map(weight).take_while(|it| *it > 0.0).collect();
            (first, weights)
        };
        Self { bands: edges.windows(3).map(band).collect() }
    }

    /// The energy of each band.
    pub(crate) fn apply<'a>(&'a self, spectrum: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        self.bands.iter().map(|(first, weights)| {
            weights.iter().zip(&spectrum[*first..]).map(|(weight, energy)| weight * energy).sum()
        })
    }
}

/// Where the scale turns from a straight line into a logarithm.
const BEND_HERTZ: f64 = 1000.0;
const BEND_MEL: f64 = 15.0;

fn hertz_to_mel(hertz: f64) -> f64 {
    if hertz < BEND_HERTZ { 3.0 * hertz / 200.0 } else { BEND_MEL + (hertz / BEND_HERTZ).ln() * (27.0 / 6.4f64.ln()) }
}

fn mel_to_hertz(mel: f64) -> f64 {
    if mel < BEND_MEL { 200.0 * mel / 3.0 } else { BEND_HERTZ * ((6.4f64.ln() / 27.0) * (mel - BEND_MEL)).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")` of transformers 5.23.
    #[test]
    fn whispers_filters() {
        let filters = MelFilters::new(201, 80, 8000.0, 16_000);
        let sum = |band: usize| filters.bands[band].1.iter().sum::<f64>();
        assert_eq!(filters.bands.len(), 80);
        for (band, first, count, total) in MELS {
            assert_eq!((filters.bands[band].0, filters.bands[band].1.len()), (first, count), "band {band}");
            assert!((sum(band) - total).abs() < 1e-6, "band {band}: {}", sum(band));
        }
    }

    /// Band, first bin, bins, sum of the weights.
    const MELS: [(usize, usize, usize, f64); 5] = [
        (0, 1, 1, 0.024862595),
        (1, 1, 2, 0.024862594),
        (24, 23, 2, 0.024862593),
        (40, 42, 3, 0.026664861),
        (79, 186, 14, 0.024925339),
    ];
}
