//! Schedules by the ratio of noise to signal.

use super::config::FinalSigmas;

/// The ratio between whole timesteps, linearly: numpy's `interp`.
pub(super) fn at(timestep: f64, sigmas: &[f32]) -> f64 {
    let below = (timestep.max(0.0).floor() as usize).min(sigmas.len() - 1);
    let (low, high) = (f64::from(sigmas[below]), f64::from(sigmas[(below + 1).min(sigmas.len() - 1)]));
    low + (high - low) * (timestep - below as f64)
}

/// Ratios whose seventh roots fall evenly: Karras et al. 2022, arXiv 2206.00364.
pub(super) fn karras(greatest: f64, least: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (high, low) = (greatest.powf(1.0 / RHO), least.powf(1.0 / RHO));
    super::spacing::evenly(1.0, steps).into_iter().map(|it| (high + it * (low - high)).powf(RHO)).collect()
}

/// The timestep of a ratio, by its logarithm between those of whole timesteps.
pub(super) fn timestep_of(sigma: f64, sigmas: &[f32]) -> f64 {
    let wanted = sigma.max(1e-10).ln();
    let log = |at: usize| f64::from(sigmas[at].ln());
    let below = (0..sigmas.len()).rev().find(|at| log(*at) <= wanted).unwrap_or(0);
    let below = below.min(sigmas.len().saturating_sub(2));
    let (low, high) = (log(below), log((below + 1).min(sigmas.len() - 1)));
    let share = ((low - wanted) / (low - high)).clamp(0.0, 1.0);
    (1.0 - share) * below as f64 + share * (below + 1) as f64
}

/// What a run ends with.
pub(super) fn last(kind: FinalSigmas, sigmas: &[f32]) -> f32 {
    match kind {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => sigmas[0],
    }
}
