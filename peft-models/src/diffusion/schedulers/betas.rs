//! How noisy a picture is at each timestep.

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::Result;

use super::config::{BetaSchedule, SchedulerConfig};

/// What is left of a picture at each timestep.
///
/// Numbers are in single precision wherever the reference has them so.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    /// The share of the picture's variance that is left: `alphas_cumprod`.
    alphas: Vec<f32>,
}

impl SchedulerConfig {
    /// What is left of a picture at each timestep, and what training needs of it.
    pub fn noise_schedule(&self) -> NoiseSchedule {
        let count = self.num_train_timesteps;
        let mut betas = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => betas.clone(),
            (None, BetaSchedule::Linear) => linspace(self.beta_start as f32, self.beta_end as f32, count),
            (None, BetaSchedule::ScaledLinear) => {
                let roots = linspace(self.beta_start.sqrt() as f32, self.beta_end.sqrt() as f32, count);
                roots.into_iter().map(|it| it * it).collect()
            }
            (None, BetaSchedule::SquaredCosine) => squared_cosine(count),
        };
        if self.rescale_betas_zero_snr {
            betas = without_signal_at_the_end(&betas);
        }
        NoiseSchedule { alphas: products(betas.iter().map(|beta| 1.0 - beta)) }
    }
}

impl NoiseSchedule {
    /// The share of the variance that is left at a timestep.
    pub(super) fn alpha(&self, timestep: usize) -> f64 {
        self.alphas[timestep.min(self.alphas.len() - 1)].into()
    }

    /// The same before a timestep, where there may be none.
    pub(super) fn alpha_before(&self, timestep: i64, none: f64) -> f64 {
        usize::try_from(timestep).map_or(none, |it| self.alpha(it))
    }

    /// `σ / α` of each timestep. With a rescaled schedule the last one is not infinite, as in the reference.
    pub(super) fn sigmas(&self, rescaled: bool) -> Vec<f32> {
        let mut alphas = self.alphas.clone();
        if let Some(last) = alphas.last_mut().filter(|_| rescaled) {
            *last = 2f32.powi(-24);
        }
        alphas.into_iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }

    /// How many timesteps there are.
    pub fn len(&self) -> usize {
        self.alphas.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.alphas.is_empty()
    }

    /// The signal-to-noise ratio at a timestep.
    pub fn snr(&self, timestep: usize) -> f64 {
        let alpha = self.alpha(timestep);
        alpha / (1.0 - alpha)
    }

    /// Pictures with noise, each as much as its timestep says: `√ᾱ · x + √(1 − ᾱ) · ε`.
    ///
    /// # Shapes
    /// - original, noise, output: `[batch, channels, rows, columns]`
    /// - timesteps: one for each row of the batch
    pub fn add_noise(&self, original: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        let (signal, rest) = self.roots(timesteps, &original.device().without_autodiff());
        original * signal + noise * rest
    }

    /// What a model that predicts velocities learns: `√ᾱ · ε − √(1 − ᾱ) · x`.
    ///
    /// # Shapes
    /// As [`add_noise`](Self::add_noise).
    pub fn velocity(&self, original: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        let (signal, rest) = self.roots(timesteps, &original.device().without_autodiff());
        noise * signal - original * rest
    }

    /// `√ᾱ` and `√(1 − ᾱ)`, `[batch, 1, 1, 1]`.
    fn roots(&self, timesteps: &[usize], device: &Device) -> (Tensor<4>, Tensor<4>) {
        let of = |root: fn(f32) -> f32| {
            let values: Vec<f32> = timesteps.iter().map(|it| root(self.alpha(*it) as f32)).collect();
            let count = values.len();
            Tensor::<4>::from_data(TensorData::new(values, [count, 1, 1, 1]), device)
        };
        (of(f32::sqrt), of(|alpha| (1.0 - alpha).sqrt()))
    }

    /// Fails for a timestep beyond the last.
    pub(super) fn check(&self, timesteps: &[i64], steps: usize) -> Result<()> {
        super::spacing::check(timesteps, steps, self.len())
    }
}

/// Evenly spaced numbers, from both ends as torch counts them.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    let at = |at: usize| {
        if at < count / 2 { start + step * at as f32 } else { end - step * (count - 1 - at) as f32 }
    };
    (0..count).map(at).collect()
}

/// Running products, multiplied in double precision and kept in single, as torch does.
fn products(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1f64;
    factors
        .map(|factor| {
            product *= f64::from(factor);
            product as f32
        })
        .collect()
}

/// Nichol and Dhariwal 2021, arXiv 2102.09672.
fn squared_cosine(count: usize) -> Vec<f32> {
    const GREATEST: f64 = 0.999;
    let left = |share: f64| ((share + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
    let beta = |at: usize| {
        let (begin, end) = (at as f64 / count as f64, (at + 1) as f64 / count as f64);
        (1.0 - left(end) / left(begin)).min(GREATEST) as f32
    };
    (0..count).map(beta).collect()
}

/// The schedule stretched so that nothing of the picture is left at the end: Lin et al. 2023, arXiv 2305.08891.
fn without_signal_at_the_end(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(betas.iter().map(|beta| 1.0 - beta)).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let stretch = first / (first - last);
    let left: Vec<f32> = roots.into_iter().map(|root| (root - last) * stretch).map(|it| it * it).collect();
    let before = std::iter::once(1.0).chain(left.iter().copied());
    left.iter().zip(before).map(|(left, before)| 1.0 - left / before).collect()
}
